"""Guesses at the next tokens of an answer, from what stood after the same words before.

Isomers of one set have nearly the same answer, so an answer in the making often follows one that is further ahead. A
greedy answer stays what it is: a guess counts only where it is the likeliest token, which one forward of several
positions checks.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Drafts"]

_CONTEXT = 6
"""Tokens that must agree."""
_SEEN = 2
"""How often in a row they must have been followed by the same token: a wrong guess costs a position."""
_MOST = 4
"""Longest guess."""


class Drafts:
    """What followed each run of ``_CONTEXT`` tokens where it stood last, in the prompts and answers shown so far.

    With the settings above a student trained for 28 steps took 1.2 tokens a step, over eight of ten guesses right.
    Replayed on the reference answers of isomers it is 1.7 tokens and 95 %, on those of the untrained student 1.1 and
    82 %.
    """

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], tuple[int, int]] = {}

    def learn(self, tokens: Sequence[int], new: int) -> None:
        """Note what the last ``new`` of ``tokens`` followed."""
        for i in range(max(len(tokens) - new, _CONTEXT), len(tokens)):
            context = tuple(tokens[i - _CONTEXT : i])
            known, seen = self._next.get(context, (tokens[i], 0))
            self._next[context] = (tokens[i], seen + 1 if known == tokens[i] else 1)

    def guess(self, tokens: Sequence[int], most: int) -> list[int]:
        """The tokens that may come after ``tokens``, at most ``most``; empty when nothing like their end was seen."""
        context = tuple(tokens[-_CONTEXT:])
        guessed: list[int] = []
        while len(guessed) < min(most, _MOST):
            token, seen = self._next.get(context, (0, 0))
            if seen < _SEEN:
                break
            guessed.append(token)
            context = (*context[1:], token)
        return guessed
