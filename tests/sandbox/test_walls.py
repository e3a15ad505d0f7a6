"""The parts of the sandbox that need no jail: what is allowed, what counts as a hole, what stops a run."""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

import pytest

from isodistill.errors import UserError
from isodistill.sandbox import outside, seccomp
from isodistill.sandbox.candidate import serve
from isodistill.sandbox.walls import what_gets_through
from isodistill.sandbox.wire import Closed, receive


def test_this_process_has_holes_and_the_first_is_named() -> None:
    assert str(what_gets_through()).startswith("it sees ")


def test_behind_a_hole_nothing_is_run() -> None:
    asked, answered = os.pipe(), os.pipe()
    serve("", "raise SystemExit('ran')", asked[0], answered[1], "it can open a socket")
    os.close(answered[1])
    assert receive(answered[0]) == {"hole": "it can open a socket"}
    with pytest.raises(Closed):
        receive(answered[0])
    for descriptor in (*asked, answered[0]):
        os.close(descriptor)


@pytest.mark.parametrize("reports", [[], [{"unsafe": "it can start a process"}], [{"passed": 1, "tests": 1}]])
def test_without_walls_there_is_no_verdict(reports: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="no sandbox can be made") as error:
        outside._verdict(reports, None, "assert f()")
    assert reports[:1] != [{"unsafe": "it can start a process"}] or "it can start a process" in str(error.value)


def test_another_system_or_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(OSError, match="of aarch64 are not listed"):
        seccomp.allow_only_listed(None)  # type: ignore[arg-type]
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="needs Linux, and this is darwin"):
        outside.run_tests("def f(): pass", "assert f()")


def test_no_call_that_makes_a_process_or_reaches_out_is_listed() -> None:
    forbidden = {
        "socket": 41, "connect": 42, "socketpair": 53, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "ptrace": 101,
        "setuid": 105, "prctl": 157, "mount": 165, "tkill": 200, "io_uring_setup": 425, "unshare": 272, "setns": 308,
        "tgkill": 234, "prlimit64": 302, "process_vm_readv": 310, "bpf": 321, "execveat": 322, "pidfd_open": 434,
        "clone3": 435, "memfd_create": 319, "seccomp": 317, "keyctl": 250, "shmget": 29,
    }  # fmt: skip
    assert not set(forbidden.values()) & set(seccomp._ALLOWED.values())
    assert len(set(seccomp._ALLOWED.values())) == len(seccomp._ALLOWED)
