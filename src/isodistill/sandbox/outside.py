"""The jail from outside: start it, read its verdict, count what it prints, and kill it when its time is over."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

from isodistill.errors import UserError
from isodistill.sandbox.tester import count_tests

__all__ = ["Limits", "Trial", "run_tests", "why_no_sandbox"]

_START_S = 60.0
"""Until the walls stand; a busy machine may need some of it."""
_REPORT_BYTES = 65536
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from isodistill.sandbox.inside import main; "
_BOOT += "import json; main(json.loads(sys.argv[2]))"
_PACKAGE_PARENT = str(Path(__file__).parents[2])


@dataclass(frozen=True)
class Limits:
    """What a program may use; the tests have as much.

    Attributes:
        seconds: of processor time.
        wall: seconds on the clock, from where the walls stand.
        memory_mb: address space.
        output_kb: everything printed.
        scratch_mb: files in the scratch folder, which is in memory and goes with the process.
    """

    seconds: int = 10
    wall: int = 30
    memory_mb: int = 512
    output_kb: int = 64
    scratch_mb: int = 16


@dataclass(frozen=True)
class Trial:
    """How a program fared: ``passed`` of ``tests`` hold, and ``reason`` says why the first other one did not."""

    passed: int
    tests: int
    reason: str | None

    @property
    def ok(self) -> bool:
        """There is a test, and every test holds."""
        return self.reason is None and 0 < self.tests == self.passed


def run_tests(program: str, tests: str, *, setup: str = "", limits: Limits | None = None) -> Trial:
    """Run ``program``, which nobody trusts, and ``tests`` against what it defines; neither can reach anything.

    Each has a process of its own behind the walls of ``sandbox.walls``: no network, no file but Python's library and an
    empty scratch folder, no other process, no capability, few system calls, hard limits. Plain values go between them,
    so the tests see what a function gives back and the program never sees the tests. About 0.1 s.

    Args:
        program: Python source; it is never parsed in this process.
        tests: Python source; a test is an ``assert`` or a call at its outermost level.
        setup: Python source that the program may count on; where the program is no Python by itself, it is taken for
            the rest of ``setup``, as the body of a function that ends there.
        limits: what both may use.

    Raises:
        UserError: no sandbox can be made on this machine, with the reason. Nothing was run then.
        SyntaxError: the tests are no Python.
    """
    limits = limits or Limits()
    if sys.platform != "linux":
        raise _no_sandbox(f"it needs Linux, and this is {sys.platform}")
    alive, held = os.pipe()
    settings = {"alive": alive, "seconds": limits.seconds, "wall": limits.wall, "memory_mb": limits.memory_mb}
    settings |= {"scratch_mb": limits.scratch_mb}
    try:
        with (
            tempfile.TemporaryDirectory(prefix="isodistill-jail-") as place,
            _texts(setup, program, tests) as texts,
            _started(settings | {"place": place}, texts) as jail,
        ):
            reports, ended = _watch(jail, limits)
    finally:
        os.close(alive)
        os.close(held)
    return _verdict(reports, ended, tests)


@cache
def why_no_sandbox() -> str | None:
    """Why programs cannot be run on this machine; None where they can. Tried once, with a program of our own."""
    try:
        trial = run_tests("def one():\n    return 1\n", "assert one() == 1\n")
    except UserError as error:
        return str(error)
    return None if trial.ok else str(_no_sandbox(f"a program that is right {trial.reason}"))


class _Watched:
    """What has come out of the jail so far."""

    def __init__(self, limits: Limits) -> None:
        self.reports = bytearray()
        self.printed = 0
        self.deadline = time.monotonic() + _START_S
        self._limits = limits

    def take(self, what: str, content: bytes) -> str | None:
        """Count it; why the jail has to end, or None."""
        if what == "printed":
            self.printed += len(content)
            return "printed too much" if self.printed > 1024 * self._limits.output_kb else None
        if not self.reports:
            self.deadline = time.monotonic() + self._limits.wall
        self.reports += content
        return "gave back too much" if len(self.reports) > _REPORT_BYTES else None


def _watch(jail: subprocess.Popen[bytes], limits: Limits) -> tuple[list[dict[str, Any]], str | None]:
    """The reports of a jail, and why it was stopped, if it was."""
    watched, stopped = _Watched(limits), None
    with selectors.DefaultSelector() as selector:
        for what, pipe in (("report", jail.stdout), ("printed", jail.stderr)):
            assert pipe is not None
            selector.register(pipe, selectors.EVENT_READ, what)
        while stopped is None and selector.get_map():
            ready = selector.select(max(0.0, watched.deadline - time.monotonic()))
            if not ready:
                stopped = "ran out of time"
            for key, _ in ready:
                content = os.read(key.fd, 65536)
                if not content:
                    selector.unregister(key.fileobj)
                else:
                    stopped = stopped or watched.take(key.data, content)
    lines = bytes(watched.reports).split(b"\n")[:-1]
    return [json.loads(line) for line in lines], stopped


def _verdict(reports: list[dict[str, Any]], stopped: str | None, tests: str) -> Trial:
    unsafe = [report["unsafe"] for report in reports if "unsafe" in report]
    if unsafe or {"ready": True} not in reports:
        raise _no_sandbox(unsafe[0] if unsafe else f"it did not come up ({stopped or 'it ended'})")
    for report in reports:
        if "passed" in report:
            return Trial(report["passed"], report["tests"], report["reason"])
    return Trial(0, count_tests(tests), stopped or "ended before its tests")


def _no_sandbox(reason: str) -> UserError:
    return UserError(
        f"Programs that a model wrote are not run on this machine, because no sandbox can be made: {reason}. It takes "
        "Linux on x86_64 where users may make namespaces (kernel.unprivileged_userns_clone, and in a container its "
        "seccomp profile). Evaluate on such a machine, or leave rows of answer_type code out."
    )


@contextlib.contextmanager
def _texts(*texts: str) -> Iterator[IO[bytes]]:
    """A file in memory with the texts, each after its length."""
    with open(os.memfd_create("isodistill"), "w+b") as file:
        for text in texts:
            content = text.encode("utf-8", "replace")
            file.write(len(content).to_bytes(4, "big") + content)
        file.seek(0)
        yield file


@contextlib.contextmanager
def _started(settings: dict[str, Any], texts: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A jail, killed in the end: its first process goes, and the kernel takes all others in it along."""
    jail = subprocess.Popen(
        # Without site-packages, and without a variable of this process: keys are among them.
        [sys.executable, "-s", "-S", "-P", "-c", _BOOT, _PACKAGE_PARENT, json.dumps(settings)],
        stdin=texts,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=[settings["alive"]],
        env={"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"},
        cwd="/",
        start_new_session=True,
    )
    try:
        yield jail
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(jail.pid, signal.SIGKILL)
        jail.wait()
        for pipe in (jail.stdout, jail.stderr):
            assert pipe is not None
            while os.read(pipe.fileno(), 65536):  # until the last process has gone
                pass
            pipe.close()
