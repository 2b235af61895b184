#!/usr/bin/env python3
"""As router_load, with the clients of another gRPC: grpcio is what most users have, and other than Debian's gRPC 1.51,
which router_load is built with, it does not answer every small message with a window update.

    pip install grpcio==1.85.3 grpcio-tools==1.85.1 in a venv; then
    VENV/bin/python tests/bench/router_clients.py ROUTER ROUTER_PID STREAMS CONNECTIONS REQUESTS TOKENS
"""

import os
import pathlib
import sys
import threading
import time

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "proto"))
messages = grpc.protos("tandem/v1/router.proto")


def cpu_seconds(pid):
    """User and system time of a process."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_stream(channel, requests, tokens, counts, stream):
    """Closed loop; messages are kept as bytes and read after the last, so that the client keeps pace."""
    request = messages.GenerateRequest(token_ids=messages.TokenIds(ids=[504] * 230))  # About 1 KB of English text.
    request.sampling.max_tokens = tokens
    request.sampling.ignore_eos = True
    generate = channel.unary_stream("/tandem.v1.Router/Generate", request_serializer=lambda r: r.SerializeToString())
    parts = []
    for _ in range(requests):
        parts.extend(generate(request))
    counts[stream] = sum(len(messages.GenerateResponse.FromString(part).tokens) for part in parts)


def main():
    router, pid = sys.argv[1:3]
    streams, connections, requests, tokens = map(int, sys.argv[3:])
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.insecure_channel(router, options) for _ in range(connections)]
    for channel in channels:
        grpc.channel_ready_future(channel).result()
    counts = [0] * streams
    threads = [
        threading.Thread(target=run_stream, args=(channels[i % connections], requests // streams, tokens, counts, i))
        for i in range(streams)
    ]
    cpu, begin = cpu_seconds(pid), time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    cpu, seconds, got = cpu_seconds(pid) - cpu, time.monotonic() - begin, sum(counts)
    expected = requests // streams * streams * tokens
    print(f"{requests} requests of {tokens} tokens, {streams} streams on {connections} connections: "
          f"{cpu * 1e6 / got:.2f} us a token, {got / seconds:.0f} tokens/s, {expected - got} tokens missing")
    return 0 if got == expected else 1


if __name__ == "__main__":
    sys.exit(main())
