"""What runs inside the jail: a candidate process with the student's program, a tester process with the tests.

    isodistill ── launcher ── tester (pid 1 of the jail) ── candidate

The candidate is forked before the tests are read, and has no way to the channel on which the verdict goes out. It is
asked to call its functions and gives plain values back; whether a value is right is decided in the tester. So a program
that ends early, prints a verdict, changes ``assert``'s surroundings or returns something that equals everything gains
nothing: it can only be wrong. Both processes stand behind the same walls.

This module runs in a process without site-packages, so it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
from typing import Any, NoReturn

from isodistill.sandbox.candidate import serve
from isodistill.sandbox.tester import test
from isodistill.sandbox.walls import (
    die_with_parent,
    give_up_rights,
    new_namespaces,
    new_root,
    what_gets_through,
)
from isodistill.sandbox.wire import Closed, read_bytes, receive

__all__ = ["main"]

_COMMON = (
    "array", "bisect", "calendar", "cmath", "collections", "copy", "datetime", "decimal", "fractions", "functools",
    "hashlib", "heapq", "itertools", "json", "math", "operator", "os", "random", "re", "statistics", "string", "sys",
    "time", "typing", "unicodedata", "zlib",
)  # fmt: skip
"""Modules loaded before the root changes: what they need of the machine's libraries is not there afterwards."""


def main(settings: dict[str, Any]) -> NoReturn:
    """The launcher: standard input holds set-up, program and tests, on standard output goes the verdict.

    Args:
        settings: ``place`` (an empty folder), ``alive`` (see ``die_with_parent``), ``seconds``, ``wall``,
            ``memory_mb``, ``scratch_mb``.
    """
    for name in _COMMON:
        importlib.import_module(name)
    try:
        new_namespaces()
        die_with_parent(settings["alive"])
        alive, held = os.pipe()
        if child := os.fork():
            os.waitpid(child, 0)
        else:
            os.close(held)
            _first_process(settings, alive)
    except OSError as error:
        _report(1, {"unsafe": error.strerror or str(error)})
    os._exit(0)


def _first_process(settings: dict[str, Any], alive: int) -> NoReturn:
    """Pid 1: build the root, fork the candidate, then test it."""
    die_with_parent(alive)
    new_root(settings["place"], settings["scratch_mb"])
    signal.signal(signal.SIGALRM, lambda number, frame: os._exit(0))
    signal.alarm(settings["wall"] + 1)  # whoever waits outside may be gone
    setup, program = _text_from(0), _text_from(0)
    asked, answered, report = os.pipe(), os.pipe(), os.dup(1)
    os.dup2(2, 1)  # whatever is printed goes where its length is counted
    if os.fork() == 0:
        os.dup2(asked[0], 3)
        os.dup2(answered[1], 4)
        os.close(0)
        os.closerange(5, 1024)
        serve(setup, program, 3, 4, _walled_in(settings))
        os._exit(0)
    os.close(asked[0])
    os.close(answered[1])
    tests = _text_from(0)
    os.close(0)
    hole = _walled_in(settings) or _hole_of_candidate(answered[0])
    _report(report, {"unsafe": hole} if hole else {"ready": True})
    if hole is None:
        _report(report, test(tests, asked[1], answered[0]))
    os._exit(0)


def _walled_in(settings: dict[str, Any]) -> str | None:
    """Put up the last walls around this process; what gets through them, or why they do not stand."""
    try:
        give_up_rights(settings["seconds"], settings["memory_mb"], settings["scratch_mb"])
        return what_gets_through()
    except OSError as error:
        return error.strerror or str(error)


def _hole_of_candidate(descriptor: int) -> str | None:
    """The same of the candidate: its first message, sent before any of the program is run."""
    try:
        hole: str | None = receive(descriptor)["hole"]
    except Closed:
        return "the second process did not come up"
    return hole


def _text_from(descriptor: int) -> str:
    """One text: its length in four bytes, then UTF-8. What follows it is not read, so it is not in this process."""
    return read_bytes(descriptor, int.from_bytes(read_bytes(descriptor, 4), "big")).decode()


def _report(descriptor: int, message: dict[str, Any]) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(descriptor, (json.dumps(message) + "\n").encode())
