"""Keep values found so far under a hash of everything they depend on; ``--resume`` reads them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from modalign.cache import in_use
from modalign.editing.engine.requests import Request
from modalign.editing.engine.spec import ModelSpec, Site
from modalign.editing.engine.values import Value, ValueSettings
from modalign.files import write_atomically
from modalign.hashing import tensor_hash

Hashes = dict[tuple[int, int], str]


def weights_hash(spec: ModelSpec, known: Hashes | None = None) -> str:
    """Hash the language part as it is now: every parameter, the configuration and the precision.

    Args:
        spec: the model.
        known: hashes of parameters by identity and version, both read and filled: a parameter that has not
            been written to since is not hashed again.
    """
    digest = hashlib.sha256(f"{spec.dtype} {config_text(spec)}".encode())
    for name, parameter in spec.language.named_parameters():
        digest.update(f"{name} {hash_of(parameter, known)}\n".encode())
    return digest.hexdigest()


def hash_of(parameter: Tensor, known: Hashes | None = None) -> str:
    """Hash a parameter, or take its hash from ``known`` if it has not been written to since."""
    if known is None:
        return tensor_hash(parameter)
    key = (id(parameter), parameter._version)
    if key not in known:
        known[key] = tensor_hash(parameter)
    return known[key]


def config_text(spec: ModelSpec) -> str:
    """Return the language part's configuration, without its origin."""
    values = spec.language.config.to_dict()
    values.pop("_name_or_path", None)
    return json.dumps(values, sort_keys=True, default=str)


@dataclass(frozen=True)
class ValueStore:
    """One small file per value.

    Attributes:
        folder: where all values are kept.
        sites: where the values' vectors are added.
        read: whether values already there are used; new ones are always written.
    """

    folder: Path
    sites: tuple[Site, ...]
    read: bool

    @classmethod
    def open(
        cls,
        cache: Path,
        weights: str,
        layer: int,
        sites: Sequence[Site],
        settings: ValueSettings,
        read: bool,
    ) -> ValueStore:
        """Open the store for values of these weights and settings."""
        what = [weights, layer, list(sites), asdict(settings)]
        basis = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        return cls(cache / "values" / basis[:2] / basis, tuple(sites), read)

    def get(self, request: Request) -> Value | None:
        """Return the value of an edit if it was found before."""
        if not self.read:
            return None
        try:
            with safe_open(self._file(request), framework="pt") as held:
                tensors: dict[str, Any] = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118
                meta = held.metadata()
        except (FileNotFoundError, SafetensorError):
            return None
        return Value(
            deltas={site: tensors[f"delta:{site}"] for site in self.sites},
            initial={site: tensors[f"initial:{site}"] for site in self.sites},
            steps=int(meta["steps"]),
            probability=float(meta["probability"]),
            kl=float(meta["kl"]),
        )

    def put(self, request: Request, value: Value) -> None:
        """Keep a value; if the process is killed, the file is either whole or absent."""
        self.folder.mkdir(parents=True, exist_ok=True)
        in_use(self.folder)
        tensors = {f"delta:{site}": t.contiguous() for site, t in value.deltas.items()}
        tensors |= {f"initial:{site}": t.contiguous() for site, t in value.initial.items()}
        meta = {
            "steps": str(value.steps),
            "probability": repr(value.probability),
            "kl": repr(value.kl),
        }
        write_atomically(self._file(request), save(tensors, metadata=meta))

    def _file(self, request: Request) -> Path:
        rows: list[Any] = [[list(row.ids), row.lookup] for row in request.prompts]
        rows += [tensor_hash(row.embeds) for row in request.prompts if row.embeds is not None]
        rows += [list(request.target), list(request.shares)]
        if request.kl is not None:
            rows.append([list(request.kl.ids), request.kl.lookup])
        name = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        return self.folder / f"{name}.safetensors"
