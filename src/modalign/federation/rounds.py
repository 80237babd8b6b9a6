"""One federated training: round after round, each written whole, so that a killed run resumes bit for bit.

A round's folder appears by one rename and holds the server's tensors (``down.safetensors``, which clients download
next), the rule's moments, and what happened. Until then answers are in ``answers/``: a client that had answered
before the process died is not trained again. Bytes are the sizes of these files, not estimates.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from safetensors.torch import load_file, save

from modalign.data.supervision import Sample
from modalign.errors import ModalignError
from modalign.federation import lora, seeds
from modalign.federation.config import FederateConfig
from modalign.federation.pools import Pool
from modalign.federation.rules import Tensors
from modalign.federation.server import Noise, Server, Trained, step
from modalign.federation.workplace import Task, Workplace
from modalign.files import new_folder, write_atomically
from modalign.strict_json import read_object

DOWN = "down.safetensors"
PARTS = ("tensors", "base", "moments", "sent")  # parts of the server that are saved


class Round(BaseModel):
    """What happened in a round.

    Attributes:
        number: from 0.
        clients: those that were asked.
        lost: those that did not answer, and why.
        left_out: those whose numbers were not finite.
        up, down: bytes of all files sent to the server, and by it.
        lora_error: relative error of the aggregated LoRA products.
    """

    model_config = ConfigDict(extra="forbid")

    number: int
    clients: list[str]
    lost: dict[str, str]
    left_out: list[str]
    up: int
    down: int
    lora_error: float


@dataclass(frozen=True)
class Cell:
    """One federated training: a scenario, a rule, a strategy, a noise, a seed."""

    scenario: str
    rule: str
    strategy: str
    noise: float | None
    seed: int

    @property
    def key(self) -> str:
        """Return its name in files."""
        words = [self.scenario, self.rule, self.strategy, f"seed-{self.seed}"]
        if self.noise is not None:
            words.insert(3, f"noise-{self.noise:g}")
        return "__".join(words).translate(str.maketrans(":/[];", "=----"))


@dataclass
class Federated:
    """Runs the rounds of one cell.

    Attributes:
        config: the federation.
        cell: what is trained.
        place: the model of the cell's seed.
        clients: name -> samples, in order.
        folder: of the rounds.
        pool: where clients train.
        tell: called with the round's number and the clients that answered in it.
    """

    config: FederateConfig
    cell: Cell
    place: Workplace
    clients: Mapping[str, Sequence[Sample]]
    folder: Path
    pool: Pool
    tell: Callable[[int, int], None] = lambda number, answered: None

    def run(self) -> tuple[Server, list[Round]]:
        """Run the remaining rounds.

        Raises:
            ModalignError: too few clients answered, or one sent numbers that are not finite.
        """
        server, done = self._restored()
        for number in range(len(done), self.config.rounds):
            server, about = self._round(number, server)
            done.append(about)
        return server, done

    def _round(self, number: int, server: Server) -> tuple[Server, Round]:
        chosen = self._chosen(number)
        down = 0
        answers, lost, up = {}, {}, 0
        waiting = []
        place = self.folder / "answers"
        for name in chosen:
            file = self._file(number, name)
            if not file.exists():
                waiting.append(self._task(number, name, server))
            down += self._down(server, self._rank(name))
        if self.config.lora == "stack":  # clients that skip an addition could not take part later
            down += (len(self.clients) - len(chosen)) * self._down(server, 0)
        for task, answer in self.pool.run(self.place, waiting):
            if isinstance(answer, str):
                lost[task.client] = answer
                continue
            place.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file(number, task.client), save(answer))
            self.tell(number, len(list(place.glob(f"{number}-*"))))
        for name in chosen:
            file = self._file(number, name)
            if file.exists():
                answers[name] = load_file(file)
                up += file.stat().st_size
        self._check_quorum(number, chosen, lost)
        outcome = step(
            server,
            [Trained(name, t, len(self.clients[name])) for name, t in answers.items()],
            self.cell.rule,
            self.config.lora,
            self.config.training.lora_rank,
            seeds.number(self.cell.seed, number, "server"),
            self._noise(),
        )
        about = Round(
            number=number,
            clients=chosen,
            lost=lost,
            left_out=outcome.left_out,
            up=up,
            down=down,
            lora_error=outcome.lora_error,
        )
        self._write(number, outcome.server, about)
        return self._restored()[0], about  # the next round starts from what was written

    # ------------------------------------------------------------------ who takes part

    def _chosen(self, number: int) -> list[str]:
        """Draw a round's clients: a fixed number, or each independently if privacy is accounted."""
        names, wanted = list(self.clients), self.config.clients.sampled or len(self.clients)
        draw = seeds.rng(self.cell.seed, number, "clients")
        if self.cell.noise is not None:
            taken = draw.random(len(names)) < wanted / len(names)
            return [name for name, takes in zip(names, taken.tolist(), strict=True) if takes]
        if wanted >= len(names):
            return names
        return [names[place] for place in sorted(draw.permutation(len(names))[:wanted].tolist())]

    def _check_quorum(self, number: int, chosen: Sequence[str], lost: dict[str, str]) -> None:
        if len(chosen) - len(lost) >= max(
            math.ceil(self.config.quorum * len(chosen)), bool(chosen)
        ):
            return
        reasons = "; ".join(f"{name}: {why}" for name, why in lost.items())
        raise ModalignError(
            f"round {number + 1} of {self.cell.key}: only {len(chosen) - len(lost)} of {len(chosen)} clients "
            f"answered, and quorum asks for {self.config.quorum:.0%} ({reasons}). Those that answered are kept: "
            "--resume asks the others again, a lower quorum goes on without them"
        )

    def _rank(self, name: str) -> int:
        ranks = self.config.clients.ranks or [self.config.training.lora_rank]
        return ranks[list(self.clients).index(name) % len(ranks)]

    def _noise(self) -> Noise | None:
        privacy = self.config.privacy
        if self.cell.noise is None or privacy is None:
            return None
        expected = self.config.clients.sampled or len(self.clients)
        return Noise(privacy.clip, self.cell.noise, float(expected))

    # ------------------------------------------------------------------ files

    def _task(self, number: int, name: str, server: Server) -> Task:
        return Task(
            name,
            self.clients[name],
            lora.cut(server.tensors, self._rank(name)),
            server.base,
            self.cell.strategy,
            self.config.budget,
            0.5 * (1 + math.cos(math.pi * number / self.config.rounds)),
            self._rank(name),
            seeds.number(self.cell.seed, number, name),
            self.folder / "work" / f"{number}-{list(self.clients).index(name)}",
        )

    def _file(self, number: int, name: str) -> Path:
        return self.folder / "answers" / f"{number}-{list(self.clients).index(name)}.safetensors"

    def _down(self, server: Server, rank: int) -> int:
        """Return the bytes that one client downloads."""
        return len(save(sent(server, rank, self.config.lora)))

    def _write(self, number: int, server: Server, about: Round) -> None:
        with new_folder(self.folder / f"round-{number:04d}") as folder:
            for name in PARTS:
                write_atomically(folder / f"{name}.safetensors", save(getattr(server, name)))
            whole = sent(server, self.config.training.lora_rank, self.config.lora)
            write_atomically(folder / DOWN, save(whole))
            write_atomically(folder / "round.json", about.model_dump_json(indent=1))
        for old in sorted(self.folder.glob("round-*"))[:-1]:
            for file in old.glob("*.safetensors"):
                file.unlink()
        for left in self.folder.glob("answers/*"):
            if not left.name.startswith(f"{number}-"):
                left.unlink()
        shutil.rmtree(self.folder / "work", ignore_errors=True)

    def _restored(self) -> tuple[Server, list[Round]]:
        rounds = [
            Round.model_validate(read_object(folder / "round.json"))
            for folder in sorted(self.folder.glob("round-*"))
        ]
        if not rounds:
            return Server(dict(self.place.start)), []
        last = self.folder / f"round-{rounds[-1].number:04d}"
        read = {name: load_file(last / f"{name}.safetensors") for name in PARTS}
        return Server(**read), rounds


def sent(server: Server, rank: int, aggregation: str) -> Tensors:
    """Return what a client downloads: the tensors it trains, and what changes its frozen weights."""
    if aggregation == "stack":
        return {f"stack/{name}": t for name, t in server.sent.items()} | (
            {name: t for name, t in server.tensors.items() if not name.endswith((lora.A, lora.B))}
        )
    return lora.cut(server.tensors, rank) | {f"base/{name}": t for name, t in server.base.items()}
