"""A model folder's safetensors files: read tensor by tensor, written so that nothing else changes."""

from __future__ import annotations

import os
import secrets
import shutil
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from modalign.errors import DataError, ModalignError, UsageError
from modalign.hashing import tensor_hash
from modalign.strict_json import loads

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PART = ".part"  # ending of files that are not in place yet
_PATCHABLE = {"F64", "F32", "F16", "BF16"}


@dataclass(frozen=True)
class Place:
    """Where a tensor is: file, byte range, shape and type; and whether patches can change it."""

    file: str
    begin: int
    end: int
    shape: tuple[int, ...]
    patchable: bool
    dtype: str  # as safetensors calls it: F32, BF16, ...


def read_from(folder: Path) -> Path:
    """Return a model's folder; for a GGUF file or a hub name, the folder that it is read from.

    Raises:
        UsageError: there is none.
    """
    if folder.is_dir() and not any(folder.glob("*.gguf")):
        return folder
    from modalign.models.local import (
        model_folder,
    )  # imported here, as reading weights alone needs no transformers

    return model_folder(folder)


class FolderWeights:
    """All tensors of a model folder by their names in its files.

    Attributes:
        everything: name -> place.
        places: of the tensors that a patch can change, which excludes integer ones.

    Raises:
        UsageError: the folder holds no safetensors weights.
        DataError: a file is missing or broken.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder = read_from(folder)
        self.files = _files(folder)
        self.everything = {n: p for file in self.files for n, p in _places(folder, file).items()}
        self.places = {name: place for name, place in self.everything.items() if place.patchable}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor that a patch can change."""
        return {name: place.shape for name, place in self.places.items()}

    def read(self, name: str) -> Tensor:
        """Read a tensor as it is stored."""
        with opened(self.folder / self.everything[name].file) as file:
            found: Tensor = file.get_tensor(name)
        return found

    def files_of(self, names: Iterable[str]) -> set[str]:
        """The files that hold these tensors."""
        return {self.places[name].file for name in names}

    @contextmanager
    def rewritten(
        self, names: Sequence[str], value: Callable[[str], Tensor], into: Path
    ) -> Iterator[tuple[dict[Path, Path], dict[str, str]]]:
        """Write changed copies of the files that hold some tensors, for the caller to put in place.

        Args:
            names: the tensors to change.
            value: gives a tensor's new value, with its type and shape.
            into: the folder that the files are for; may be this one.

        Yields:
            File written -> the place it is for, and the hash of every new tensor. Files that
            are not in place when the block ends are deleted.
        """
        ready: dict[Path, Path] = {}
        hashes: dict[str, str] = {}
        try:
            for file in sorted(self.files_of(names)):
                part = into / f".{file}.{secrets.token_hex(4)}{PART}"
                ready[part] = into / file
                shutil.copyfile(self.folder / file, part)
                with part.open("r+b") as out:
                    for name in names:
                        if self.places[name].file == file:
                            new = value(name)
                            self._put(out, name, new)
                            hashes[name] = tensor_hash(new)
                    out.flush()
                    os.fsync(out.fileno())
            yield ready, hashes
        finally:
            for part in ready:
                if part.exists():
                    part.unlink()

    def _put(self, out: BinaryIO, name: str, value: Tensor) -> None:
        place = self.places[name]
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        if len(content) != place.end - place.begin:
            raise ModalignError(f"{name} has {len(content)} bytes, not {place.end - place.begin}")
        out.seek(place.begin)
        out.write(content)


@contextmanager
def opened(path: Path) -> Iterator[safe_open]:
    """Open a safetensors file; errors while it is read become a ``DataError``."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}; restore the file") from error


def _files(folder: Path) -> list[str]:
    if (folder / ONE_FILE).is_file():
        return [ONE_FILE]
    index = folder / INDEX
    if not index.is_file():
        raise UsageError(
            f"{folder} holds no safetensors weights (neither {ONE_FILE} nor {INDEX}); "
            "save the model with save_pretrained first"
        )
    try:
        files = set(loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise DataError(f"{index} is not an index of weights: {error}") from error
    strange = [file for file in files if Path(file).name != file]
    if strange:
        raise DataError(f"{index} names a file outside its folder: {strange[0]}")
    return sorted(files)


def _places(folder: Path, file: str) -> dict[str, Place]:
    """Read from a file's header where its tensors are."""
    path = folder / file
    try:
        with path.open("rb") as content:
            (length,) = struct.unpack("<Q", content.read(8))
            size = path.stat().st_size
            if length > size:
                raise ValueError("it is truncated")
            header = loads(content.read(length))
            found = {}
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                begin, end = (8 + length + each for each in entry["data_offsets"])
                if end > size:
                    raise ValueError("it is truncated")
                dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
                found[name] = Place(file, begin, end, shape, dtype in _PATCHABLE, dtype)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise DataError(f"the weights {path} cannot be read: {error}") from error
    return found
