#!/usr/bin/env python3
"""Writes llama3_f32/tokenizer.json: two special tokens, all bytes, and 62 merges such as JSON and English have them."""

import json
import pathlib

MERGES = ["{ \"", "\" :", "\" ,", "\" }", "\" ]", "[ \"", "} ,", "Ġ {", "Ġ [", "Ġ \"", "\": Ġ", "\", Ġ", "} }", "] }",
          "t h", "h e", "i n", "e r", "a n", "r e", "o n", "a t", "e n", "n d", "t i", "e s", "o r", "t e", "o f", "e d",
          "i s", "i t", "a l", "a r", "s t", "t o", "n t", "Ġ t", "Ġ a", "Ġ s", "Ġ w", "Ġ o", "th e", "in g", "an d",
          "Ġt h", "Ġa n", "Ġo f", "Ġt o", "Ġth e", "t r", "tr u", "tru e", "n u", "nu l", "nul l", "1 0", "2 0", "0 0",
          "Ġ Ġ", "Ċ Ġ", "ĊĠ Ġ"]


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) if byte in printable else chr(256 + others.index(byte)) for byte in range(256)]


def main() -> None:
    specials = ["<bos>", "<eos>"]
    tokens = specials + byte_alphabet() + [merge.replace(" ", "") for merge in MERGES]
    assert len(tokens) == 320 == len(set(tokens))
    added = [{"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
              "special": True} for i, text in enumerate(specials)]
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {text: i for i, text in enumerate(tokens)}, "merges": MERGES}}
    target = pathlib.Path(__file__).parent / "llama3_f32" / "tokenizer.json"
    target.write_text(json.dumps(tokenizer, ensure_ascii=False, indent=0) + "\n")


if __name__ == "__main__":
    main()
