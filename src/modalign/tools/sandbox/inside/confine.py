"""Give up files, capabilities, resources and system calls before running a program.

Everything needed is already imported, so nothing has to stay visible.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Mapping
from typing import Any

from . import seccomp

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
_SIGKILL = 9
_EINVAL = 22


class ConfinementError(Exception):
    """The fence does not work."""


def confine(limits: dict[str, Any], outside: dict[str, str], strict: bool) -> None:
    """Give everything up, and check that it is really gone.

    Args:
        limits: ``memory`` in bytes, ``cpu`` in seconds.
        outside: the namespaces of the starting process. If given, this process must be in others, and
            replaces the machine's file system by an empty read-only one.
        strict: the kernel must provide the fence; otherwise use what it offers.

    Raises:
        ConfinementError: something could not be given up, or is still available.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if hasattr(libc, "prctl"):
            _checked(libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "prctl")
        calls = seccomp.library() if strict else _library_if_any()
        if outside:
            _check_namespaces(outside)
            assert calls is not None
            _enter_empty_root(libc, seccomp.number(calls, "pivot_root"))
            _drop_capabilities(libc)
        _limit(limits)
        if calls is not None:
            seccomp.load_filter(calls)
    except OSError as error:
        raise ConfinementError(str(error)) from None
    if strict:
        _try_fence(libc)


def _library_if_any() -> ctypes.CDLL | None:
    try:
        return seccomp.library()
    except OSError:
        return None


def _checked(status: int, what: str) -> None:
    if status != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def _check_namespaces(outside: dict[str, str]) -> None:
    """Check that the following steps cannot affect the machine itself."""
    for name, link in outside.items():
        if os.readlink(f"/proc/self/ns/{name}") == link:
            raise ConfinementError(f"the {name} namespace is the machine's own")


def _enter_empty_root(libc: ctypes.CDLL, pivot_root: int) -> None:
    """Mount an empty file system over a folder, make it the root, and detach the old one.

    ``pivot_root(".", ".")`` stacks the old root on the new one, where it is detached: pivot_root(2), Notes.
    """
    place = os.path.dirname(os.path.abspath(__file__)).encode()
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC
    options = b"size=4k,mode=555"
    _checked(libc.mount(b"none", place, b"tmpfs", flags, options), "mount")
    os.chdir(place)
    _checked(libc.syscall(pivot_root, b".", b"."), "pivot_root")
    _checked(libc.umount2(b".", _MNT_DETACH), "umount2")
    os.chdir("/")
    _checked(libc.mount(None, b"/", None, _MS_REMOUNT | _MS_RDONLY | flags, None), "remount")
    if os.listdir("/"):
        raise ConfinementError("the root is not empty")


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Drop all capabilities, including those over the namespaces, irrevocably."""
    for capability in range(64):
        if libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            if ctypes.get_errno() == _EINVAL:  # after the last one
                break
            _checked(-1, "prctl(PR_CAPBSET_DROP)")
    _checked(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl(PR_SET_NO_NEW_PRIVS)")
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; 64 bits each
    _checked(libc.capset(header, nothing), "capset")


def _limit(limits: dict[str, Any]) -> None:
    nothing = ("FSIZE", "CORE", "NPROC", "NOFILE", "MEMLOCK", "MSGQUEUE")
    limit_resources({"CPU": limits["cpu"], "AS": limits["memory"], **dict.fromkeys(nothing, 0)})


def limit_resources(limits: Mapping[str, int]) -> None:
    """Limit what this process may use, for good: ``AS`` is ``RLIMIT_AS``; what the system lacks is left out."""
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is not None:
            resource.setrlimit(number, (value, value))


def _try_fence(libc: ctypes.CDLL) -> None:
    """Try to open the root, a socket and a process: all must fail."""
    for what, status in (
        ("open", libc.open(b"/", os.O_RDONLY)),
        ("socket", libc.socket(2, 1, 0)),
        ("fork", libc.fork()),
    ):
        if status == 0 and what == "fork":
            os._exit(1)  # the child that should not exist
        if status >= 0:
            raise ConfinementError(f"{what} still works")
