"""Export a model's code: flat copies of the modules it needs.

Each module of modalign (or of a third party's connector) that the model needs is copied under a
flat name, with absolute imports of other copied modules made relative. Everything else that a
copy imports must be the standard library, torch or transformers.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from modalign.connectors.base import Connector
from modalign.data.modalities import modality_of
from modalign.encoders.registry import encoder_module
from modalign.errors import ModalignError
from modalign.version import __version__

ALLOWED = {"torch", "transformers"}
CONFIGURATION = "modalign.models.configuration"
MODELING = "modalign.models.modeling"
MEDIA = "modalign.models.media"
PROCESSING = "modalign.models.processing"
REGISTRY = "modalign.connectors.registry"
ENCODERS = "modalign.encoders.registry"
ENCODER_BASE = "modalign.encoders.base"

AUTO_MAP = {
    "AutoConfig": "configuration_modalign.ModalignConfig",
    "AutoModel": "modeling_modalign.ModalignForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_modalign.ModalignForConditionalGeneration",
    "AutoModelForMultimodalLM": "modeling_modalign.ModalignForConditionalGeneration",
}
MEDIA_AUTO_MAP = {
    "AutoConfig": "configuration_modalign.ModalignMediaConfig",
    "AutoModel": "media_modalign.ModalignMedia",
}
PROCESSOR_AUTO_MAP = {"AutoProcessor": "processing_modalign.ModalignProcessor"}

_ENTRY_NAMES = {
    CONFIGURATION: "configuration_modalign",
    MODELING: "modeling_modalign",
    MEDIA: "media_modalign",
    PROCESSING: "processing_modalign",
}


class NotCopyableError(ModalignError):
    """Code that cannot be exported with the model; the message names the import."""


def flat_name(module: str) -> str:
    """Return the file name (without .py) of a module's copy."""
    if module in _ENTRY_NAMES:
        return _ENTRY_NAMES[module]
    return re.sub(r"\W", "_", module.removeprefix("modalign."))


def write_code(
    folder: Path,
    connectors: list[type[Connector]],
    modalities: Sequence[str] = ("image",),
    model: str = MODELING,
) -> list[str]:
    """Copy configuration, model, processor and all they need; return the file names.

    Args:
        folder: to write into.
        connectors: classes in use.
        modalities: modalities whose encoders are in use.
        model: module of the model, whole or without its language model.

    Raises:
        NotCopyableError: something needed imports more than the standard library, torch and
            transformers.
    """
    encoders = [modality_of(modality).encoder for modality in modalities]
    own = {"modalign"} | {cls.__module__.partition(".")[0] for cls in connectors}
    own |= {module.partition(".")[0] for module in encoders}
    made = {
        flat_name(REGISTRY): _registry_shim(connectors),
        flat_name(ENCODERS): _encoders_shim(modalities),
    }
    needed = [CONFIGURATION, model, PROCESSING, ENCODER_BASE, *encoders]
    needed += [cls.__module__ for cls in connectors]
    return _write(folder, _with_copies(made, needed, own), flat_name(CONFIGURATION))


def write_processor(folder: Path, processor: type, modalities: Sequence[str]) -> str:
    """Copy one of modalign's processors and all it needs, without a model.

    Args:
        folder: to write into.
        processor: its class.
        modalities: modalities whose signals it prepares; images have their own processor.

    Returns:
        The name of the class in ``auto_map``.
    """
    made = {flat_name(ENCODERS): _encoders_shim(modalities, builders=False)}
    encoders = [modality_of(modality).encoder for modality in modalities]
    own = {"modalign", *(module.partition(".")[0] for module in encoders)}
    entry = flat_name(processor.__module__)
    _write(folder, _with_copies(made, [processor.__module__, *encoders], own), entry)
    return f"{entry}.{processor.__name__}"


def _with_copies(made: dict[str, str], needed: Iterable[str], own: set[str]) -> dict[str, str]:
    """Return files by flat name: generated ones, and copies of modules and all they import."""
    files, waiting = dict(made), list(needed)
    done = {REGISTRY, ENCODERS}
    while waiting:
        module = waiting.pop()
        if module in done:
            continue
        done.add(module)
        text, further = _flattened(module, own)
        if flat_name(module) in files:
            raise NotCopyableError(f"two modules would both be copied as {flat_name(module)}.py")
        files[flat_name(module)] = text
        waiting += further
    return files


