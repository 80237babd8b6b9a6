"""``modalign distill store``: run a teacher over the data once, and keep its most likely words on disk.

Each shard holds a fixed stretch of the records and appears by one rename, so a run that was killed goes on with
the first shard that is missing. The header is written last: a store without it is not finished.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from modalign.compression.distillation.judging import LOOKED_AT, looking
from modalign.data.supervision import Sample
from modalign.devices import device_named
from modalign.errors import UsageError
from modalign.files import write_atomically
from modalign.hashing import tensor_hash
from modalign.models.collation import Collator
from modalign.models.modeling import ModalignForConditionalGeneration
from modalign.models.parts import embedding
from modalign.models.quiet import quietly
from modalign.models.saved import OpenedModel, open_composed
from modalign.progress import Progress
from modalign.runs import run_folder
from modalign.training.outputs import TrainBatch, prefix_places, read
from modalign.training.references import check_vocabulary
from modalign.training.stored import HEADER, NEEDS, Place, StoreHeader, sample_keys
from modalign.training.tuning import read_samples

SHARD = 256  # records
BATCH = 8


@dataclass(frozen=True)
class StoreRequest:
    """What to store.

    Attributes:
        teacher: model folder.
        data: records or plain text, as ``distill`` reads them.
        out: folder of the store.
        top: k, words per position.
        at: positions: answers, media or both.
        temperature: of the log-probabilities.
        length: tokens of a window of plain text.
        device: where to compute.
    """

    teacher: str
    data: str
    out: Path
    top: int = 64
    at: tuple[Place, ...] = ("answers",)
    temperature: float = 1.0
    length: int = 256
    device: str = "auto"


@dataclass(frozen=True)
class Stored:
    """A finished store: its header, and what it takes on disk.

    Attributes:
        header: what it is of.
        bytes: of its shards.
        positions: stored.
    """

    header: StoreHeader
    bytes: int
    positions: int

    def summary(self) -> dict[str, Any]:
        """Return it as JSON."""
        rows = 1000 * self.bytes / max(self.header.records, 1)
        own = {"bytes": self.bytes, "positions": self.positions, "bytes_per_1000_records": rows}
        return own | self.header.model_dump(exclude={"moved"})


@quietly()
def store(
    request: StoreRequest,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Stored:
    """Store a teacher's predictions for a file.

    Raises:
        UsageError: the folder holds a store of another teacher or other data, or cannot be written; the
            teacher has no such positions.
        DataError: data that cannot be used.
    """
    if request.top < 1 or request.temperature <= 0 or not set(request.at) <= set(NEEDS):
        raise UsageError(
            "--top must be 1 or more, --temperature above 0, --at answers, media or both"
        )
    opened = open_composed(request.teacher, "the teacher")
    shared = check_vocabulary("teacher", request.teacher, opened.tokenizer)
    samples = read_samples(Path(request.data), opened, length=request.length, progress=progress)
    keys = sample_keys(samples, opened.tokenizer)
    header = _header(request, opened, samples, keys, shared)
    bound = header.model_dump(exclude={"moved", "teacher"})
    with run_folder(request.out, bound, resume=resume, overwrite=overwrite) as folder:
        folder.begin()
        opened.tokenizer.save_pretrained(request.out)
        device = device_named(request.device)
        model = opened.model.to(device).eval()
        collator = opened.collator()
        for number, start in enumerate(range(0, len(samples), SHARD)):
            if progress:
                progress("storing the teacher", start, len(samples))
            shard = request.out / f"shard-{number:05}.safetensors"
            if not shard.exists():
                stretch = slice(start, start + SHARD)
                tensors = _shard(model, collator, samples[stretch], header, device)
                write_atomically(shard, save(tensors, {"keys": ",".join(keys[stretch])}))
        pictured = [sample.record for sample in samples if sample.media][:LOOKED_AT]
        header = header.model_copy(update={"moved": looking(opened, pictured)[0]})
        write_atomically(request.out / HEADER, header.model_dump_json(indent=1))
    return stored_in(request.out, header)


def stored_in(folder: Path, header: StoreHeader) -> Stored:
    """Return a store with its size."""
    size = sum(shard.stat().st_size for shard in folder.glob("shard-*.safetensors"))
    row = 4 * header.top + 2 * (header.top + 1)
    return Stored(header, size, size // row)


def _header(
    request: StoreRequest,
    opened: OpenedModel,
    samples: Sequence[Sample],
    keys: Sequence[str],
    shared: int,
) -> StoreHeader:
    weights = hashlib.sha256()
    for name, tensor in sorted(opened.model.state_dict().items()):
        weights.update(f"{name} {tensor_hash(tensor)}\n".encode())
    vocabulary = min(shared, embedding(opened.model).num_embeddings)
    return StoreHeader(
        teacher=request.teacher,
        sha256=weights.hexdigest(),
        parameters=sum(p.numel() for p in opened.model.parameters()),
        data=hashlib.sha256(",".join(keys).encode()).hexdigest(),
        records=len(samples),
        at=list(request.at),
        top=min(request.top, vocabulary),
        temperature=request.temperature,
        vocabulary=vocabulary,
    )


@torch.no_grad()
def _shard(
    model: ModalignForConditionalGeneration,
    collator: Collator,
    samples: Sequence[Sample],
    header: StoreHeader,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return the tensors of a stretch of records, in their order."""
    rows: dict[str, list[Tensor]] = {}
    for start in range(0, len(samples), BATCH):
        plain = collator(samples[start : start + BATCH])
        count = len(plain.samples)
        batch = TrainBatch(
            **vars(plain),
            places=prefix_places(model, collator, plain.input_ids),
            numbers=torch.arange(count),
            roles=torch.full((count,), -1),
            keys=torch.zeros(count, dtype=torch.long),
        ).to(device)
        found = read(model, model, batch, [NEEDS[at] for at in header.at])
        for at in header.at:
            logits = getattr(found, NEEDS[at])[:, : header.vocabulary].float()
            owners = batch.owners(at)
            order = owners.argsort(stable=True)
            ids, values = _top((logits / header.temperature).log_softmax(-1)[order], header.top)
            counts = torch.bincount(owners, minlength=count)
            for name, tensor in (("ids", ids), ("values", values), ("counts", counts)):
                rows.setdefault(f"{at}.{name}", []).append(tensor.cpu())
    return {name: torch.cat(parts).contiguous() for name, parts in rows.items()}


def _top(log_probabilities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k most likely words (R, k), and their log-probabilities and the rest's (R, k + 1)."""
    values, ids = log_probabilities.topk(k)
    rest = log_probabilities.scatter(1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    kept = torch.cat([values, rest.clamp(min=-1e4)], -1)
    return ids.int(), kept.half()
