#!/usr/bin/env python3
"""Placement policies beside each other: the first requests of Mooncake's conversations, scaled to a small model, on
workers of this machine's CPUs that prefill and decode. Prints a line a policy: time to the first token, and how much of
the prompts was found in prefix caches.

    tests/bench/placement_trace.py PROGRAMS MODEL [--workers=4] [--requests=1600] [--speed=0.9] [--rounds=1]

PROGRAMS: a folder with tandem and its programs. MODEL: a GGUF file or a folder. Policies run in turn; on a
shared machine ask for more rounds than one.
"""

import argparse
import json
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
POLICIES = ("predicted", "least_load", "round_robin")


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def hit_share(metrics: str) -> float:
    def total(name: str) -> float:
        return sum(float(value) for value in re.findall(rf"^{name}(?:\{{[^}}]*\}})? ([-+.e\d]+)$", metrics, re.M))

    return total("vllm:prefix_cache_hits_total") / max(1.0, total("vllm:prefix_cache_queries_total"))


def run(options: argparse.Namespace, policy: str, folder: pathlib.Path) -> None:
    router, metrics = free_ports(2)
    topology = folder / "topology.yaml"
    topology.write_text(
        f"model: {{path: {options.model}, served_name: m}}\n"
        f"router: {{listen: '127.0.0.1:{router}', http_listen: '', metrics_listen: '127.0.0.1:{metrics}',"
        f" placement: {policy}}}\n"
        f"pools: [{{name: decode, role: decode, replicas: {options.workers}, kv_memory: 1 GiB,"
        f" page_tokens: {options.page_tokens}}}]\n")
    with open(folder / "log", "w") as log:
        cluster = subprocess.Popen([options.programs / "tandem", "up", topology], stdout=log, stderr=log)
    try:
        tandem = [options.programs / "tandem", f"--router=127.0.0.1:{router}"]
        subprocess.run([*tandem, "status", "--wait"], check=True, stdout=subprocess.DEVNULL, timeout=120)
        report = folder / "report.json"
        subprocess.run([*tandem, "bench", "--arrivals=trace", f"--speed={options.speed}",
                        f"--trace={ROOT}/tests/golden/traces/mooncake_conversation.jsonl", f"--json={report}",
                        f"--requests={options.requests}", f"--token_scale={options.token_scale}", "--warm_up=0"],
                       check=True, stdout=subprocess.DEVNULL, timeout=1200)
        measured = json.loads(report.read_text())
        share = hit_share(urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics").read().decode())
    finally:
        cluster.send_signal(signal.SIGINT)
        cluster.wait(timeout=60)
    ttft = measured["ttft_ms"]
    print(f"{policy:12} TTFT mean {ttft['mean']:7.0f} p50 {ttft['p50']:7.0f} p99 {ttft['p99']:7.0f} ms, "
          f"{100 * share:.1f} % of prompt tokens cached, {measured['failed']} failed", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("model", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--requests", type=int, default=1600)
    parser.add_argument("--speed", type=float, default=0.9)
    parser.add_argument("--token_scale", type=float, default=1 / 64)
    parser.add_argument("--page_tokens", type=int, default=8, help="at most a block of the trace: 512 * token_scale")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES)
    options = parser.parse_args()
    for _ in range(options.rounds):
        for policy in options.policies:
            with tempfile.TemporaryDirectory() as folder:
                run(options, policy, pathlib.Path(folder))


if __name__ == "__main__":
    main()
