"""What every teacher is to the rest: messages in; texts, finish reasons and usage out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

_SURROGATE = re.compile("[\ud800-\udfff]")

Messages = Sequence[Mapping[str, str]]
"""Chat messages, each with ``role`` and ``content``."""


@dataclass(frozen=True)
class Sampling:
    """How a teacher draws its answers; part of the key under which an answer is stored.

    ``temperature`` 0 is greedy; ``n`` answers are drawn to one request; ``max_tokens`` bounds each; ``seed`` is
    passed on to teachers that know one; ``logprobs`` asks for so many log-probs per token (0: none).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    n: int = 1
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int = 0


@dataclass(frozen=True)
class Answer:
    """What came back for one request: ``n`` texts, why each ended (``stop``, ``length``, ...), and what it cost.

    Token counts are None where the teacher does not tell them. ``logprobs`` holds, per text and token, the log-prob
    of each of the asked-for tokens; None where none were asked for. Half a surrogate pair, which no file can hold,
    becomes U+FFFD in texts. With ``more`` the teacher gave fewer texts than it was asked for and has more of them.
    """

    texts: tuple[str, ...]
    finish_reasons: tuple[str, ...]
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logprobs: tuple[tuple[Mapping[str, float], ...], ...] | None = None
    more: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(_SURROGATE.sub("\ufffd", text) for text in self.texts))


class Teacher(Protocol):
    """Answers one request at a time, from any thread; concurrency, retries and the store are built around it.

    ``name`` says which teacher it is in stores and reports, without keys or passwords.
    """

    name: str

    def answer(self, messages: Messages, sampling: Sampling) -> Answer:
        """What one sending brings, ``sampling.n`` texts or fewer; raises TeacherError with what failed and whether
        trying again can help."""
        ...
