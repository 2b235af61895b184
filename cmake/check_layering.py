#!/usr/bin/env python3
"""Checks which folder includes which, and where headers of CUDA, UCX, OpenSSL, gRPC and generated ones may stand.

Usage: check_layering.py ROOT. Prints each forbidden include with file and line; exit code 1 if there is one.
"""

import pathlib
import re
import sys

# Folder -> folders that it may include besides itself. docs/architecture.md draws the same.
ALLOWED = {
    "common": set(),
    "model": {"common"},
    "engine": {"model", "common"},
    "kvtransfer": {"proto", "common"},
    "prefill": {"engine", "kvtransfer", "model", "proto", "common"},
    "decode": {"engine", "kvtransfer", "model", "proto", "common"},
    "router": {"model", "proto", "common"},
    "planner": {"router", "model", "common"},
    "client": {"proto", "common"},
    "deploy": {"client", "planner", "proto", "common"},
}

INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]')


def may_use_grpc(path: str) -> bool:
    return (path.startswith("common/rpc/") or path == "kvtransfer/wire.cc"
            or re.search(r"_(service|client|codec)\.(cc|h)$", path) is not None)


def problems_of(path: str, include: str) -> list[str]:
    found = []
    folder = path.split("/")[0]
    target = include.split("/")[0]
    is_proto = include.startswith("tandem/v1/")
    if is_proto or include.startswith("grpc"):
        if "proto" not in ALLOWED[folder] and not path.startswith("common/rpc/"):
            found.append(f"{folder} must not include generated headers")
        elif not may_use_grpc(path):
            found.append("gRPC and generated headers belong in *_service, *_client, *_codec, common/rpc and kvtransfer/wire.cc")
    elif target in ALLOWED and target != folder and target not in ALLOWED[folder]:
        found.append(f"{folder} must not include {target}")
    if re.match(r"(cuda|cublas|nccl)", include) and not path.startswith(("engine/cuda/", "kvtransfer/nvlink/")):
        found.append("CUDA headers belong under engine/cuda and kvtransfer/nvlink")
    if include.startswith(("ucp/", "uct/", "ucs/")) and not path.startswith("kvtransfer/ucx/"):
        found.append("UCX headers belong under kvtransfer/ucx")
    if include.startswith("openssl/") and not path.startswith("common/tls/"):
        found.append("OpenSSL headers belong under common/tls")
    return found


def find_cycle(edges: dict[str, set[str]]) -> list[str]:
    """A circle among the folders, or nothing."""
    state: dict[str, int] = {}

    def visit(node: str, trail: list[str]) -> list[str]:
        state[node] = 1
        for target in sorted(edges.get(node, ())):
            if state.get(target) == 1:
                return trail + [node, target]
            if target not in state:
                cycle = visit(target, trail + [node])
                if cycle:
                    return cycle
        state[node] = 2
        return []

    for folder in sorted(edges):
        if folder not in state:
            cycle = visit(folder, [])
            if cycle:
                return cycle
    return []


def main() -> int:
    root = pathlib.Path(sys.argv[1])
    count = 0
    files = 0
    edges: dict[str, set[str]] = {}
    for folder in ALLOWED:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix not in (".cc", ".h", ".cu", ".cuh"):
                continue
            files += 1
            name = path.relative_to(root).as_posix()
            is_test = name.endswith("_test.cc")
            for number, line in enumerate(path.read_text().splitlines(), 1):
                match = INCLUDE.match(line)
                if not match or is_test:
                    continue
                target = match.group(1).split("/")[0]
                if target in ALLOWED and target != folder:
                    edges.setdefault(folder, set()).add(target)
                for problem in problems_of(name, match.group(1)):
                    print(f"{name}:{number}: {match.group(1)}: {problem}")
                    count += 1
    cycle = find_cycle(edges)
    if cycle:
        print("the folders include each other in a circle: " + " -> ".join(cycle))
        count += 1
    if files == 0:
        print(f"no sources under {root}")
        return 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
