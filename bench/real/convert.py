"""Convert weights in other formats to Hugging Face folders."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    BitImageProcessor,
    Dinov2Config,
    Dinov2Model,
    GenerationConfig,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from modalign.models.gguf import convert_gguf

# ---------------------------------------------------------------- GGUF


def from_gguf(file: Path, folder: Path) -> None:
    """Convert a causal LM and its tokenizer as ``modalign import`` does, in float32."""
    convert_gguf(file, folder, "float32")


# ---------------------------------------------------------------- ONNX

DINO_POSITIONS = (
    "onnx::Concat_1957",
    "onnx::Reshape_1962",
)  # of the class token and of the patches
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def dino_from_onnx(file: Path, folder: Path) -> None:
    """Convert DINOv2 small, a saliency model's backbone: initialisers by name, matrices by their node."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(file)).graph
    held = {each.name: each for each in graph.initializer}

    def tensor(name: str) -> Tensor:
        return torch.from_numpy(np.array(numpy_helper.to_array(held[name]), dtype=np.float32))

    state = {
        name.removeprefix("backbone."): tensor(name)
        for name in held
        if name.startswith("backbone.")
    }
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in held:
            name = node.name.strip("/").removeprefix("backbone/").removesuffix("/MatMul")
            state[f"{name.replace('/', '.')}.weight"] = tensor(node.input[1]).T.contiguous()
    positions = torch.cat([tensor(name) for name in DINO_POSITIONS], dim=1)
    state["embeddings.position_embeddings"] = positions
    state["embeddings.mask_token"] = torch.zeros(1, 384)
    _save_state(Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518), state, folder)
    model, told = Dinov2Model.from_pretrained(folder, output_loading_info=True)
    _complete(told)
    model.save_pretrained(folder)
    size = {"height": 224, "width": 224}
    BitImageProcessor(
        size={"shortest_edge": 224}, crop_size=size, image_mean=MEAN, image_std=DEVIATION
    ).save_pretrained(folder)


