#!/usr/bin/env python3
"""Decode speed of transformers on this GPU: greedy, bf16, static cache with its compiled forward, the fastest attention
that runs. Usage: rival_transformers.py MODEL [BATCH ...]. Prints tokens/s at each batch size, for prompts of 1,920
tokens, as gpu_engine_bench has them; the first tokens of each run are left out.
"""

import sys
import time

import torch
from transformers import AutoModelForCausalLM, StoppingCriteria

PROMPT, OUTPUT, SKIPPED = 1920, 128, 16


class Stamps(StoppingCriteria):
    """Stops nothing; notes when each token is there, which generate waits for anyway."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        torch.cuda.synchronize()
        self.times.append(time.monotonic())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def step_seconds(model, batch: int) -> float:
    torch.manual_seed(batch)
    prompt = torch.randint(0, 100000, (batch, PROMPT), device="cuda")
    best = float("inf")
    for _ in range(3):  # The first run compiles.
        stamps = Stamps()
        model.generate(prompt, attention_mask=torch.ones_like(prompt), min_new_tokens=OUTPUT, max_new_tokens=OUTPUT,
                       do_sample=False, cache_implementation="static", pad_token_id=0, stopping_criteria=[stamps])
        best = min(best, (stamps.times[-1] - stamps.times[SKIPPED]) / (len(stamps.times) - 1 - SKIPPED))
    return best


for attention in ("flash_attention_3", "flash_attention_2", "sdpa"):
    try:
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16, device_map="cuda",
                                                     attn_implementation=attention)
        break
    except (ImportError, ValueError) as error:
        print(f"{attention} is not there: {str(error).splitlines()[0][:80]}")
for batch in [int(x) for x in sys.argv[2:]] or [1, 32]:
    seconds = step_seconds(model, batch)
    print(f"transformers, {attention}, static cache, batch {batch}: {1e3 * seconds:.2f} ms a step, "
          f"{batch / seconds:.0f} tokens/s", flush=True)
