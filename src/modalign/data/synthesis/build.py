"""``modalign data build``: turn annotations into instruction records, rejected items, and a card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modalign.data.readers import Problem, write_records
from modalign.data.records import Record
from modalign.data.synthesis.annotations import From, Item, read_items
from modalign.data.synthesis.by_model import Client, make_by_model
from modalign.data.synthesis.by_template import Dropped, make_by_templates
from modalign.data.synthesis.card import Card, by_skill, one_answer, sha256_of, tally
from modalign.data.synthesis.prompts import Prompt
from modalign.data.synthesis.templates import load_templates
from modalign.data.validation import listed, parse_share
from modalign.errors import DataError, UsageError
from modalign.files import check_free, write_atomically
from modalign.progress import Progress


@dataclass(frozen=True)
class Outputs:
    """The output files of a build."""

    records: Path

    @property
    def card(self) -> Path:
        """The card: counts, settings and hashes."""
        return self._beside(".card.json")

    @property
    def rejected(self) -> Path:
        """Rejected items, one JSON object per line."""
        return self._beside(".rejected.jsonl")

    @property
    def replies(self) -> Path:
        """The endpoint's replies, so that none is requested twice."""
        return self._beside(".replies.sqlite")

    def _beside(self, ending: str) -> Path:
        return self.records.with_name(self.records.stem + ending)

    def check_free(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Refuse to replace a build, or to repeat the requests of an interrupted one.

        Args:
            resume: continue with the existing files.
            overwrite: replace them; replies are requested again.

        Raises:
            UsageError: a file exists or cannot be written, or the name does not end in .jsonl.
        """
        if self.records.suffix != ".jsonl":
            raise UsageError(f"{self.records}: name the output something.jsonl")
        if resume and overwrite:
            raise UsageError("--resume continues, --overwrite starts again: give only one of them")
        if self.replies.exists() and not (resume or overwrite):
            raise UsageError(
                f"{self.replies} exists: --resume continues it, --overwrite starts again; or "
                "choose another -o"
            )
        check_free(self.records, self.card, self.rejected, overwrite=resume or overwrite)


def build_by_templates(
    source: str | Path,
    out: Path,
    kind: From,
    *,
    templates: Sequence[str] = (),
    per_record: int = 4,
    seed: int = 0,
    media_root: str | None = None,
    box_scale: float | None = None,
    columns: Mapping[str, str] | None = None,
    skip_broken: str = "0%",
    progress: Progress | None = None,
) -> Card:
    """Make records with templates and write them with their card.

    Raises:
        UsageError: invalid templates.
        DataError: rows without usable annotations above the quota, or no question to ask.
    """
    loaded = load_templates(kind, templates)
    items, problems = _usable(source, kind, media_root, skip_broken, box_scale, columns)
    records, dropped, _ = make_by_templates(items, kind, loaded, per_record, seed, progress)
    settings = {"templates": [kind, *templates], "per_record": per_record, "seed": seed}
    settings |= {} if box_scale is None else {"box_scale": box_scale}
    hashes = {"templates": sha256_of("\n".join(loaded.texts))}
    return _write(Outputs(out), source, kind, "templates", items, problems, records, dropped,
                  settings, hashes, {})  # fmt: skip


def build_by_model(
    source: str | Path,
    out: Path,
    kind: From,
    client: Client,
    *,
    prompt: Path | None = None,
    per_record: int = 4,
    settings: dict[str, Any] | None = None,
    send_images: bool = False,
    seed: int = 0,
    media_root: str | None = None,
    box_scale: float | None = None,
    columns: Mapping[str, str] | None = None,
    skip_broken: str = "0%",
    progress: Progress | None = None,
) -> Card:
    """Let a chat model write records and write them with their card.

    Raises:
        UsageError: an invalid prompt, address, key or model name.
        DataError: rows without usable annotations above the quota, or no usable reply.
    """
    asking = Prompt(prompt, kind, per_record)
    items, problems = _usable(source, kind, media_root, skip_broken, box_scale, columns)
    written = make_by_model(
        items, client, asking, settings=settings, images=send_images, seed=seed, progress=progress
    )
    used = {
        "model": client.model,
        "prompt": asking.name,
        "per_record": per_record,
        "seed": seed,
        "send_images": send_images,
        **({} if box_scale is None else {"box_scale": box_scale}),
        **(settings or {}),
    }
    counted: dict[str, Any] = {
        "duplicates": written.duplicates,
        "retried": written.retried,
        "usage": client.usage.as_json(),
    }
    return _write(Outputs(out), source, kind, "model", items, problems, written.records,
                  written.dropped, used, {"prompt": sha256_of(asking.text)}, counted)  # fmt: skip


def _usable(
    source: str | Path,
    kind: From,
    media_root: str | None,
    skip_broken: str,
    box_scale: float | None,
    columns: Mapping[str, str] | None,
) -> tuple[list[Item], list[Problem]]:
    allowed = parse_share(skip_broken)
    items, problems = read_items(source, kind, media_root, box_scale, columns)
    total = len(items) + len(problems)
    if not total:
        raise DataError(f"{source}: holds no rows")
    if not items or len(problems) > allowed * total:
        shown = "\n  ".join(listed(problems))
        raise DataError(
            f"{len(problems)} of {total} rows have no usable {kind}:\n  {shown}\ncorrect "
            "them, or allow a share with --skip-broken"
        )
    return _with_own_ids(items), problems


def _with_own_ids(items: list[Item]) -> list[Item]:
    """Refuse duplicate ids, because the records' ids are made from them."""
    first: dict[str, Item] = {}
    for item in items:
        if (known := first.setdefault(item.id, item)) is not item:
            raise DataError(f"{item.source}: the id {item.id!r} is taken by {known.source}")
    return items


def _write(
    outputs: Outputs,
    source: str | Path,
    kind: From,
    maker: Any,
    items: Sequence[Item],
    problems: Sequence[Problem],
    records: Sequence[Record],
    dropped: Sequence[Dropped],
    settings: dict[str, Any],
    hashes: dict[str, str],
    counted: dict[str, Any],
) -> Card:
    """Write the records, rejected items and the card, each atomically; the card last."""
    outputs.records.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(_aside(one), ensure_ascii=False, default=str) + "\n" for one in dropped]
    write_atomically(outputs.rejected, "".join(lines))
    if not records:
        reasons = Counter(one.reason for one in dropped).most_common(3)
        why = "; ".join(f"{reason} ({count})" for reason, count in reasons) or "nothing to ask"
        raise DataError(f"{source}: no record could be made: {why}; see {outputs.rejected}")
    write_records(records, outputs.records)
    file = Path(source)
    if file.is_file():
        hashes["input"] = sha256_of(file)
    made = tally(records)
    card = Card(
        input=str(source),
        annotations=kind,
        maker=maker,
        settings=settings,
        rows=len(items) + len(problems),
        unusable=dict(Counter(str(problem.kind) for problem in problems)),
        groups=len({record.group for record in records}),
        records=len(records),
        made=made,
        warnings=one_answer(made),
        skills=by_skill(records),
        rejected=dict(Counter(one.reason for one in dropped).most_common()),
        hashes=hashes | {"output": sha256_of(outputs.records)},
        **counted,
    )
    write_atomically(outputs.card, card.model_dump_json(indent=2) + "\n")
    return card


def _aside(one: Dropped) -> dict[str, Any]:
    where = {"file": one.item.source.file, "row": one.item.source.row, "id": one.item.id}
    return {**where, "reason": one.reason, **one.content}
