#!/usr/bin/env python3
"""Writes the seed corpus of the fuzz targets: one small valid input of each kind. Run from the repository's root."""

import json
import pathlib
import struct

SEEDS = pathlib.Path("tests/fuzz/seeds")


def text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def gguf() -> bytes:
    keys = [
        ("general.architecture", 8, text("llama")), ("llama.block_count", 4, struct.pack("<I", 1)),
        ("llama.embedding_length", 4, struct.pack("<I", 32)), ("llama.feed_forward_length", 4, struct.pack("<I", 32)),
        ("llama.attention.head_count", 4, struct.pack("<I", 2)), ("llama.context_length", 4, struct.pack("<I", 64)),
        ("llama.attention.layer_norm_rms_epsilon", 6, struct.pack("<f", 1e-5)),
        ("tokenizer.ggml.model", 8, text("gpt2")),
        ("tokenizer.ggml.tokens", 9, struct.pack("<IQ", 8, 3) + text("a") + text("b") + text("ab")),
        ("tokenizer.ggml.merges", 9, struct.pack("<IQ", 8, 1) + text("a b")),
        ("tokenizer.ggml.token_type", 9, struct.pack("<IQ3i", 5, 3, 1, 1, 1)),
    ]
    tensors = [("a", 0, 32 * 4), ("b", 2, 18), ("c", 8, 34), ("d", 14, 0)][:3]
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for name, kind, value in keys:
        out += text(name) + struct.pack("<I", kind) + value
    offset = 0
    for name, kind, size in tensors:
        out += text(name) + struct.pack("<IQIQ", 1, 32, kind, offset)
        offset += (size + 31) // 32 * 32
    out += b"\0" * (-len(out) % 32)
    return out + bytes(range(256))[:offset] + b"\0" * max(0, offset - 256)


