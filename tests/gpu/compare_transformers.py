#!/usr/bin/env python3
"""Checks greedy output of our engine against transformers with the same weights, on the same GPU.

Usage: gpu_engine_bench MODEL 3 700 generate | compare_transformers.py MODEL [SHARE WORST]. The reference is transformers in f32. How
far below the reference's best a token is that was chosen by bf16 logits depends on rounding; so transformers in bf16 is
judged at the same places. Ours may be the best at most SHARE less often than its own, and at most WORST below.
"""

import sys

import torch
from transformers import AutoModelForCausalLM

SHARE, WORST = (float(x) for x in sys.argv[2:4] or (0.05, 0.5))  # WORST: of logits whose standard deviation is about 4.


def logits_of(dtype: torch.dtype, texts: list[list[int]]) -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=dtype, device_map="cuda")
    with torch.no_grad():
        found = [model(torch.tensor([text], device="cuda")).logits[0].float().cpu() for text in texts]
    del model
    torch.cuda.empty_cache()
    return found


torch.backends.cuda.matmul.allow_tf32 = False
lines = [line[len("generated "):].split("|") for line in sys.stdin if line.startswith("generated ")]
prompts, outputs = ([[int(x) for x in line[i].split()] for line in lines] for i in (0, 1))
texts = [prompt + output for prompt, output in zip(prompts, outputs)]
reference, theirs = logits_of(torch.float32, texts), logits_of(torch.bfloat16, texts)
gaps: dict[str, list[float]] = {"ours": [], "transformers in bf16": []}
for prompt, output, f32, bf16 in zip(prompts, outputs, reference, theirs):
    for i, token in enumerate(output):
        row = f32[len(prompt) - 1 + i]
        gaps["ours"].append((row.max() - row[token]).item())
        gaps["transformers in bf16"].append((row.max() - row[bf16[len(prompt) - 1 + i].argmax()]).item())
best = {}
for name, list_ in gaps.items():
    best[name] = sum(gap == 0 for gap in list_)
    print(f"{name}: {best[name]} of {len(list_)} tokens are the best of transformers in f32, the worst is {max(list_):.3f} below it")
total = len(gaps["ours"])
good = total > 0 and best["ours"] >= best["transformers in bf16"] - SHARE * total and max(gaps["ours"]) <= WORST
sys.exit(0 if good else 1)
