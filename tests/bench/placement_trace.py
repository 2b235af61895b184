#!/usr/bin/env python3
"""Placement policies beside each other: the first requests of Mooncake's conversations, in turn under each policy,
round after round. Prints a line a run: time to the first token, and how much of the prompts was found in prefix caches.

    tests/bench/placement_trace.py PROGRAMS MODEL [--rounds=3] [--requests=1000]
    tests/bench/placement_trace.py PROGRAMS MODEL --computing --workers=2 --requests=1000 --speed=0.9

PROGRAMS: a folder with tandem, its programs and replay_worker. MODEL: a GGUF file or a folder.

Without --computing the workers, as many for prefill as for decode, replay: a prompt takes what its tokens that are in
no cache take at --prefill_rate, one prompt after the other, and each worker keeps --cached_pages. Lengths are the
trace's over 16 (and so is the rate), so that the model's context holds them, and time goes --speed times as fast. With
it, workers that prefill and decode compute a small model on this machine's CPUs, and prompts are shortened; where more
workers than cores share a machine, what one does slows the others down.
"""

import argparse
import contextlib
import json
import pathlib
import re
import signal
import socket
import statistics
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


def end(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def commands_of(options: argparse.Namespace, policy: str, folder: pathlib.Path, router: int, metrics: int) -> list:
    """What starts a cluster."""
    pools = (f"[{{name: decode, role: decode, replicas: {options.workers}, kv_memory: 1 GiB,"
             f" page_tokens: {options.page_tokens}}}]") if options.computing else (
                 "[{name: prefill, role: prefill}, {name: decode, role: decode}]")
    topology = folder / "topology.yaml"
    topology.write_text(
        f"model: {{path: {options.model}, served_name: m}}\n"
        f"router: {{listen: '127.0.0.1:{router}', http_listen: '', metrics_listen: '127.0.0.1:{metrics}',"
        f" placement: {policy}, max_active_requests: 100000, conditional_prefill_tokens: 0}}\npools: {pools}\n")
    return [[options.programs / "tandem", "up", topology]] if options.computing else [
        [options.programs / "tandem-router", f"--topology={topology}", "--worker=router"],
        [options.programs / "replay_worker", f"127.0.0.1:{router}", options.model, f"--pairs={options.workers}",
         f"--prefill_rate={options.prefill_rate * options.speed * options.token_scale}", "--prefill_at_once=1",
         "--heartbeat=50ms", f"--cached_pages={options.cached_pages}", f"--page_tokens={options.page_tokens}"]]


def run(options: argparse.Namespace, policy: str, folder: pathlib.Path) -> tuple[float, float]:
    router, metrics = free_ports(2)
    with contextlib.ExitStack() as cluster:
        log = cluster.enter_context(open(folder / "log", "w"))
        for command in commands_of(options, policy, folder, router, metrics):
            process = subprocess.Popen(command, stdout=log, stderr=log)
            cluster.callback(end, process)
        tandem = [options.programs / "tandem", f"--router=127.0.0.1:{router}"]
        subprocess.run([*tandem, "status", "--wait"], check=True, stdout=subprocess.DEVNULL, timeout=120)
        report = folder / "report.json"
        subprocess.run([*tandem, "bench", "--arrivals=trace", f"--speed={options.speed}",
                        f"--trace={ROOT}/tests/golden/traces/mooncake_conversation.jsonl", f"--json={report}",
                        f"--requests={options.requests}", f"--token_scale={options.token_scale}", "--warm_up=0"],
                       check=True, stdout=subprocess.DEVNULL, timeout=1200)
        measured = json.loads(report.read_text())
        share = hit_share(urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics").read().decode())
    ttft = measured["ttft_ms"]
    scale = 1 if options.computing else options.speed  # Of the trace's own time.
    mean = ttft["mean"] * scale
    print(f"{policy:12} TTFT mean {mean:7.0f} p50 {ttft['p50'] * scale:7.0f} p99 {ttft['p99'] * scale:7.0f} ms, "
          f"{100 * share:.1f} % of prompt tokens cached, {measured['failed']} failed", flush=True)
    return mean, share


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("model", type=lambda text: pathlib.Path(text).resolve())
    parser.add_argument("--computing", action="store_true")
    parser.add_argument("--workers", type=int, default=8, help="of each kind")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--speed", type=float, default=8)
    parser.add_argument("--prefill_rate", type=float, default=8000, help="the trace's tokens a second, in its time")
    parser.add_argument("--cached_pages", type=int, default=2000)
    parser.add_argument("--token_scale", type=float, help="default: 1/16, and with --computing 1/64")
    parser.add_argument("--page_tokens", type=int,
                        help="default: 32, and with --computing 8; at most a block of the trace")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--policies", nargs="+", default=POLICIES, choices=POLICIES)
    options = parser.parse_args()
    options.token_scale = options.token_scale or (1 / 64 if options.computing else 1 / 16)
    options.page_tokens = options.page_tokens or (8 if options.computing else 32)
    results = {policy: [] for policy in options.policies}
    for _ in range(options.rounds):
        for policy in options.policies:
            with tempfile.TemporaryDirectory() as folder:
                results[policy].append(run(options, policy, pathlib.Path(folder)))
    for policy, runs in results.items():
        print(f"{policy:12} median of {len(runs)}: mean TTFT {statistics.median(mean for mean, _ in runs):.0f} ms, "
              f"{100 * statistics.median(share for _, share in runs):.1f} % cached")


if __name__ == "__main__":
    main()
