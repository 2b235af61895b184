#!/usr/bin/env python3
"""Writes a Hugging Face folder with random weights in the shape of a known model, for speed and for comparisons.

Usage: make_checkpoint.py llama-3.1-8b|qwen3-8b FOLDER [--layers N] [--tokenizer FILE] [--format float8|int8|int4|nvfp4]. The
tokenizer is a copy, which knows a few tokens of the vocabulary: enough for a router whose clients send token ids. With --format
the linear layers are rounded to it (FP8 in blocks of 128 x 128, INT8 by rows, INT4 by groups of 128, NVFP4), and FOLDER-FORMAT
has the same values as codes and scales. Needs PyTorch and safetensors; the weights are drawn on the GPU with a fixed seed.
Nothing is written where the folder is complete.
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors.torch import save_file

SHAPES = {
    "llama-3.1-8b": dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_size=4096, intermediate_size=14336,
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=128256,
        max_position_embeddings=131072, rope_theta=500000.0, rms_norm_eps=1e-5, tie_word_embeddings=False,
        rope_scaling=dict(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                          original_max_position_embeddings=8192, rope_type="llama3"),
        hidden_act="silu", attention_bias=False, mlp_bias=False, bos_token_id=128000, eos_token_id=128001,
        torch_dtype="bfloat16"),
    "qwen3-8b": dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3", hidden_size=4096, intermediate_size=12288,
        num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, head_dim=128, vocab_size=151936,
        max_position_embeddings=40960, rope_theta=1000000.0, rms_norm_eps=1e-6, tie_word_embeddings=False,
        rope_scaling=None, hidden_act="silu", attention_bias=False, use_sliding_window=False, sliding_window=None,
        max_window_layers=36, bos_token_id=151643, eos_token_id=151645, torch_dtype="bfloat16"),
}


BLOCK = 128


# Each rounds a weight: what is stored of it by the suffix of its name, and its values, which are bf16 to the last bit
# since scales are powers of two.
Rounded = tuple[dict[str, torch.Tensor], torch.Tensor]


def power_of_two(largest: torch.Tensor, of_codes: float) -> torch.Tensor:
    return torch.exp2(torch.ceil(torch.log2(largest / of_codes)))


def to_int8(weight: torch.Tensor) -> Rounded:
    values = weight.cuda().float()
    scales = power_of_two(values.abs().amax(dim=1, keepdim=True), 127)
    codes = (values / scales).round()
    return {".weight": codes.to(torch.int8).cpu(), ".weight_scale": scales.cpu()}, (codes * scales).to(torch.bfloat16).cpu()


def pack_nibbles(codes: torch.Tensor) -> torch.Tensor:
    """Two to a byte, the first one in the lower bits."""
    codes = codes.to(torch.uint8)
    return codes[:, 0::2] | codes[:, 1::2] << 4


def to_int4(weight: torch.Tensor) -> Rounded:
    rows, columns = weight.shape
    groups = weight.cuda().float().view(rows, columns // BLOCK, BLOCK)
    scales = power_of_two(groups.abs().amax(dim=2, keepdim=True), 7)
    codes = (groups / scales).round().clamp(-8, 7)
    packed = pack_nibbles((codes + 8).view(rows, columns)).view(torch.int32)
    return ({".weight_packed": packed.cpu(), ".weight_shape": torch.tensor([rows, columns]),
             ".weight_scale": scales.view(rows, -1).to(torch.bfloat16).cpu()},
            (codes * scales).view(rows, columns).to(torch.bfloat16).cpu())


def to_nvfp4(weight: torch.Tensor) -> Rounded:
    rows, columns = weight.shape
    groups = weight.cuda().float().view(rows, columns // 16, 16)
    factor = 2.0**-8
    scales = power_of_two(groups.abs().amax(dim=2, keepdim=True).clamp(min=1e-6), 6 * factor).clamp(2.0**-6, 2.0**8)
    numbers = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], device="cuda")
    scaled = groups / (scales * factor)
    codes = torch.bucketize(scaled.abs(), (numbers[1:] + numbers[:-1]) / 2)
    values = torch.where(scaled < 0, -numbers[codes], numbers[codes]) * scales * factor
    packed = pack_nibbles((codes + 8 * (scaled < 0)).view(rows, columns))
    return ({".weight": packed.cpu(), ".weight_scale": scales.view(rows, -1).to(torch.float8_e4m3fn).cpu(),
             ".weight_scale_2": torch.tensor([factor])}, values.view(rows, columns).to(torch.bfloat16).cpu())


def to_float8(weight: torch.Tensor) -> Rounded:
    rows, columns = weight.shape
    blocks = weight.cuda().float().view(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scales = power_of_two(blocks.abs().amax(dim=(1, 3)), 448)
    factors = scales[:, None, :, None]
    codes = (blocks / factors).to(torch.float8_e4m3fn)
    values = (codes.float() * factors).to(torch.bfloat16).view(rows, columns)
    return {".weight": codes.view(rows, columns).cpu(), ".weight_scale_inv": scales.cpu()}, values.cpu()


FORMATS = {"float8": (to_float8, "fp8"), "int8": (to_int8, "compressed-tensors"), "int4": (to_int4, "compressed-tensors"),
           "nvfp4": (to_nvfp4, "modelopt")}


def main() -> None:
    shape, folder = SHAPES[sys.argv[1]], pathlib.Path(sys.argv[2])
    if "--layers" in sys.argv:
        shape["num_hidden_layers"] = int(sys.argv[sys.argv.index("--layers") + 1])
    if (folder / "config.json").exists():
        return
    few = sys.argv[sys.argv.index("--format") + 1] if "--format" in sys.argv else None
    folders = [folder] + ([pathlib.Path(f"{folder}-{few}")] if few else [])
    for each in folders:
        each.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    hidden, inner, dim = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    q, kv = shape["num_attention_heads"] * dim, shape["num_key_value_heads"] * dim

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16) * columns**-0.5).cpu()

    def norm(size: int) -> torch.Tensor:
        return (1 + 0.1 * torch.randn(size, device="cuda")).to(torch.bfloat16).cpu()

    files: list[dict[str, str]] = [{} for _ in folders]

    def save(name: str, tensors: dict[str, torch.Tensor]) -> None:
        codes = dict(tensors)
        for tensor in [key for key in tensors if few and "_proj." in key]:
            stored, tensors[tensor] = FORMATS[few][0](codes.pop(tensor))
            codes |= {tensor.removesuffix(".weight") + suffix: part.contiguous() for suffix, part in stored.items()}
        for i, contents in enumerate([tensors, codes][: len(folders)]):
            save_file(contents, folders[i] / name)
            files[i].update({tensor: name for tensor in contents})

    save("model-head.safetensors", {
        "model.embed_tokens.weight": matrix(shape["vocab_size"], hidden) * 64,
        "model.norm.weight": norm(hidden),
        "lm_head.weight": matrix(shape["vocab_size"], hidden) * 4,
    })
    for i in range(shape["num_hidden_layers"]):
        at = f"model.layers.{i}."
        tensors = {
            at + "input_layernorm.weight": norm(hidden),
            at + "post_attention_layernorm.weight": norm(hidden),
            at + "self_attn.q_proj.weight": matrix(q, hidden),
            at + "self_attn.k_proj.weight": matrix(kv, hidden),
            at + "self_attn.v_proj.weight": matrix(kv, hidden),
            at + "self_attn.o_proj.weight": matrix(hidden, q),
            at + "mlp.gate_proj.weight": matrix(inner, hidden),
            at + "mlp.up_proj.weight": matrix(inner, hidden),
            at + "mlp.down_proj.weight": matrix(hidden, inner),
        }
        if shape["model_type"] == "qwen3":
            tensors[at + "self_attn.q_norm.weight"] = norm(dim)
            tensors[at + "self_attn.k_norm.weight"] = norm(dim)
        save(f"model-{i:02d}.safetensors", tensors)
    for i, each in enumerate(folders):
        (each / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files[i]}))
        if "--tokenizer" in sys.argv:
            shutil.copy(sys.argv[sys.argv.index("--tokenizer") + 1], each / "tokenizer.json")
        if i:
            shape["quantization_config"] = {"quant_method": FORMATS[few][1], "weight_block_size": [BLOCK, BLOCK]}
        (each / "config.json").write_text(json.dumps(shape, indent=1))


main()
