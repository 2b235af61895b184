#!/usr/bin/env python3
"""Records what the `gguf` library makes of random blocks of each quantised type, for model/tensor_cases_test.cc.

    make_cases.py               writes cases.json
    make_cases.py --check       exit code 1 unless cases.json holds what the library makes of its blocks today

A case is a row of blocks, as hex, and its values as hex of little-endian f32.
"""

import json
import pathlib
import sys

import numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

PATH = pathlib.Path(__file__).parent / "cases.json"
ROW_ELEMENTS = 512
# Where a block of the type holds f16 scales; all other bytes may be anything.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def random_blocks(name, random):
    elements, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    blocks = random.integers(0, 256, (ROW_ELEMENTS // elements, block_bytes), dtype=numpy.uint8)
    for at in HALVES[name]:
        scales = random.uniform(-0.1, 0.1, len(blocks)).astype(numpy.float16)
        blocks[:, at:at + 2] = scales.view(numpy.uint8).reshape(-1, 2)
    return blocks.reshape(-1)


def values_of(name, blocks):
    return dequantize(blocks, GGMLQuantizationType[name]).astype("<f4").tobytes().hex()


def main():
    if sys.argv[1:] == ["--check"]:
        stored = json.loads(PATH.read_text())
        wrong = [name for name in HALVES
                 if values_of(name, numpy.frombuffer(bytes.fromhex(stored[name]["blocks"]), numpy.uint8)) != stored[name]["values"]]
        print("wrong: " + ", ".join(wrong) if wrong else f"{len(stored)} types' cases are current")
        sys.exit(1 if wrong else 0)
    random = numpy.random.default_rng(1)
    cases = {}
    for name in HALVES:
        blocks = random_blocks(name, random)
        cases[name] = {"blocks": blocks.tobytes().hex(), "values": values_of(name, blocks)}
    PATH.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
