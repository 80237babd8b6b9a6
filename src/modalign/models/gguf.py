"""GGUF files (llama.cpp's format) as folders that transformers reads.

transformers unpacks the weights. What it would pass over in silence is found here: a file cut short, values that
the class has no place for, weights that the file lacks, rotary factors that the configuration does not carry.
Each would make another model of it, so such a file is refused with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    modeling_gguf_pytorch_utils,
)
from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf import is_gguf_arch_supported

from modalign.errors import ModalignError, UsageError, extra, first_line
from modalign.files import check_room, new_folder
from modalign.models.quiet import quietly
from modalign.models.weights import first_difference

SUFFIX = ".gguf"
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
DTYPES = ("float32", "bfloat16", "float16")
ROTARY_FACTORS = "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Converted:
    """A GGUF file's model as a folder.

    Attributes:
        file: it was read from.
        folder: it was written to.
        architecture: the file's, as llama.cpp calls it.
        model: transformers' class.
        parameters: how many values; a tied embedding counts once.
        types: how the file stores its tensors: type -> number of tensors.
        dtype: the folder's.
        rounding: norm of what rounding to ``dtype`` changed, over that of the unpacked values; 0: nothing.
        chat_template: whether the file carries one.
    """

    file: Path
    folder: Path
    architecture: str
    model: str
    parameters: int
    types: dict[str, int]
    dtype: str
    rounding: float
    chat_template: bool

    def as_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self) | {"file": str(self.file), "folder": str(self.folder)}


@dataclass(frozen=True)
class _File:
    """An open file whose header was read and found usable."""

    path: Path
    reader: Any
    architecture: str

    @property
    def types(self) -> dict[str, int]:
        names = [tensor.tensor_type.name for tensor in self.reader.tensors]
        return {name: names.count(name) for name in sorted(set(names))}

    @property
    def values(self) -> int:
        """Count the values of all tensors."""
        return sum(int(tensor.n_elements) for tensor in self.reader.tensors)

    def value(self, key: str) -> Any:
        field = self.reader.get_field(key)
        return None if field is None else field.contents()


@quietly()
def convert_gguf(
    file: Path, folder: Path, dtype: str | None = None, progress: Progress | None = None
) -> Converted:
    """Write the model of a GGUF file as a transformers folder, and see that it loads with the same weights.

    Args:
        file: a GGUF file of one part.
        folder: new, or a model folder to replace.
        dtype: of the folder: float32, bfloat16, float16; None: the file's 16-bit type, else bfloat16
            for quantised weights and float32 for float32.
        progress: told (what, done, of).

    Raises:
        UsageError: the file cannot be read, or not as the model that it is.
        ModalignError: what was written does not load as the same weights.
    """
    if dtype not in (None, *DTYPES):
        raise UsageError(f"there is no dtype {dtype!r} for weights: {', '.join(DTYPES)}")
    told = progress or (lambda what, done, of: None)
    opened = _opened(file)
    wanted: torch.dtype = getattr(torch, dtype) if dtype else _dtype(opened)
    check_room(folder, opened.values * wanted.itemsize, "the model's folder takes")
    rounding = _rounding(opened, wanted, told)
    model, tokenizer = _read(opened, wanted, told)
    told("writing", 0, 1)
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(_card(opened, wanted, rounding), encoding="utf-8")
        told("loading what was written", 0, 1)
        again = AutoModelForCausalLM.from_pretrained(temporary, use_safetensors=True)
        changed = "the dtype" if again.dtype != wanted else first_difference(model, again)
        if changed:
            raise ModalignError(f"{file}: {changed} differs after loading what was written")
    return Converted(
        file,
        folder,
        opened.architecture,
        type(model).__name__,
        sum(parameter.numel() for parameter in model.parameters()),
        opened.types,
        str(wanted).removeprefix("torch."),
        rounding,
        tokenizer.chat_template is not None,
    )


def _opened(file: Path) -> _File:
    """Read a file's header and see that transformers can read the rest.

    Raises:
        UsageError: it cannot, and why.
    """
    if not file.is_file():
        raise UsageError(f"{file} cannot be read: there is no such file")
    try:
        import gguf
    except ImportError:
        raise UsageError(f"{file}: reading GGUF needs the package gguf: {extra('gguf')}") from None
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise UsageError(f"{file} is no GGUF file: it does not begin with the letters GGUF")
    try:
        reader = gguf.GGUFReader(file)
    except ValueError as error:
        if "GGMLQuantizationType" in str(error):
            raise UsageError(
                f"{file} holds tensors of a quantisation that the package gguf does not know ({error}): "
                "a newer one may"
            ) from error
        raise UsageError(_cut_short(file, error)) from error
    except Exception as error:  # the reader trusts lengths and offsets of the file
        raise UsageError(_cut_short(file, error)) from error
    found = _File(file, reader, "")
    architecture = found.value("general.architecture")
    parts = found.value("split.count") or 1
    if parts > 1:
        raise UsageError(
            f"{file} is one of {parts} parts of a model: join them first (llama-gguf-split --merge FIRST OUT)"
        )
    if architecture not in GGUF_CONFIG_MAPPING and not is_gguf_arch_supported(str(architecture)):
        known = ", ".join(sorted(GGUF_CONFIG_MAPPING))
        raise UsageError(
            f"{file} is a model of the architecture {architecture!r}, which transformers does not read from GGUF; "
            f"it reads {known}"
        )
    if reader.get_field("tokenizer.ggml.tokens") is None:
        raise UsageError(
            f"{file} holds no tokenizer (tokenizer.ggml.tokens): it is no language model by itself"
        )
    for tensor in {each.tensor_type: each for each in reader.tensors}.values():
        try:
            gguf.dequantize(tensor.data.reshape(-1, tensor.data.shape[-1])[:1], tensor.tensor_type)
        except NotImplementedError:
            raise UsageError(
                f"{file}: {tensor.name} is quantised as {tensor.tensor_type.name}, which cannot be unpacked; "
                "Q4_0 to Q8_0, the K-quants, F16, BF16 and F32 can"
            ) from None
    return _File(file, reader, architecture)


def _cut_short(file: Path, error: Exception) -> str:
    size = file.stat().st_size
    return (
        f"{file} is cut short or broken: its header speaks of more than its {size:,} bytes hold "
        f"({first_line(error)}); download it again"
    )


def _dtype(opened: _File) -> torch.dtype:
    """The dtype that says what the file says: its own 16 bits, and bfloat16's range for quantised weights."""
    types = set(opened.types)
    if not types <= set(FLOATS):
        return torch.bfloat16
    return next((FLOATS[each] for each in ("BF16", "F16") if each in types), torch.float32)


