"""Programs run by forks of a process that has imported everything already: each saves seconds of importing.

``Forks(folder, environment)`` starts that process and puts a ``modalign`` into ``folder`` that asks it for a fork
with its own arguments, folder, environment and standard streams. A fork behaves as a new process of the command
line would, but for the imports, which other tests look at.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import time
import types
from pathlib import Path
from types import TracebackType

IMPORTED = (
    "modalign.cli",
    "modalign.comparison.compare",
    "modalign.editing.run",
    "modalign.evaluation.evaluate",
    "modalign.models.saved",
    "modalign.training.tuning",
    "transformers.models.gptj.modeling_gptj",
    "transformers.models.llama.modeling_llama",
)
CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
said = json.dumps([sys.argv, os.getcwd(), dict(os.environ), None])
socket.send_fds(server, [b"!"], [0, 1, 2])
server.sendall(said.encode() + b"\\n")
answer = server.makefile().readline()
sys.exit(int(answer) if answer else 70)
"""


class Forks:
    """A process that forks for every program; ended on leaving."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.address = str(folder / "s")
        self.environment = environment
        client = folder / "modalign"
        client.write_text(CLIENT.format(python=sys.executable, address=self.address))
        client.chmod(0o755)
        self._server = subprocess.Popen([sys.executable, __file__, self.address], env=environment)
        while not Path(self.address).exists() and self._server.poll() is None:
            time.sleep(0.05)

    def __enter__(self) -> Forks:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.kill()
        self._server.wait()

    def python(self, code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run Python code as a program; what it wrote to its standard error comes back."""
        with (cwd / ".stderr").open("w+b") as errors, open(os.devnull, "r+b") as nothing:
            server = socket.socket(socket.AF_UNIX)
            with server:
                server.connect(self.address)
                said = json.dumps([["-c"], str(cwd), self.environment, code])
                streams = [nothing.fileno(), nothing.fileno(), errors.fileno()]
                socket.send_fds(server, [b"!"], streams)
                server.sendall(said.encode() + b"\n")
                answer = server.makefile().readline()
            errors.seek(0)
            stderr = errors.read().decode()
        return subprocess.CompletedProcess(["python"], int(answer or 70), "", stderr)


def _serve(address: str) -> None:
    """Import everything, then fork for every connection."""
    for name in IMPORTED:
        importlib.import_module(name)
    importlib.import_module("modalign.cli").command()  # the verbs, too, are made once
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    while True:
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            _wait_for(connection)


def _wait_for(connection: socket.socket) -> None:
    """Fork the program, and tell its exit status."""
    _, streams, _, _ = socket.recv_fds(connection, 1, 3)
    argv, folder, environment, code = json.loads(connection.makefile().readline())
    program = os.fork()
    if program:
        _, status = os.waitpid(program, 0)
        connection.sendall(f"{os.waitstatus_to_exitcode(status) & 255}\n".encode())
        os._exit(0)
    connection.close()
    for own, given in enumerate(streams):
        os.dup2(given, own)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = argv
    if code is None:
        runpy.run_module("modalign", run_name="__main__")
    else:
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<block>", "exec"), main.__dict__)
    sys.exit()


if __name__ == "__main__":
    _serve(sys.argv[1])
