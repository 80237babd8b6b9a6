"""A process that reads a PDF: ``python -m modalign.data.pdf FILE SECONDS MEMORY`` prints its pieces as JSON.

A PDF is a program for its reader: streams that unpack to gigabytes, pages that hold one another, drawings without
end. The kernel limits what this process takes; its caller limits how long.
"""

from __future__ import annotations

import json
import math
import resource
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from modalign.data.pieces import read_pdf
from modalign.errors import DataError


def main() -> None:
    """Read the file, within the limits."""
    file, seconds, memory = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    with suppress(ValueError, OSError):  # a limit that is lower already stays
        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.RLIM_INFINITY))
    if math.isfinite(seconds):
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(seconds), resource.RLIM_INFINITY))
    try:
        answer: object = [asdict(piece) for piece in read_pdf(file)]
    except MemoryError:
        answer = "memory"
    except DataError as error:
        answer = {"error": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