def _rounding(opened: _File, dtype: torch.dtype, told: Progress) -> float:
    """Relative error (Frobenius) of rounding every tensor's unpacked values to a dtype, one tensor at a time.

    Raises:
        UsageError: a value is beyond the dtype's range.
    """
    import gguf

    exact = {torch.float32: ("F32", "F16", "BF16"), dtype: ()}[dtype]
    changed = whole = 0.0
    for number, tensor in enumerate(opened.reader.tensors):
        told("measuring what rounding changes", number, len(opened.reader.tensors))
        if tensor.tensor_type.name in exact:
            continue
        values = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)).float()
        rounded = values.to(dtype).float()
        if not rounded.isfinite().all():
            raise UsageError(
                f"{opened.path}: {tensor.name} holds a value beyond the range of {dtype}; choose --dtype bfloat16"
            )
        changed += float((rounded - values).double().square().sum())
        whole += float(values.double().square().sum())
    return math.sqrt(changed / whole) if whole else 0.0


def _read(opened: _File, dtype: torch.dtype, told: Progress) -> tuple[PreTrainedModel, Any]:
    """The model and its tokenizer, as plain ones that can be saved."""
    place = {"pretrained_model_name_or_path": opened.path.parent, "gguf_file": opened.path.name}

    def told_each(tensors: Sequence[Any], **_: Any) -> Iterator[Any]:
        for number, tensor in enumerate(tensors):
            told("unpacking", number, len(tensors))
            yield tensor

    bar, modeling_gguf_pytorch_utils.tqdm = modeling_gguf_pytorch_utils.tqdm, told_each
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            **place, dtype=dtype, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(**place)
    except Exception as error:  # metadata of a file may make transformers raise anything
        raise UsageError(
            f"{opened.path} cannot be read as a {opened.architecture} model: {first_line(error)}"
        ) from error
    finally:
        modeling_gguf_pytorch_utils.tqdm = bar
    if missing := sorted(info["missing_keys"]):
        raise UsageError(
            f"{opened.path} lacks {missing[0]}{f' and {len(missing) - 1} more weights' if missing[1:] else ''} "
            f"of a {type(model).__name__}"
        )
    held = sum(int(t.n_elements) for t in opened.reader.tensors if t.name != ROTARY_FACTORS)
    own = {id(each) for each in model.parameters()}
    kept = [each for each in model.state_dict(keep_vars=True).values() if id(each) not in own]
    taken = sum(each.numel() for each in [*model.parameters(), *kept])
    if held != taken:
        raise UsageError(
            f"{opened.path} holds {held:,} values, and the {type(model).__name__} that transformers builds from "
            f"it has {taken:,}: it would be another model"
        )
    _set_rotary_scaling(opened, model.config)
    model.hf_quantizer = None  # it is unpacked, so it is an ordinary model
    del model.config.quantization_config
    return model, tokenizer


