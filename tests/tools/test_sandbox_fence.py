"""The kernel fence alone: plain Python inside it, without RestrictedPython, tries to get out."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modalign.errors import UsageError
from modalign.tools.sandbox import fence as fences
from modalign.tools.sandbox.fence import Fence, SandboxError, bubblewrap, namespaces
from modalign.tools.sandbox.limits import Limits
from modalign.tools.sandbox.run import Function, Ran, _find, fence_for, run_program

SECRET = "swordfish-4711"
LIMITS = Limits(seconds=20, cpu=1, memory=160)
DENIED = r"PermissionError|Operation not permitted"


@pytest.fixture(params=[namespaces, bubblewrap], ids=["namespaces", "bubblewrap"])
def fence(request: pytest.FixtureRequest) -> Fence:
    make: Callable[[], Fence] = request.param
    try:
        made = make()
        run_program("answer = 1", {}, fence=made)
    except SandboxError as error:
        pytest.skip(f"this machine has no such fence: {error}")
    return made


@pytest.fixture
def bait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "secret.txt").write_text(SECRET)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODALIGN_SECRET", SECRET)
    yield tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["secret.txt"]


def raw(program: str, fence: Fence, **functions: Function) -> Ran:
    ran = run_program(program, functions, LIMITS, fence=fence, restricted=False)
    assert SECRET not in repr(ran)
    return ran


# Each is denied by the kernel; what it needs is imported before the process is confined, or by ctypes.
DENIALS = {
    "read /etc/passwd": "open('/etc/passwd').read()",
    "read a file": "open('{bait}/secret.txt').read()",
    "read through io": "__import__('io').FileIO('{bait}/secret.txt').read()",
    "write a file": "open('{bait}/written.txt', 'w')",
    "write to the working folder": "open('written.txt', 'w')",
    "write to /tmp": "open('/tmp/written-by-the-sandbox', 'w')",
    "list the root": "os.listdir('/')",
    "list the home folder": "os.listdir('{bait}')",
    "stat": "os.stat('/')",
    "make a folder": "os.mkdir('/new')",
    "remove": "os.remove('{bait}/secret.txt')",
    "rename": "os.rename('{bait}/secret.txt', '{bait}/other.txt')",
    "change mode": "os.chmod('{bait}/secret.txt', 0o777)",
    "symbolic link": "os.symlink('/etc/passwd', '/link')",
    "import from disk": "__import__('_frozen_importlib_external').SourceFileLoader"
    "('m', '{bait}/secret.txt').get_data('{bait}/secret.txt')",
    "fork": "os.fork()",
    "vfork and exec": "os.posix_spawn('/bin/sh', ['sh'], {})",
    "exec": "os.execv('/bin/sh', ['sh'])",
    "system": "ctypes.CDLL(None).system(b'true') == 0 or missing",
    "a thread": "__import__('_thread').start_new_thread(print, ())",
    "kill the parent": "os.kill(os.getppid(), 9)",
    "kill all": "os.kill(-1, 9)",
    "kill the starter": "os.kill({pid}, 9)",
    "a pipe": "os.pipe()",
    "another user": "os.setuid(12345)",
    "another session": "os.setsid()",
    "raise a limit": "__import__('resource').setrlimit(__import__('resource').RLIMIT_AS, (-1, -1))",
    "chroot": "os.chroot('/')",
    "host name": "os.uname()",
    "affinity": "os.sched_setaffinity(0, [0])",
}


@pytest.mark.parametrize("attempt", DENIALS.values(), ids=DENIALS.keys())
def test_denied(attempt: str, fence: Fence, bait: Path) -> None:
    attempt = attempt.replace("{bait}", str(bait)).replace("{pid}", str(os.getpid()))
    ran = raw(f"import os, ctypes\nanswer = repr({attempt})", fence)
    assert ran.answer is None, ran
    assert ran.kind == "raised"
    assert re.search(
        rf"{DENIED}|'missing' is not defined|can't start new thread|not allowed to raise",
        ran.message,
    ), ran
    assert not Path("/tmp/written-by-the-sandbox").exists()


SYSCALLS = {  # x86-64 numbers: what a program could do with machine code of its own
    "socket": (41, 2, 1, 0),
    "connect": (42, 1, 0, 0),
    "clone": (56, 17, 0, 0),
    "execve": (59, 0, 0, 0),
    "ptrace": (101, 16, 1, 0),
    "mount": (165, 0, 0, 0),
    "pivot_root": (155, 0, 0, 0),
    "init_module": (175, 0, 0, 0),
    "process_vm_readv": (310, 1, 0, 0),
    "seccomp": (317, 0, 0, 0),
    "memfd_create": (319, 0, 0, 0),
    "bpf": (321, 0, 0, 0),
    "execveat": (322, 0, 0, 0),
    "userfaultfd": (323, 0, 0, 0),
    "keyctl": (250, 0, 0, 0),
    "add_key": (248, 0, 0, 0),
    "unshare": (272, 0x10000000, 0, 0),
    "setns": (308, 0, 0, 0),
    "perf_event_open": (298, 0, 0, 0),
    "io_uring_setup": (425, 8, 0, 0),
    "pidfd_open": (434, 1, 0, 0),
    "clone3": (435, 0, 0, 0),
    "openat2": (437, 0, 0, 0),
    "open_by_handle_at": (304, 0, 0, 0),
    "prctl": (157, 22, 0, 0),
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are those of x86-64")
def test_system_calls_by_number(fence: Fence) -> None:
    program = (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"calls = {SYSCALLS!r}\nfound = {{}}\n"
        "for name, call in calls.items():\n"
        "    status = libc.syscall(*map(ctypes.c_long, call))\n"
        "    found[name] = (status, ctypes.get_errno())\n"
        "answer = [name for name, got in found.items() if got != (-1, 1)]"
    )
    assert raw(program, fence).answer == "[]"


@pytest.mark.parametrize(
    ("name", "program", "kinds"),
    [
        ("socket", "import _socket\nanswer = str(_socket.socket())", "raised"),
        ("DNS", "import _socket\nanswer = _socket.gethostbyname('example.org')", "raised"),
        ("environment", "import os\nanswer = str(dict(os.environ))", "None"),
        ("memory bomb", "x = [bytearray(2 ** 20) for _ in range(10 ** 6)]", "memory|killed"),
        ("mapped memory", "import ctypes\nl = ctypes.CDLL(None)\nl.malloc.restype = ctypes.c_void_p\n"
         "answer = str(l.malloc(ctypes.c_size_t(2 ** 40)))", "None"),
        ("CPU loop", "while True:\n    pass", "killed|time"),
        ("fork bomb", "import os\nn = 0\nfor _ in range(10000):\n    try:\n        os.fork()\n"
         "        n += 1\n    except OSError:\n        pass\nanswer = str(n)", "None"),
        ("stdout flood", "import os\nfor _ in range(1000):\n    os.write(1, b'x' * 10000)\n"
         "    os.write(2, b'x' * 10000)\nanswer = 'done'", "None"),
        ("flood of the pipe", "import os\nfor fd in range(3, 9):\n    try:\n        while True:\n"
         "            os.write(fd, b'x' * 65536)\n    except OSError:\n        pass", "protocol"),
        ("closed pipes", "import os\nos.closerange(0, 99)\nwhile True:\n    pass", "killed|time"),
        ("a crash", "import ctypes\nctypes.string_at(0)", "killed"),
        ("exit", "import os\nos._exit(0)", "killed"),
    ],
)  # fmt: skip
def test_bounded(name: str, program: str, kinds: str, fence: Fence, bait: Path) -> None:
    ran = raw(program, fence)
    assert re.fullmatch(kinds, str(ran.kind)), ran
    expected = {"mapped memory": "None", "fork bomb": "0", "stdout flood": "done"}
    if name in expected:
        assert ran.answer == expected[name]
    if name == "environment":
        assert set(eval(str(ran.answer))) <= {"LD_LIBRARY_PATH", "LC_CTYPE", "PWD"}
    assert len(ran.output) <= LIMITS.output
    assert ran.seconds < LIMITS.seconds + 10


FORGED = [
    b"nonsense", b"[]", b'{"call": 1, "arguments": {}}', b'{"call": "look", "arguments": []}',
    b'{"done": 1}', b'{"done": {"answer": 1}}', b'{"done": {}}', b"[" * 15_000, b'{"done": {"answer": ',
    b'{"ready": true}', b"\xff\xfe",
]  # fmt: skip


@pytest.mark.parametrize("line", FORGED, ids=range(len(FORGED)))
def test_forged_messages(line: bytes, fence: Fence) -> None:
    program = (
        "import os\nfor fd in range(3, 9):\n    try:\n"
        f"        os.write(fd, {line!r} + b'\\n')\n        break\n    except OSError:\n        pass\n"
        "while True:\n    pass"
    )
    ran = raw(program, fence, look=Function((), lambda _: "seen"))
    assert ran.kind == "protocol", ran


WITHOUT_FILTER = """
import ctypes, json, os, socket, sys
sys.path.insert(0, sys.argv[1])
from inside import confine, seccomp
outside, port = json.loads(sys.argv[2]), int(sys.argv[3])
libc, calls = ctypes.CDLL(None, use_errno=True), seccomp.library()
confine._check_namespaces(outside)
confine._enter_empty_root(libc, seccomp.number(calls, "pivot_root"))
confine._drop_capabilities(libc)
def tried(attempt):
    try:
        return repr(attempt())
    except OSError as error:
        return error.strerror
