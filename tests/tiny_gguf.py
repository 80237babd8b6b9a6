"""A GGUF file of a tiny Llama, written by llama.cpp's own package as its conversion script writes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

NORMAL, CONTROL = 1, 3  # token types of llama.cpp
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order of rotary pairs (``LlamaModel.permute`` of convert_hf_to_gguf.py)."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        .swapaxes(1, 2)
        .reshape(weight.shape)
    )


def write_gguf(
    folder: Path,
    file: Path,
    matrices: str = "F32",
    *,
    architecture: str = "llama",
    without: tuple[str, ...] = (),
    extra: dict[str, np.ndarray] | None = None,
    template: bool = True,
    parts: int | None = None,
) -> Path:
    """Write a Llama's folder as a GGUF file.

    Args:
        folder: of an untied or tied LlamaForCausalLM with a byte-level BPE tokenizer.
        file: to write.
        matrices: F32, F16, BF16 or Q8_0, for tensors of two dimensions; vectors are F32.
        architecture: written in the header.
        without: names of tensors that are left out.
        extra: further tensors.
        template: whether the chat template is written.
        parts: the number of files that the header claims.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(folder).float()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    config = model.config
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)
    if parts:
        writer.add_uint16("split.count", parts)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    ids = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = {each["content"] for each in backend["added_tokens"] if each["special"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([token for token, _ in ids])
    writer.add_token_types([CONTROL if token in special else NORMAL for token, _ in ids])
    writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if template:
        writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        ours = named(name)
        if ours in without or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        values = tensor.numpy()
        if ours.endswith(("attn_q.weight", "attn_k.weight")):
            heads = config.num_attention_heads if "attn_q" in ours else config.num_key_value_heads
            values = interleaved(values, heads)
        _add(writer, ours, values, matrices if values.ndim == 2 else "F32")
    for name, values in (extra or {}).items():
        _add(writer, name, values, "F32")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def named(name: str) -> str:
    """A parameter's name in a GGUF file."""
    stem, _, end = name.rpartition(".")
    place = ""
    if stem.startswith("model.layers."):
        number, _, stem = stem.removeprefix("model.layers.").partition(".")
        place = f"blk.{number}."
    return f"{place}{NAMES[stem]}.{end}"


def _add(writer: gguf.GGUFWriter, name: str, values: np.ndarray, kind: str) -> None:
    if kind == "F32":
        writer.add_tensor(name, values.astype(np.float32))
    elif kind == "F16":
        writer.add_tensor(name, values.astype(np.float16))
    else:
        form = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quantize(values.astype(np.float32), form), raw_dtype=form)