def safetensors() -> bytes:
    header = json.dumps({"__metadata__": {"format": "pt"}, "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
                         "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(24)


def quantised() -> bytes:
    header = json.dumps({"a.weight": {"dtype": "F8_E4M3", "shape": [2, 4], "data_offsets": [0, 8]},
                         "a.weight_scale": {"dtype": "F32", "shape": [2, 1], "data_offsets": [8, 16]},
                         "b.weight": {"dtype": "U8", "shape": [1, 8], "data_offsets": [16, 24]},
                         "b.weight_scale": {"dtype": "F8_E4M3", "shape": [1, 1], "data_offsets": [24, 25]},
                         "b.weight_scale_2": {"dtype": "F32", "shape": [], "data_offsets": [25, 29]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(29)


def main() -> None:
    (SEEDS / "gguf/small").write_bytes(gguf())
    (SEEDS / "safetensors/small").write_bytes(safetensors())
    (SEEDS / "safetensors/quantised").write_bytes(quantised())
    tiny = pathlib.Path("tests/golden/tiny")
    for config in sorted(tiny.glob("*/config.json")):
        (SEEDS / "model_json" / config.parent.name).write_bytes(config.read_bytes())
    (SEEDS / "model_json/tokenizer").write_text(json.dumps(
        {"added_tokens": [{"id": 3, "content": "<e>", "special": True}],
         "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True},
                                                                 {"type": "ByteLevel", "use_regex": True}]},
         "normalizer": {"type": "NFC"}, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}))
    (SEEDS / "topology/long_path").write_text("model: {path: " + "x" * 300 + ", served_name: m}\n")
    (SEEDS / "topology/laptop").write_bytes(pathlib.Path("deploy/topologies/laptop.yaml").read_bytes())
    for case in json.loads(pathlib.Path("tests/golden/jinja/cases.json").read_text())[:40]:
        (SEEDS / "chat_template" / case["name"]).write_text(case["template"])
    # Wire forms of Hello, Offer, Grant, Commit, Abort: field number << 3 | 2, length, content.
    for name, field, body in [("hello", 1, b"\x08\x01\x12\x01p\x21" + bytes(8)), ("offer", 5, b"\x09" + struct.pack("<Q", 1) + b"\x12\x03\x01\x02\x03"),
                              ("grant", 6, b"\x09" + struct.pack("<Q", 1) + b"\x10\x05\x1a\x02\x00\x01"),
                              ("commit", 8, b"\x09" + struct.pack("<Q", 1) + b"\x10\x01\x18\x02"), ("abort", 10, b"\x09" + struct.pack("<Q", 1))]:
        (SEEDS / "link_message" / name).write_bytes(bytes([field << 3 | 2, len(body)]) + body)
    # GenerateRequest by its wire form, as above.
    sampling = (b"\x0d" + struct.pack("<f", 0.5) + b"\x10\x05\x1d" + struct.pack("<f", 0.9) + b"\x42\x07\x08\x01\x15"
                + struct.pack("<f", 2) + b"\x48\x01\x50\x05\x58\x01\x60\x01\x6a\x01\x02\x72\x01a\x78\x02")
    for name, prompt in [("text", b"\x1a\x03a b"), ("ids", b"\x22\x04\x0a\x02\x01\x02"),
                         ("chat", b"\x2a\x0b\x0a\x09\x0a\x04user\x12\x01a")]:
        (SEEDS / "generate_request" / name).write_bytes(
            b"\x0a\x01r\x12\x01m" + prompt + bytes([0x32, len(sampling)]) + sampling + b"\x38\x01\x40\x02\x52\x01s")
    (SEEDS / "http/get").write_bytes(b"GET /stream?x=y HTTP/1.1\r\nHost: t\r\n\r\nHEAD / HTTP/1.0\r\n\r\n")
    (SEEDS / "http/post").write_bytes(b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab")
    (SEEDS / "http/chunks").write_bytes(
        b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2;a=b\r\nab\r\n0\r\nT: x\r\n\r\n")
    (SEEDS / "openai_json/chat").write_text(json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}], "stream": True,
         "stream_options": {"include_usage": True}, "max_completion_tokens": 5, "stop": ["a"], "logit_bias": {"1": 2},
         "logprobs": True, "top_logprobs": 2, "temperature": 0.5, "seed": 1, "n": 2, "response_format": {"type": "text"}}))
    (SEEDS / "openai_json/tools").write_text(json.dumps(
        {"messages": [{"role": "assistant", "content": None, "reasoning_content": "r",
                       "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]},
                      {"role": "tool", "tool_call_id": "c", "content": "1"}],
         "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "auto",
         "chat_template_kwargs": {"enable_thinking": False}, "service_tier": "flex"}))
    call = '{"name": "f", "arguments": {"a": 1}}'
    (SEEDS / "openai_json/hermes_answer").write_text(f"<think>t</think>\n<tool_call>\n{call}\n</tool_call>")
    (SEEDS / "openai_json/llama_answer").write_text('{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}')
    (SEEDS / "openai_json/deepseek_answer").write_text(
        "t</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{}\n```<｜tool▁call▁end｜>"
        "<｜tool▁calls▁end｜>")
    (SEEDS / "openai_json/completion").write_text(json.dumps(
        {"prompt": ["a", [1, 2]], "max_tokens": 3, "top_k": -1, "logprobs": 1, "stop": "x", "stop_token_ids": [1],
         "tokens": [1, 2], "echo": False, "best_of": 1}))

    for name, kind, text in [("schema", 0, '{"type":"object","properties":{"a":{"enum":["x",1]},"b":{"$ref":"#/$defs/c"}},"required":["a"],"$defs":{"c":{"type":"string","pattern":"^a+$"}}}'),
                             ("thought_schema", 3, '{"type":"array","items":{"anyOf":[{"type":"integer","minimum":3},{"type":"null"}]},"maxItems":3}'),
                             ("regex", 1, "[a-c]{2,5}(x|y\\/z)?"), ("opened_regex", 7, "(?i)ok\n\\d+"),
                             ("grammar", 2, 'start: sum\nsum: N | sum "+" N\nN: /[0-9]+/\n%ignore / /\n')]:
        (SEEDS / "output_format" / name).write_bytes(bytes([kind]) + text.encode())


if __name__ == "__main__":
    main()