def dino_error(file: Path, folder: Path) -> float:
    """Return the largest difference of the last states from the ONNX graph's, on one random picture."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    onnx_model = onnx.load(str(file))
    last = "/backbone/layernorm/Add_1_output_0"
    onnx_model.graph.output.append(onnx.ValueInfoProto(name=last))
    # The stored positions are for 37 x 37 patches; at that size neither side resamples them.
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    wanted = ReferenceEvaluator(onnx_model).run([last], {"input_image": pixels.numpy()})[0]
    with torch.no_grad():
        found = Dinov2Model.from_pretrained(folder).eval()(pixel_values=pixels).last_hidden_state
    return float((found - torch.from_numpy(np.asarray(wanted))).abs().max())


# ---------------------------------------------------------------- CTranslate2

DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
QKV = ("q_proj", "k_proj", "v_proj")
PARTS = {  # of a layer, with the parts of its fused matrices
    "self_attention/layer_norm": ("self_attn_layer_norm", ()),
    "self_attention/linear_0": ("self_attn", QKV),
    "self_attention/linear_1": ("self_attn", ("out_proj",)),
    "attention/layer_norm": ("encoder_attn_layer_norm", ()),
    "attention/linear_0": ("encoder_attn", QKV[:1]),
    "attention/linear_1": ("encoder_attn", QKV[1:]),
    "attention/linear_2": ("encoder_attn", ("out_proj",)),
    "ffn/layer_norm": ("final_layer_norm", ()),
    "ffn/linear_0": ("fc1", ()),
    "ffn/linear_1": ("fc2", ()),
}
ENGLISH = 51_864  # tokens of Whisper's English models; the others have more
ENDS = {"gamma": "weight", "beta": "bias", "encodings": "weight"}


def whisper_from_ctranslate2(file: Path, folder: Path) -> None:
    """Convert Whisper: the file's names, shapes and types to those of transformers' class."""
    held = dict(_read_ctranslate2(file))
    state: dict[str, Tensor] = {}
    for name, value in held.items():
        if value.ndim and not name.endswith("_scale") and "align" not in name:
            scale = held.get(f"{name}_scale")
            array = value.astype(np.float32)
            state |= _whisper_names(name, array / scale[:, None] if scale is not None else array)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(file.parent / "tokenizer.json"))
    special = _special(tokenizer)
    _save_state(_whisper_config(held, state, special), state, folder)
    model, loading = WhisperForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True
    )
    _complete(loading)
    told = json.loads((file.parent / "config.json").read_text())
    model.generation_config = GenerationConfig(
        max_length=448,
        no_timestamps_token_id=int(tokenizer.convert_tokens_to_ids("<|notimestamps|>")),
        suppress_tokens=told["suppress_ids"],
        begin_suppress_tokens=told["suppress_ids_begin"],
        is_multilingual=model.config.vocab_size > ENGLISH,
        return_timestamps=False,
        **special,
    )
    model.save_pretrained(folder)
    ends = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), "<|endoftext|>")
    whole = WhisperTokenizer(tokenizer_object=tokenizer.backend_tokenizer, **ends)
    WhisperProcessor(WhisperFeatureExtractor(), whole).save_pretrained(folder)


def _special(tokenizer: Any) -> dict[str, int]:
    end = int(tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    start = int(tokenizer.convert_tokens_to_ids("<|startoftranscript|>"))
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end)
    return {**ends, "decoder_start_token_id": start}


def _whisper_config(
    held: dict[str, Any], state: dict[str, Tensor], special: dict[str, int]
) -> WhisperConfig:
    """Read the sizes from the variables."""
    width = state["model.encoder.layer_norm.weight"].shape[0]
    sizes = {}
    for side in ("encoder", "decoder"):
        numbers = [int(n.split(".")[3]) for n in state if n.startswith(f"model.{side}.layers")]
        sizes[f"{side}_layers"] = 1 + max(numbers)
        sizes[f"{side}_attention_heads"] = int(held[f"{side}/num_heads"])
        sizes[f"{side}_ffn_dim"] = 4 * width
    vocabulary = held["decoder/embeddings/weight"].shape[0]
    return WhisperConfig(vocab_size=vocabulary, d_model=width, **sizes, **special)


def _read_ctranslate2(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield (name, array) of every variable (format 6: names end in a zero byte)."""
    with file.open("rb") as held:
        _number(held, "<I")
        _name(held)
        _number(held, "<I")
        for _ in range(_number(held, "<I")):
            name = _name(held)
            shape = [_number(held, "<I") for _ in range(_number(held, "<B"))]
            dtype = DTYPES[_number(held, "<B")]
            data = held.read(_number(held, "<I"))
            yield name, np.frombuffer(data, dtype=dtype).reshape(shape)


def _number(held: BinaryIO, form: str) -> int:
    return int(struct.unpack(form, held.read(struct.calcsize(form)))[0])


def _name(held: BinaryIO) -> str:
    return held.read(_number(held, "<H"))[:-1].decode()


def _whisper_names(name: str, value: Any) -> dict[str, Tensor]:
    """Return one variable under transformers' names, with fused matrices split."""
    side, rest = name.split("/", 1)
    path, end = rest.rsplit("/", 1)
    end = ENDS.get(end, end)
    simple = {"embeddings": "embed_tokens", "position_encodings": "embed_positions"}
    if not path.startswith("layer_") or path == "layer_norm":
        return {f"model.{side}.{simple.get(path, path)}.{end}": torch.tensor(value)}
    number, part = path.removeprefix("layer_").split("/", 1)
    place, fused = PARTS[part]
    where = f"model.{side}.layers.{number}.{place}"
    if not fused:
        return {f"{where}.{end}": torch.tensor(value)}
    pieces = zip(fused, np.split(value, len(fused)), strict=True)
    return {
        f"{where}.{each}.{end}": torch.tensor(piece)
        for each, piece in pieces
        if (each, end) != ("k_proj", "bias")  # Whisper's keys have none
    }


def _save_state(config: Any, state: dict[str, Tensor], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file(
        {k: v.contiguous() for k, v in state.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def _complete(told: dict[str, Any]) -> None:
    missing = [name for name in told["missing_keys"] if not name.startswith("proj_out")]
    if missing or told["unexpected_keys"]:
        raise ValueError(
            f"missing {sorted(missing)[:5]}, not expected {sorted(told['unexpected_keys'])[:5]}"
        )
