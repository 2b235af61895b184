#!/usr/bin/env python3
"""Checks greedy output of our engine against transformers with the same weights, on the same GPU.

Usage: gpu_engine_bench MODEL 3 700 generate | compare_transformers.py MODEL. Each token that we chose must be, by
transformers' bf16 logits after the same tokens, within TOLERANCE of its best; prints how many are its best.
"""

import sys

import torch
from transformers import AutoModelForCausalLM

TOLERANCE = 0.15  # Of logits whose standard deviation is about 4.

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, device_map="cuda")
best = total = 0
worst = 0.0
for line in sys.stdin:
    if not line.startswith("generated "):
        continue
    prompt, output = ([int(x) for x in part.split()] for part in line[len("generated "):].split("|"))
    with torch.no_grad():
        logits = model(torch.tensor([prompt + output], device="cuda")).logits[0].float()
    for i, token in enumerate(output):
        row = logits[len(prompt) - 1 + i]
        gap = (row.max() - row[token]).item()
        worst = max(worst, gap)
        best += gap == 0
        total += 1
    print(f"prompt of {len(prompt)}: logits' deviation {logits[len(prompt):].std().item():.2f}")
print(f"{best} of {total} tokens are transformers' best; the worst is {worst:.3f} below it")
sys.exit(0 if total > 0 and worst <= TOLERANCE else 1)
