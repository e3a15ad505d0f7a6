"""Reads schedules and intervals back out of a text."""

from __future__ import annotations

import re
from itertools import pairwise

from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.check.reading import has, numbers, sentences

__all__ = ["parse"]

_POINT = re.compile(r"\b(?:(?:at|on|for) (?:minute|hour|day) |(?:at|to|number) )(\d+)\b")
_JOIN = re.compile(r"(?:(\d+) \w+s (after|before)|right at) the end of ")
_TOGETHER = "together|at the same|in parallel|while"


def parse(question: str, choices: tuple[str, ...] | None = None) -> Parsed | None:
    """Structure, numbers and answer of a question, or None if it is not clearly of this family."""
    told = sentences(question)
    if choices or len(told) < 3 or numbers(told[-1]):
        return None
    asked = _sought(told[-1])
    point = _POINT.search(told[0])
    known = None if asked == "end" else _POINT.search(told[-2])
    chain = told[1:-1] if asked == "end" else told[1:-2]
    if asked is None or (point is None) != (asked == "begin") or (known is None) != (asked == "end") or not chain:
        return None
    if len(numbers(told[0])) != (point is not None) or (known and len(numbers(told[-2])) != 1):
        return None
    links = [_first(chain[0]), *(_joined(sentence, before) for before, sentence in pairwise(chain))]
    if None in links:
        return None
    read = [link for link in links if link is not None]
    length = _length(read)
    start, end = int(point[1]) if point else 0, int(known[1]) if known else 0
    answer = {"end": start + length, "begin": end - length, "left": end - start - length}[asked]
    if answer <= 0:
        return None
    values = [*([start] if point else []), *(n for _, found in read for n in found), *([end] if known else [])]
    return Parsed("schedule", (*(kind for kind, _ in read), asked), tuple(values), str(answer))


def _sought(asked: str) -> str | None:
    """What the question asks for."""
    if has(asked, "left"):
        return "left" if has(asked, "how many") else None
    if not has(asked, "(?:at|on) which (?:minute|hour|day|number)|which number"):
        return None
    return "begin" if has(asked, "begins?|begun|starts?|started") else "end"


def _first(sentence: str) -> tuple[str, tuple[int, ...]] | None:
    """The activity, or the two side by side, with which the chain begins."""
    found = numbers(sentence)
    if _JOIN.search(sentence) or len(found) not in (1, 2) or (len(found) == 2) != has(sentence, _TOGETHER):
        return None
    return ("run" if len(found) == 1 else "both"), found


def _joined(sentence: str, before: str) -> tuple[str, tuple[int, ...]] | None:
    """A further activity: how it follows the one told before, and its numbers (the time between first).

    After two activities side by side, only the end of the longer one fixes the time.
    """
    join = _JOIN.search(sentence)
    if join is None:
        return None
    durations = numbers(sentence[: join.start()] + sentence[join.end() :])
    side_by_side = len(numbers(before)) == 2 and not _JOIN.search(before)
    if len(durations) != 1 or side_by_side != has(sentence[join.end() :], "longer"):
        return None
    if join[1] is None:
        return "then", durations
    return ("gap" if join[2] == "after" else "lap"), (int(join[1]), *durations)


def _length(chain: list[tuple[str, tuple[int, ...]]]) -> int:
    """The time from the start of the first activity to the end of the last."""
    total = 0
    for kind, found in chain:
        if kind == "both":
            total += max(found)
        elif kind == "lap":
            total += found[1] - found[0]
        else:
            total += sum(found)
    return total
