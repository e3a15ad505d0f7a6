"""The system calls that a jailed process may still make; every other one is as if the kernel did not have it.

A list of what is allowed, not of what is forbidden: what a new kernel brings is shut out until someone thinks of it.
None of them makes a process, runs a file, opens a socket, sends a signal, looks into another process, or changes a
namespace, a mount, an identity or a limit. A thread can be made (``clone`` with CLONE_THREAD), a process cannot.
"""

from __future__ import annotations

import ctypes
import platform
import struct

__all__ = ["MACHINE", "allow_only_listed"]

MACHINE = "x86_64"
"""The numbers below are those of this architecture."""

_ALLOWED = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7, "lseek": 8, "mmap": 9,
    "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15,
    "pread64": 17, "pwrite64": 18, "readv": 19, "writev": 20, "access": 21, "pipe": 22, "select": 23, "sched_yield": 24,
    "mremap": 25, "madvise": 28, "dup": 32, "dup2": 33, "nanosleep": 35, "getpid": 39, "exit": 60, "wait4": 61,
    "uname": 63,
    "fcntl": 72, "flock": 73, "fsync": 74, "fdatasync": 75, "truncate": 76, "ftruncate": 77, "getdents": 78,
    "getcwd": 79, "chdir": 80, "rename": 82, "mkdir": 83, "rmdir": 84, "creat": 85, "unlink": 87, "readlink": 89,
    "chmod": 90, "umask": 95, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99, "times": 100,
    "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110, "sigaltstack": 131, "gettid": 186,
    "time": 201, "futex": 202, "sched_getaffinity": 204, "getdents64": 217, "restart_syscall": 219, "fadvise64": 221,
    "clock_gettime": 228, "clock_getres": 229, "clock_nanosleep": 230, "exit_group": 231, "openat": 257,
    "mkdirat": 258, "newfstatat": 262, "unlinkat": 263, "renameat": 264, "readlinkat": 267, "faccessat": 269,
    "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "utimensat": 280, "dup3": 292, "pipe2": 293,
    "renameat2": 316, "getrandom": 318, "statx": 332, "rseq": 334, "close_range": 436, "faccessat2": 439,
}  # fmt: skip
_CLONE, _CLONE_THREAD = 56, 0x00010000

# linux/filter.h, linux/seccomp.h, linux/audit.h
_LOAD, _JUMP_EQUAL, _JUMP_LEAST, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _NO_SUCH_CALL = 0x7FFF0000, 0x80000000, 0x00050000 | 38  # ENOSYS: libraries then try older calls
_AUDIT_ARCH_X86_64, _X32 = 0xC000003E, 0x40000000
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16  # places in struct seccomp_data
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def allow_only_listed(libc: ctypes.CDLL) -> None:
    """Shut the calling thread, and all that it ever starts, out of every call that is not listed; for good.

    Raises:
        OSError: the kernel has no such filter, or the machine is another one.
    """
    if platform.machine() != MACHINE:
        raise OSError(f"the system calls of {platform.machine()} are not listed, only those of {MACHINE}")
    code = _filter()
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    for name, arguments in (
        ("PR_SET_NO_NEW_PRIVS", (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)),
        ("PR_SET_SECCOMP", (_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0)),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), f"prctl({name}) failed")


def _filter() -> bytes:
    """The program: struct sock_filter {code, jump if true, jump if false, constant} for each line."""
    lines = [
        (_LOAD, 0, 0, _ARCH),
        (_JUMP_EQUAL, 1, 0, _AUDIT_ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _NO_SUCH_CALL),
    ]
    for number in _ALLOWED.values():
        lines += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    lines += [
        (_JUMP_EQUAL, 0, 3, _CLONE),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_BITS, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _NO_SUCH_CALL),
    ]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
