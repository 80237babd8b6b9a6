"""Resource limits of a program."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from modalign.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """Bounds of one program's run.

    Attributes:
        seconds: of wall-clock time, without the time of tools.
        cpu: seconds of CPU time (RLIMIT_CPU).
        memory: MiB of address space, the interpreter's own 40 or so included (RLIMIT_AS).
        calls: of tools.
        output: characters of printed text and of the answer; what is longer is cut.
        message: bytes of one message from the program (a tool's arguments, the answer).
        source: characters of the program.
    """

    seconds: float = 10.0
    cpu: int = 5
    memory: int = 256
    calls: int = 20
    output: int = 10_000
    message: int = 1_000_000
    source: int = 20_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise UsageError(f"the limit {name} is {value}; it must be above 0")

    def for_process(self) -> dict[str, Any]:
        """Return what the sandboxed process holds itself to."""
        return {"cpu": self.cpu, "memory": self.memory * 2**20, "output": self.output}
