"""The walls of the jail: own namespaces, a root of its own with almost nothing in it, no rights, hard limits.

What holds in each jailed process, in the order in which it is put up: user, mount, network, pid, ipc, uts and cgroup
namespaces (unshare(2)); a root on a tmpfs (pivot_root(2)), read-only, that holds Python's standard library and a small
scratch folder; no capabilities; resource limits; the system calls of ``seccomp`` alone. Then it is tried: a process
that can still fork, open a socket, write outside the scratch folder or see more files reports that, and nothing of the
student's is run.

This module runs in a process without site-packages, so it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import socket
import struct

from isodistill.sandbox.seccomp import allow_only_listed

__all__ = ["LIBC", "SCRATCH", "die_with_parent", "give_up_rights", "new_namespaces", "new_root", "what_gets_through"]

LIBC = ctypes.CDLL(None, use_errno=True)
SCRATCH = "/tmp"

_STDLIB = os.path.realpath(os.path.dirname(os.__file__))
_NAMESPACES = {
    "user": 0x10000000, "mount": 0x00020000, "network": 0x40000000, "pid": 0x20000000, "ipc": 0x08000000,
    "uts": 0x04000000, "cgroup": 0x02000000,
}  # fmt: skip
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_KEPT = {os.ST_NOEXEC: _NOEXEC, os.ST_NOATIME: 1024, os.ST_NODIRATIME: 2048, os.ST_RELATIME: 1 << 21}
"""Flags of a mount that a remount in a user namespace may not drop: as statvfs tells them -> as mount wants them."""
_MNT_DETACH, _SYS_PIVOT_ROOT, _PR_SET_PDEATHSIG, _SIGKILL = 2, 155, 1, 9
_CAPABILITY_VERSION_3 = 0x20080522


def new_namespaces() -> None:
    """Leave the namespaces of the machine; the next child is the first process of a pid namespace.

    Raises:
        OSError: the machine does not allow it; says which call failed.
    """
    uid, gid = os.getuid(), os.getgid()
    _checked("unshare", LIBC.unshare(sum(_NAMESPACES.values())))
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def new_root(place: str, scratch_mb: int) -> None:
    """Make an empty folder the root of this process: the standard library (read-only), the scratch folder, no more.

    Raises:
        OSError: likewise.
    """
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", place, "tmpfs", _NOSUID | _NODEV, "size=1m,nr_inodes=256,mode=755")
    library, scratch = place + _STDLIB, place + SCRATCH
    os.makedirs(library)
    os.makedirs(scratch, exist_ok=True)
    _mount(_STDLIB, library, None, _BIND)
    kept = sum(flag for seen, flag in _KEPT.items() if os.statvfs(library).f_flag & seen)
    _mount(None, library, None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV | kept)
    for name in ("site-packages", "dist-packages"):
        if os.path.isdir(f"{library}/{name}"):
            _mount("tmpfs", f"{library}/{name}", "tmpfs", _RDONLY | _NOSUID | _NODEV, "size=4k,nr_inodes=2")
    options = f"size={scratch_mb}m,nr_inodes=1024,mode=700"
    _mount("tmpfs", scratch, "tmpfs", _NOSUID | _NODEV | _NOEXEC, options)
    os.chdir(place)
    _checked("pivot_root", LIBC.syscall(_SYS_PIVOT_ROOT, b".", b"."))
    _checked("umount2", LIBC.umount2(b".", _MNT_DETACH))
    _mount(None, "/", None, _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    os.chdir(SCRATCH)


def give_up_rights(seconds: int, memory_mb: int, scratch_mb: int) -> None:
    """No capabilities, hard limits, few system calls; nothing of it can be taken back.

    Raises:
        OSError: likewise.
    """
    memory, files = memory_mb * 2**20, scratch_mb * 2**20
    for what, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),  # SIGXCPU, then SIGKILL
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_FSIZE, files, files),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_NPROC, 64, 64),  # threads; where the user is root the memory bounds them
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(what, (soft, hard))
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _checked("capset", LIBC.capset(header, struct.pack("=6I", *[0] * 6)))
    allow_only_listed(LIBC)


def what_gets_through() -> str | None:
    """What this process can still do that it must not; None when the walls hold."""
    seen = set(os.listdir("/")) - {SCRATCH.strip("/"), _STDLIB.split("/")[1]}
    if seen:
        return f"it sees {', '.join(sorted(seen))}"
    with contextlib.suppress(OSError):
        if os.fork() == 0:
            os._exit(0)
        return "it can start a process"
    with contextlib.suppress(OSError):
        socket.socket().close()
        return "it can open a socket"
    for folder in ("/", f"{_STDLIB}/"):
        with contextlib.suppress(OSError):
            open(f"{folder}.isodistill-tried", "w").close()
            os.unlink(f"{folder}.isodistill-tried")
            return f"it can write into {folder}"
    return None


def die_with_parent(alive: int) -> None:
    """Let the kernel kill this process when its parent ends; ``alive`` reads from a pipe that the parent holds open."""
    _checked("prctl(PR_SET_PDEATHSIG)", LIBC.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0))
    if select.select([alive], [], [], 0)[0]:  # it ended before that
        os._exit(0)
    os.close(alive)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    arguments = [None if text is None else text.encode() for text in (source, target, kind, options)]
    _checked(f"mount of {target}", LIBC.mount(*arguments[:3], ctypes.c_ulong(flags), arguments[3]))


def _checked(what: str, status: int) -> None:
    if status:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
