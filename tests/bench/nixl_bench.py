#!/usr/bin/env python3
"""The first set of kvbench's rates by NIXL, for a comparison in one run: 3,904 pages of 73,728 bytes in random order,
written from one GPU into another's memory by another process.

    pip install torch numpy nixl-cu13==1.5.1 in a venv; then VENV/bin/python tests/bench/nixl_bench.py
"""

import json
import multiprocessing
import statistics
import time

import numpy
import torch
from nixl_cu13._api import nixl_agent, nixl_agent_config

POOL_BYTES, PAGE_BYTES, PAGES, ROUNDS = 1536 << 20, 73_728, 3_904, 10


def orders():
    """Pages at the source and at the destination."""
    draw = numpy.random.default_rng(11)
    slots = POOL_BYTES // PAGE_BYTES
    return draw.permutation(slots)[:PAGES], draw.permutation(slots)[:PAGES]


def descriptors(pool, pages, device):
    return [(pool.data_ptr() + int(page) * PAGE_BYTES, PAGE_BYTES, device) for page in pages]


def target(pipe, device, progress_thread):
    torch.cuda.set_device(device)
    agent = nixl_agent("target", nixl_agent_config(enable_prog_thread=progress_thread))
    pool = torch.zeros(POOL_BYTES, dtype=torch.uint8, device=f"cuda:{device}")
    agent.register_memory(pool)
    pipe.send((agent.get_agent_metadata(), descriptors(pool, orders()[1], device)))
    while not pipe.poll(0.0):  # Without a progress thread its connections move in calls only.
        agent.get_new_notifs()
    pages = pipe.recv()  # What should have arrived.
    view = pool[: POOL_BYTES // PAGE_BYTES * PAGE_BYTES].view(-1, PAGE_BYTES)
    pipe.send(bool(torch.equal(view[torch.as_tensor(orders()[1], device=pool.device)].cpu(), pages)))


def measure(progress_thread):
    devices = torch.cuda.device_count()
    context = multiprocessing.get_context("spawn")
    pipe, other = context.Pipe()
    process = context.Process(target=target, args=(other, 1 if devices > 1 else 0, progress_thread), daemon=True)
    process.start()
    torch.cuda.set_device(0)
    agent = nixl_agent("source", nixl_agent_config(enable_prog_thread=progress_thread))
    pool = torch.randint(0, 256, (POOL_BYTES,), dtype=torch.uint8, device="cuda:0")
    agent.register_memory(pool)
    torch.cuda.synchronize()
    metadata, remote = pipe.recv()
    name = agent.add_remote_agent(metadata)
    name = name.decode() if isinstance(name, bytes) else name
    pages = orders()[0]
    mine = agent.prep_xfer_dlist("NIXL_INIT_AGENT", descriptors(pool, pages, 0), "VRAM")
    theirs = agent.prep_xfer_dlist(name, remote, "VRAM")
    everything = list(range(PAGES))
    times = []
    for _ in range(ROUNDS + 3):
        request = agent.make_prepped_xfer("WRITE", mine, everything, theirs, everything)
        begin = time.perf_counter()
        state = agent.transfer(request)
        while state == "PROC":
            state = agent.check_xfer_state(request)
        times.append(time.perf_counter() - begin)
        assert state == "DONE", state
        agent.release_xfer_handle(request)
    view = pool[: POOL_BYTES // PAGE_BYTES * PAGE_BYTES].view(-1, PAGE_BYTES)
    pipe.send(view[torch.as_tensor(pages, device=pool.device)].cpu())
    verified = pipe.recv()
    rate = PAGES * PAGE_BYTES / statistics.median(times[3:]) / 1e9
    print(json.dumps({"nixl": "1.5.1", "progress_thread": progress_thread, "pages": PAGES, "page_bytes": PAGE_BYTES,
                      "GB/s": round(rate, 2), "verified": verified}), flush=True)
    assert verified


if __name__ == "__main__":
    measure(progress_thread=True)
    measure(progress_thread=False)
