"""Reads comparisons of two totals, and totals under a condition, back out of a text."""

from __future__ import annotations

import re

from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.check.reading import GROW, SHRINK, has, numbers, product, sentences

__all__ = ["parse"]

_DIFFERENCE = "difference|differ|how many more .* than"
_LARGER = "larger|longer|higher|better|more"
_SMALLER = "smaller|shorter|lower|worse|fewer|less"


def parse(question: str, choices: tuple[str, ...] | None = None) -> Parsed | None:
    """Structure, numbers and answer of a question, or None if it is not clearly of this family."""
    told = sentences(question)
    if choices or not 3 <= len(told) <= 4 or not told[-1].endswith("?") or numbers(told[-1]):
        return None
    pair = product(told[0])
    if pair is None:
        return None
    side, values, total = "mul", list(pair), pair[0] * pair[1]
    if len(told) == 4:
        change = _change(told[1])
        if change is None:
            return None
        side = "muladd" if change > 0 else "mulsub"
        values.append(abs(change))
        total += change
    rest = _rule(told[-2], told[-1], total) or _other_side(told[-2], told[-1], total)
    if rest is None or total <= 0:
        return None
    structure, more_values, answer = rest
    return Parsed("comparison", (side, *structure), (*values, *more_values), str(answer))


def _change(sentence: str) -> int | None:
    """The one number of a sentence, positive if it grows the total and negative if it shrinks it."""
    found = numbers(sentence)
    grows, shrinks = has(sentence, GROW), has(sentence, SHRINK)
    if len(found) != 1 or grows == shrinks:
        return None
    return found[0] if grows else -found[0]


def _rule(sentence: str, asked: str, total: int) -> tuple[tuple[str, str], tuple[int, ...], int] | None:
    """A condition on the total with its consequence, and the question for what comes out."""
    read = re.fullmatch(r"if ([^,]+?) (more than|above|fewer than|less than|below) (\d+)([^,\d]*), (.+)", sentence)
    if read is None or _sought(asked) is not None or not has(asked, "how many|how long|what is"):
        return None
    change = _change(read[5])
    if change is None:
        return None
    over, threshold = read[2] in ("more than", "above"), int(read[3])
    applies = total > threshold if over else total < threshold
    kind = ("over" if over else "under", "add" if change > 0 else "sub")
    return kind, (threshold, abs(change)), total + change if applies else total


def _other_side(sentence: str, asked: str, total: int) -> tuple[tuple[str, str], tuple[int, ...], int] | None:
    """A second total and the question that compares the two."""
    sought, found = _sought(asked), numbers(sentence)
    if sought is None or has(sentence, "if") or not 1 <= len(found) <= 2:
        return None
    values = found if len(found) == 1 else product(sentence)
    if values is None:
        return None
    other = values[0] if len(values) == 1 else values[0] * values[1]
    answer = {"diff": abs(total - other), "larger": max(total, other), "smaller": min(total, other)}[sought]
    return ("num" if len(values) == 1 else "mul", sought), values, answer


def _sought(asked: str) -> str | None:
    """Which comparison the question asks for."""
    if has(asked, _DIFFERENCE):
        return "diff"
    larger, smaller = has(asked, _LARGER), has(asked, _SMALLER)
    if larger == smaller:
        return None
    return "larger" if larger else "smaller"