def _write(folder: Path, files: dict[str, str], entry: str) -> list[str]:
    """Write files by their flat name; return the file names.

    transformers takes two folders with the same name for the same model if the file that it loads is equal, and
    would run the first one's code for the second; so that file contains a hash of all of them.
    """
    together = hashlib.sha256("".join(files[name] for name in sorted(files)).encode()).hexdigest()
    files[entry] += f"\n# SHA-256 of this model's files together: {together}\n"
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    return sorted(f"{name}.py" for name in files)


def _source(module: str) -> tuple[str, str]:
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    origin = spec.origin if spec is not None else None
    if spec is None or origin is None or not origin.endswith(".py"):
        raise NotCopyableError(
            f"the model needs the module {module!r}, which has no source file that could be exported "
            "with it; put the class into an importable .py file"
        )
    if spec.submodule_search_locations is not None:
        raise NotCopyableError(
            f"the model needs the package {module!r}; import from its modules instead"
        )
    return origin, Path(origin).read_text(encoding="utf-8")


def _flattened(module: str, own: set[str]) -> tuple[str, list[str]]:
    """Return the module's text with relative imports, and the imported modules."""
    origin, text = _source(module)
    lines = text.splitlines(keepends=True)
    needed = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                _check(alias.name, own, origin, node.lineno, plain=True)
        elif isinstance(node, ast.ImportFrom):
            target = _absolute(node, module)
            if not _check(target, own, origin, node.lineno, plain=False):
                continue
            needed.append(target)
            at = node.lineno - 1
            line, count = re.subn(
                r"from\s+\S+\s+import", f"from .{flat_name(target)} import", lines[at], count=1
            )
            if count != 1:
                raise NotCopyableError(
                    f"{origin}:{node.lineno}: write 'from {target} import ...' on one line"
                )
            lines[at] = line
    header = f"# A copy of {module} (modalign {__version__}); only its imports differ.\n"
    return header + "".join(lines), needed


def _absolute(node: ast.ImportFrom, module: str) -> str:
    if node.level == 0:
        return node.module or ""
    package = module.split(".")[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def _check(target: str, own: set[str], origin: str, line: int, *, plain: bool) -> bool:
    """Whether an import refers to a module that must be copied too."""
    top = target.partition(".")[0]
    if top in own:
        if plain:
            raise NotCopyableError(
                f"{origin}:{line}: 'import {target}' cannot be made relative; "
                f"write 'from {target} import ...'"
            )
        return True
    if top not in ALLOWED and top not in sys.stdlib_module_names:
        raise NotCopyableError(
            f"{origin}:{line} imports {target!r}; code exported with a model may import only "
            "the standard library, torch and transformers"
        )
    return False


def _registry_shim(connectors: list[type[Connector]]) -> str:
    lines = ['"""The connectors of this model."""', ""]
    lines += [f"from .{flat_name(cls.__module__)} import {cls.__name__}" for cls in connectors]
    entries = ", ".join(f'"{cls.name}": {cls.__name__}' for cls in connectors)
    lines += [
        "",
        f"_KNOWN = {{{entries}}}",
        "",
        "",
        "def connector_class(name):",
        '    """Return the connector called exactly ``name``."""',
        "    return _KNOWN[name]",
        "",
    ]
    return "\n".join(lines)


def _encoders_shim(modalities: Sequence[str], *, builders: bool = True) -> str:
    """Write a registry file: transformers copies only files named in ``from .file import name``."""
    # Images have a Hugging Face processor instead.
    readers = [m for m in modalities if hasattr(encoder_module(m), "prepare")]
    lines = ['"""The encoders of this model."""', ""]
    if builders:
        lines += _table("build", modalities)
        lines += [
            "def build_encoder(modality, spec):",
            '    """Build an encoder from its description."""',
            "    return _BUILD[modality](spec)",
            "",
            "",
        ]
    lines += _table("prepare", readers)
    lines += [
        "def prepare_signals(modality, spec, signals):",
        '    """Decoded signals as tensors."""',
        "    return _PREPARE[modality](spec, signals)",
        "",
    ]
    return "\n".join(lines)


def _table(function: str, modalities: Sequence[str]) -> list[str]:
    """Return lines that import a function from every modality's file into a table by modality."""
    lines = [
        f"from .{flat_name(modality_of(m).encoder)} import {function} as {function}_{m}"
        for m in modalities
    ]
    entries = ", ".join(f'"{m}": {function}_{m}' for m in modalities)
    return [*lines, "", f"_{function.upper()} = {{{entries}}}", "", ""]
