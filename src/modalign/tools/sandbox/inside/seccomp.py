"""An allow list of system calls, through libseccomp; every other call fails with EPERM.

libseccomp knows the numbers of calls on each architecture and is on practically every Linux machine
(apt and systemd need it). Its Python binding on PyPI is unmaintained; five functions by ctypes suffice.
"""

from __future__ import annotations

import ctypes
import ctypes.util

# What the interpreter itself still needs: memory, the two pipes, time, signals, exit. No file is
# opened, nothing is executed, no process or thread is made, no signal is sent, no socket exists.
ALLOWED = (
    "read", "write", "close", "lseek", "fstat",
    "brk", "mmap", "munmap", "mremap", "mprotect", "madvise",
    "futex", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall", "rseq",
    "clock_gettime", "clock_getres", "gettimeofday", "time", "getrandom",
    "getpid", "gettid", "sched_yield", "sched_getaffinity",
    "exit", "exit_group",
)  # fmt: skip

_ALLOW = 0x7FFF0000
_FAIL_WITH_EPERM = 0x00050001


def library() -> ctypes.CDLL:
    """libseccomp.

    Raises:
        OSError: it is not installed.
    """
    loaded = ctypes.CDLL("libseccomp.so.2", use_errno=True)
    loaded.seccomp_init.restype = ctypes.c_void_p
    loaded.seccomp_init.argtypes = [ctypes.c_uint32]
    loaded.seccomp_rule_add.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
    ]
    loaded.seccomp_load.argtypes = [ctypes.c_void_p]
    return loaded


def number(loaded: ctypes.CDLL, name: str) -> int:
    """The number of a system call here; negative if this architecture has none of that name."""
    return int(loaded.seccomp_syscall_resolve_name(name.encode()))


def load_filter(loaded: ctypes.CDLL) -> None:
    """Confine this process irrevocably (``no_new_privs`` is set as well).

    Raises:
        OSError: the kernel refuses the filter.
    """
    context = loaded.seccomp_init(_FAIL_WITH_EPERM)
    if not context:
        raise OSError("seccomp_init failed")
    for name in ALLOWED:
        call = number(loaded, name)
        if call < 0:  # not available on this architecture
            continue
        if status := loaded.seccomp_rule_add(context, _ALLOW, call, 0):
            raise OSError(-status, f"seccomp_rule_add({name}) failed")
    if status := loaded.seccomp_load(context):
        raise OSError(-status, "seccomp_load failed")