print(json.dumps([
    os.listdir("/"),
    tried(lambda: open("/etc/passwd")),
    tried(lambda: open("/new", "w")),
    tried(lambda: socket.socket().connect(("127.0.0.1", port))),
    tried(lambda: os.kill(os.getppid() or 4711, 9)),
    libc.mount(b"none", b"/", b"tmpfs", 0, None),
    os.getpid(),
]))
"""


def test_namespaces_hold_without_the_filter() -> None:
    """What the name spaces and the empty root keep away by themselves."""
    try:
        fence = namespaces()
        run_program("answer = 1", {}, fence=fence)
    except SandboxError as error:
        pytest.skip(f"this machine has no such fence: {error}")
    folder = str(Path(fences.__file__).parent)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        start = [*fence.command, sys.executable, "-I", "-S", "-c", WITHOUT_FILTER]
        told = [folder, json.dumps(dict(fence.outside)), port]
        done = subprocess.run([*start, *told], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [
        [],
        "No such file or directory",
        "Read-only file system",
        "Network is unreachable",
        "No such process",
        -1,
        1,
    ]


def test_a_fence_that_is_none_is_refused() -> None:
    """The process does nothing to the root before it knows that the root is not the machine's."""
    try:
        pretended = Fence("namespaces", (), namespaces().outside)
    except SandboxError as error:
        pytest.skip(str(error))
    with pytest.raises(SandboxError, match=r"the fence does not stand|namespace is the machine's"):
        run_program("answer = 1", {}, fence=pretended)
    assert Path("/").is_dir()
    assert list(Path("/").iterdir())


def test_without_a_fence_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    _find.cache_clear()
    try:
        with pytest.raises(UsageError, match=r"bubblewrap is not installed.*--unsafe-code"):
            run_program("answer = 1", {})
        ran = run_program("answer = 1", {}, unsafe=True)
        assert (ran.answer, ran.fence) == ("1", "none")
        with pytest.raises(UsageError, match="inside a kernel fence only"):
            run_program("answer = 1", {}, unsafe=True, restricted=False)
    finally:
        monkeypatch.undo()
        _find.cache_clear()


def test_a_fence_the_kernel_forbids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forbidden = tmp_path / "unshare"
    forbidden.write_text("#!/bin/sh\necho 'unshare failed: Operation not permitted' >&2\nexit 1\n")
    forbidden.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(forbidden) if name == "unshare" else None)
    _find.cache_clear()
    try:
        with pytest.raises(UsageError, match="unshare failed: Operation not permitted"):
            fence_for()
    finally:
        monkeypatch.undo()
        _find.cache_clear()