def _set_rotary_scaling(opened: _File, config: Any) -> None:
    """Carry over how positions are scaled, which transformers (5.24) does not read from a file.

    Raises:
        UsageError: in a way that its configuration cannot say.
    """
    parameters = config.rope_parameters if getattr(config, "rope_parameters", None) else None
    if parameters is None or parameters.get("rope_type", "default") != "default":
        return
    key = f"{opened.architecture}.rope.scaling"
    kind, factor = opened.value(f"{key}.type"), opened.value(f"{key}.factor")
    length = opened.value(f"{key}.original_context_length")
    factors = next((t for t in opened.reader.tensors if t.name == ROTARY_FACTORS), None)
    if factors is not None:
        parameters |= _llama3(
            opened.path, torch.from_numpy(factors.data.copy()).float(), parameters
        )
    elif kind == "linear" and factor:
        parameters |= {"rope_type": "linear", "factor": float(factor)}
    elif kind == "yarn" and factor and length:
        parameters |= {"rope_type": "yarn", "factor": float(factor)}
        parameters |= {"original_max_position_embeddings": int(length)}
    elif kind not in (None, "none"):
        raise UsageError(
            f"{opened.path} scales its rotary positions in the way {kind!r}, which cannot be carried over"
        )


def _llama3(file: Path, factors: Tensor, parameters: dict[str, Any]) -> dict[str, Any]:
    """Llama 3's scaling, from the factor of each frequency that llama.cpp stores instead."""
    factor = float(factors.max())
    if factor == 1.0:
        return {}
    theta, half = float(parameters["rope_theta"]), len(factors)
    waves = 2 * math.pi * theta ** (torch.arange(half, dtype=torch.float64) / half)
    low, high, length = LLAMA3.values()
    smooth = ((length / waves - low) / (high - low)).clamp(0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if not torch.allclose(factors.double(), expected, rtol=1e-4):
        raise UsageError(
            f"{file} scales its rotary positions by factors ({ROTARY_FACTORS}) that are not Llama 3's; "
            "they cannot be carried over"
        )
    return {"rope_type": "llama3", "factor": factor, **LLAMA3}


def _card(opened: _File, dtype: torch.dtype, rounding: float) -> str:
    """The folder's model card."""
    licence = opened.value("general.license")
    head = f"---\nlicense: {licence}\n---\n" if licence else ""
    stored = ", ".join(f"{name}: {count}" for name, count in opened.types.items())
    return (
        f"{head}# {opened.value('general.name') or opened.path.stem}\n\nConverted from `{opened.path.name}` "
        f"({opened.architecture}; tensors {stored}) by modalign to {str(dtype).removeprefix('torch.')}; "
        f"rounding changed the unpacked weights by {rounding:.1e} of their norm.\n"
    )
