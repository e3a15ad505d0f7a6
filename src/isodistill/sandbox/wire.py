"""Plain values as bytes between two processes of which one is not trusted: nothing that is read can run anything.

A message is its length in four bytes and JSON. None, booleans, text, floats and small whole numbers stand for
themselves; everything else is a pair ``[kind, content]``. Subclasses of the plain types become the plain type; the
built-in types themselves are plain as well.
"""

from __future__ import annotations

import builtins
import json
import os
from collections.abc import Callable
from typing import Any

__all__ = ["MOST_BYTES", "Closed", "TooLong", "decoded", "encoded", "read_bytes", "receive", "send"]

MOST_BYTES = 4 * 2**20
_SMALL = 2**53
_CONTAINERS: dict[str, Callable[[Any], Any]] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
_TYPES: dict[str, type] = {name: kind for name, kind in vars(builtins).items() if isinstance(kind, type)}


class Closed(Exception):
    """The other process has ended."""


class TooLong(Exception):
    """A message of more than ``MOST_BYTES``."""


def send(descriptor: int, message: Any) -> None:
    """Write one message whole; raises Closed where nobody can read it any more, TooLong where it is too long."""
    content = json.dumps(message).encode()
    if len(content) > MOST_BYTES:
        raise TooLong
    left = memoryview(len(content).to_bytes(4, "big") + content)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except BrokenPipeError:
        raise Closed from None


def receive(descriptor: int) -> Any:
    """The next message.

    Raises:
        Closed: there is none.
        TooLong: it is too long.
        ValueError: it is no JSON.
    """
    size = int.from_bytes(read_bytes(descriptor, 4), "big")
    if size > MOST_BYTES:
        raise TooLong
    return json.loads(read_bytes(descriptor, size))


def read_bytes(descriptor: int, size: int) -> bytes:
    """Exactly so many bytes, and no byte more; raises Closed where they do not come."""
    content = bytearray()
    while len(content) < size:
        part = os.read(descriptor, min(65536, size - len(content)))
        if not part:
            raise Closed
        content += part
    return bytes(content)


def encoded(value: Any, other: Callable[[Any], Any]) -> Any:
    """A value for ``send``; ``other`` encodes what is not plain."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value) if -_SMALL < value < _SMALL else ["int", hex(value)]
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, bytes | bytearray):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, dict):
        return ["dict", [[encoded(k, other), encoded(v, other)] for k, v in value.items()]]
    for name, kind in _TYPES.items():
        if value is kind:
            return ["type", name]
    for container in (list, tuple, set, frozenset):
        if isinstance(value, container):
            return [container.__name__, [encoded(member, other) for member in value]]
    return other(value)


def decoded(message: Any, other: Callable[[str, Any], Any]) -> Any:
    """The value of what ``encoded`` gave; ``other`` decodes further kinds.

    Raises:
        ValueError, TypeError: it is none.
    """
    if not isinstance(message, list):
        if isinstance(message, dict):
            raise TypeError("an object is no value")
        return message
    kind, content = message
    if kind == "int":
        return int(content, 16)
    if kind == "complex":
        return complex(*content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "dict":
        return {decoded(k, other): decoded(v, other) for k, v in content}
    if kind == "type" and content in _TYPES:
        return _TYPES[content]
    if kind in _CONTAINERS:
        return _CONTAINERS[kind](decoded(member, other) for member in content)
    return other(kind, content)
