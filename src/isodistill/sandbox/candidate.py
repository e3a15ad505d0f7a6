"""The candidate: runs a student's program, then calls its functions when asked; nothing here is trusted."""

from __future__ import annotations

import builtins
import types
from typing import Any

from isodistill.sandbox.wire import Closed, TooLong, decoded, encoded, receive, send

__all__ = ["serve"]

_HEADER = "from typing import *\nimport collections, functools, heapq, itertools, math, operator, re, string\n"
"""What students forget to import, and every collection of problems takes for granted."""


def serve(setup: str, program: str, asked: int, answered: int, hole: str | None) -> None:
    """Run a program and answer questions about its names until nobody asks.

    Args:
        setup: Python source that the program may count on.
        program: Python source; see ``run_tests``.
        asked: descriptor of the questions.
        answered: descriptor of the answers.
        hole: what this process can still do that it must not; then nothing is run.
    """
    send(answered, {"hole": hole})
    if hole is not None:
        return
    served = _Served()
    send(answered, served.start(setup, program))
    try:
        while True:
            question = receive(asked)
            try:
                reply = served.answer(question)
                send(answered, reply)
            except TooLong:
                send(answered, {"raises": TooLong.__name__})
    except Closed:
        return


class _Served:
    """The program's names and the objects that tests hold by number."""

    def __init__(self) -> None:
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._held: list[Any] = []

    def start(self, setup: str, program: str) -> dict[str, Any]:
        """Run set-up and program; their names and what they are."""
        try:
            exec(_HEADER, self._names)
            before = dict(self._names)
            try:
                parts = [compile(text, "program", "exec") for text in (setup, program)]
            except SyntaxError:
                parts = [compile(f"{setup}\n{program}", "program", "exec")]
            for part in parts:
                exec(part, self._names)
        except BaseException as error:  # noqa: BLE001  whatever it raises is its own
            return _raised(error)
        own = {name: value for name, value in self._names.items() if value is not before.get(name)}
        return {"names": {name: self._described(value) for name, value in own.items() if not name.startswith("__")}}

    def answer(self, question: Any) -> dict[str, Any]:
        """Call an object, list what it holds, or get or set an attribute of it; its arguments afterwards."""
        try:
            target = self._of(question["target"])
            do = {"call": target, "list": list, "get": getattr, "set": setattr}[question["do"]]
            arguments = [decoded(value, self._decode) for value in question["arguments"]]
            named = {name: decoded(value, self._decode) for name, value in question["named"].items()}
            before = [] if question["do"] == "call" else [target]
            return {"value": self._encoded(do(*before, *arguments, **named)), "arguments": self._encoded(arguments)}
        except BaseException as error:  # noqa: BLE001  likewise
            return _raised(error)

    def _described(self, value: Any) -> Any:
        if isinstance(value, types.ModuleType):
            return ["module", value.__name__]
        try:
            return self._encoded(value)
        except Exception:  # noqa: BLE001  a value that cannot be told is not there
            return None

    def _of(self, target: Any) -> Any:
        return self._names[target] if isinstance(target, str) else self._held[target]

    def _encoded(self, value: Any) -> Any:
        return encoded(value, self._hold)

    def _hold(self, value: Any) -> Any:
        self._held.append(value)
        return ["held", len(self._held) - 1]

    def _decode(self, kind: str, content: Any) -> Any:
        return self._held[content]


def _raised(error: BaseException) -> dict[str, Any]:
    """The name of the built-in kind of an error; its own kinds mean nothing to the tests."""
    names = [kind.__name__ for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind]
    return {"raises": names[0] if names else "Exception"}
