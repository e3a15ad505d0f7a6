"""The tester: runs the tests of a problem, with stand-ins for the names that the student's program defines.

A test is one ``assert`` or one call at the outermost level of the tests; every other statement there prepares them.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from isodistill.sandbox.wire import Closed, TooLong, decoded, encoded, receive, send

__all__ = ["count_tests", "test"]

_FAILS, _TIME, _MEMORY, _ENDS, _LONG = (
    "a test does not hold",
    "ran out of time",
    "ran out of memory",
    "ended before its tests",
    "gave back too much",
)


def count_tests(tests: str) -> int:
    """How many tests a program of tests has; raises SyntaxError where it is none."""
    return sum(_is_test(statement) for statement in ast.parse(tests).body)


def test(tests: str, ask: int, answer: int) -> dict[str, Any]:
    """``passed`` of ``tests``, and ``reason``: why the first one failed, None where none did.

    Args:
        tests: Python source.
        ask: descriptor on which the candidate is asked.
        answer: descriptor of its answers.
    """
    statements = ast.parse(tests).body
    passed, reason = 0, None
    try:
        names = {"__name__": "__tests__"} | _Candidate(ask, answer).stand_ins(_wanted(statements))
        for statement in statements:
            try:
                exec(compile(ast.Module([statement], []), "tests", "exec"), names)
                passed += _is_test(statement)
            except Exception as error:  # noqa: BLE001  a test may fail in any way
                reason = reason or _why(error)
                if not _is_test(statement):
                    break
    except (_Gone, Exception) as error:  # noqa: BLE001  or the program itself raised something
        reason = reason or _why(error)
    return {"passed": passed, "tests": sum(map(_is_test, statements)), "reason": reason}


class _Gone(BaseException):
    """The candidate answers no more; says why."""


class _Raised:
    """The argument of an error that the candidate raised, which tells it from one that the tests raised."""


class _Foreign(Exception):
    """An error of the candidate that cannot be had here by its own name, such as SystemExit."""


class _Candidate:
    """The other process, as far as tests may know it."""

    def __init__(self, ask: int, answer: int) -> None:
        self._ask, self._answer = ask, answer

    def stand_ins(self, wanted: set[str]) -> dict[str, Any]:
        """The candidate's names that the tests use: functions that ask it, and plain values.

        A name that Python itself has is left to Python, so that a program cannot redefine what the tests count on;
        except where the tests use no other name, as in ``assert sum(10, 15) == 6``.
        """
        told = self._reply()["names"]
        own = {name for name in wanted if not hasattr(builtins, name)}
        return {name: self._stand_in(name, told[name]) for name in own or wanted if told.get(name) is not None}

    def do(self, target: Any, do: str, arguments: tuple[Any, ...] = (), named: dict[str, Any] | None = None) -> Any:
        """What the candidate gives back; lists and dictionaries among the arguments are changed as it changed them."""
        question = {
            "target": target,
            "do": do,
            "arguments": [encoded(value, _number_of) for value in arguments],
            "named": {name: encoded(value, _number_of) for name, value in (named or {}).items()},
        }
        try:
            send(self._ask, question)
        except Closed:
            raise _Gone(_death()) from None
        reply = self._reply()
        for argument, after in zip(arguments, self._decoded(reply.get("arguments", ["list", []])), strict=False):
            _take_over(argument, after)
        return self._decoded(reply.get("value"))

    def _reply(self) -> dict[str, Any]:
        try:
            reply = receive(self._answer)
        except Closed:
            raise _Gone(_death()) from None
        except TooLong:
            raise _Gone(_LONG) from None
        if not isinstance(reply, dict):
            raise _Gone(_ENDS)
        if "raises" in reply:
            raise _error(str(reply["raises"]))
        return reply

    def _stand_in(self, name: str, told: Any) -> Any:
        if isinstance(told, list) and told[0] == "module":
            return importlib.import_module(name) if told[1] == name and name in sys.stdlib_module_names else None
        return _Held(self, name) if isinstance(told, list) and told[0] == "held" else self._decoded(told)

    def _decoded(self, message: Any) -> Any:
        return decoded(message, lambda kind, content: _Held(self, content))


class _Held:
    """An object of the candidate that is not plain: it can be used and passed back, and equals only itself.

    Used means called and listed, and its attributes read and set.
    """

    def __init__(self, candidate: _Candidate, target: Any) -> None:
        self.__dict__.update(_candidate=candidate, _target=target)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._candidate.do(self._target, "call", arguments, named)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._candidate.do(self._target, "list"))

    def __getattr__(self, name: str) -> Any:
        return self._candidate.do(self._target, "get", (name,))

    def __setattr__(self, name: str, value: Any) -> None:
        self._candidate.do(self._target, "set", (name, value))


def _number_of(value: Any) -> Any:
    if not isinstance(value, _Held):
        raise TypeError(f"tests pass a {type(value).__name__}, which is no plain value")
    return ["held", value._target]


def _take_over(argument: Any, after: Any) -> None:
    if type(argument) is type(after) and argument != after:
        if isinstance(argument, list):
            argument[:] = after
        elif isinstance(argument, dict | set):
            argument.clear()
            argument.update(after)


def _error(name: str) -> Exception:
    """The built-in error of this name, as the candidate raised it; any other name is not believed."""
    kind = getattr(builtins, name, None)
    if not (isinstance(kind, type) and issubclass(kind, BaseException)):
        return _Foreign(name if name == TooLong.__name__ else "Exception")
    if issubclass(kind, Exception):
        try:
            error: Exception = kind(_Raised())
            return error
        except TypeError:  # a kind with arguments of its own
            pass
    return _Foreign(name)


def _why(error: BaseException) -> str:
    if isinstance(error, _Gone):
        return str(error)
    if isinstance(error, MemoryError):
        return _MEMORY
    if isinstance(error, _Foreign) and str(error) == TooLong.__name__:
        return _LONG
    if isinstance(error, AssertionError) and not any(isinstance(argument, _Raised) for argument in error.args):
        return _FAILS
    return f"raises {error if isinstance(error, _Foreign) else type(error).__name__}"


def _death() -> str:
    """Why the candidate has ended."""
    _, status = os.waitpid(-1, 0)
    if not os.WIFSIGNALED(status):
        return _ENDS
    return _TIME if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "crashes"


def _is_test(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Assert) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call)
    )


def _wanted(statements: list[ast.stmt]) -> set[str]:
    """The names that tests use and do not define."""
    used: set[str] = set()
    own: set[str] = set()
    for node in ast.walk(ast.Module(statements, [])):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else own).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.arg):
            own.add(node.arg)
        elif isinstance(node, ast.alias):
            own.add((node.asname or node.name).split(".")[0])
    return used - own
