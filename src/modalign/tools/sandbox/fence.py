"""The kernel fence around a program's process: which one this machine offers, and how to enter it.

bubblewrap if it is installed, else new user, mount, network, process, IPC and host-name namespaces by
``unshare``. Inside, the process installs a seccomp filter and, if possible, an empty root
(:mod:`inside.confine`); it gets a program only after checking that opening, connecting and forking fail.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from modalign.errors import ModalignError, UsageError, extra

_FOLDER = Path(__file__).parent
_START = "import sys; sys.path[:0] = sys.argv[1:3]; from inside.main import main; main()"
_UNSHARE = (
    "--user", "--map-root-user", "--mount", "--net", "--pid", "--ipc", "--uts", "--cgroup",
    "--fork", "--kill-child",
)  # fmt: skip
_LEFT = ("user", "mnt", "net", "ipc", "uts", "cgroup")  # a pid namespace shows in children only
_BUBBLEWRAP = ("--unshare-all", "--die-with-parent", "--cap-drop", "ALL", "--clearenv")
_LIBRARIES = ("/lib", "/lib32", "/lib64", "/libx32", "/usr/lib", "/usr/lib32", "/usr/lib64")


class SandboxError(ModalignError):
    """The sandbox could not be started; the program is not to blame."""


@dataclass(frozen=True)
class Fence:
    """How a process is started inside a fence.

    Attributes:
        name: ``bubblewrap``, ``namespaces`` or ``none``.
        command: the command before the interpreter.
        outside: the namespaces it must have left, by name, before it replaces the machine's file system by
            an empty one; empty if the fence itself hides the machine's files.
    """

    name: str
    command: tuple[str, ...]
    outside: Mapping[str, str]

    @property
    def strict(self) -> bool:
        """Whether the kernel must hold the program."""
        return self.name != "none"

    def arguments(self, settings: str) -> list[str]:
        """Return the whole command line of a sandboxed process with its settings (JSON)."""
        packages = str(restricted_python().parent)
        interpreter = [sys.executable, "-I", "-S", "-X", "utf8", "-c", _START]
        return [*self.command, *interpreter, str(_FOLDER), packages, settings]


NO_FENCE = Fence("none", (), {})


def bubblewrap() -> Fence:
    """bubblewrap, with only the interpreter and its libraries visible, read-only.

    Raises:
        SandboxError: it is not installed.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise SandboxError("bubblewrap is not installed")
    command = [program, *_BUBBLEWRAP, "--dev", "/dev"]
    for folder in _LIBRARIES:
        path = Path(folder)
        if path.is_symlink():
            command += ["--symlink", os.readlink(path), folder]
        elif path.is_dir():
            command += ["--ro-bind", folder, folder]
    seen = [_FOLDER, restricted_python(), *_interpreter()]
    for place in dict.fromkeys(map(str, seen)):
        command += ["--ro-bind", place, place]
    return Fence("bubblewrap", tuple(command), {})


def namespaces() -> Fence:
    """New namespaces by util-linux's ``unshare``; the process empties its root itself.

    Raises:
        SandboxError: there is no ``unshare``, or this is not Linux.
    """
    program = shutil.which("unshare")
    if program is None:
        raise SandboxError("unshare (util-linux) is not installed")
    try:
        outside = {name: os.readlink(f"/proc/self/ns/{name}") for name in _LEFT}
    except OSError as error:
        raise SandboxError(f"namespaces: {error}") from None
    return Fence("namespaces", (program, *_UNSHARE), outside)


def _interpreter() -> Sequence[Path]:
    """Return what an interpreter needs to start: executable, pyvenv.cfg, standard library."""
    executable = Path(sys.executable)
    needed = [executable, executable.resolve(), Path(sysconfig.get_path("stdlib"))]
    needed.append(Path(sys.prefix) / "pyvenv.cfg")
    needed += Path(sys.base_prefix, "lib").glob("libpython*.so*")
    return [path for path in needed if path.exists()]


@cache
def restricted_python() -> Path:
    """Return the folder of RestrictedPython.

    Raises:
        UsageError: it is not installed.
    """
    found = find_spec("RestrictedPython")
    if found is None or found.origin is None:
        raise UsageError(
            f"programs need RestrictedPython, which is not installed: {extra('tools')}"
        )
    return Path(found.origin).parent
