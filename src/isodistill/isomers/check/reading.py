"""Plain reading of short English questions about numbers: sentences, numbers, cue words and products."""

from __future__ import annotations

import re

__all__ = ["GROW", "SHRINK", "has", "numbers", "product", "sentences"]

# Words and phrases that say that a quantity grows or shrinks, as alternatives of a regular expression.
GROW = (
    "added|additional|adds?|another|appears?|are born|arrives?|attached|brings?|come in|come up|contributes?|"
    "credits?|donates?|extra|further|gains?|hatch|increased?|increases?|inserts?|introduces?|lends?|lengthened|"
    "loaded|more|new|receives?|requests|supplies|to the right"
)
SHRINK = (
    "back|cancelled|cancels?|charges?|costs?|crossed|cut off|decreased?|deducts?|deleted|deletes|destroys?|dies?|"
    "digs up|discarded|discards?|drained|drops?|eaten|eats?|erased?|evaporate|excludes?|fewer|gives away|go home|"
    "injected|kills?|leave|less|loses?|not count|(?<!-)off|releases?|removes?|repeals?|rot|sells?|sent|shipped|"
    "shortened|strikes?|struck|subtracted|subtracts?|take away|takes away|takes out|thrown|throws|to the left|"
    "unloaded|unloads?|used|uses?|withdrawn|withdraws?"
)

_TIME = "second|minute|hour|day|night|week|month|year"
_RATE = re.compile(rf"\bper \w+|\b(?:a|an|each|every) (?:{_TIME})\b")
_EACH_OF = re.compile(r"\beach of (?:the |its |her |his |their )?(\d+)")
_EACH = re.compile(r"\b(?:each|every|apiece)\b")
_SHARES = re.compile(r"\d+ to ")
_FACTORS = re.compile(r"product of \d+ and \d+|\d+ [a-z ]+ wide and \d+ [a-z ]+ high")


def sentences(text: str) -> list[str]:
    """The sentences of a text in lower case, the question last."""
    return [s.lower() for s in re.split(r"(?<=[.?!])\s+", text.strip()) if s]


def numbers(sentence: str) -> tuple[int, ...]:
    """All numbers written in digits, in the order of the text."""
    return tuple(int(n) for n in re.findall(r"\d+", sentence))


def has(sentence: str, words: str) -> bool:
    """Whether one of the words (alternatives of a regular expression, whole words) stands in the sentence."""
    return re.search(rf"\b(?:{words})\b", sentence) is not None


def product(sentence: str) -> tuple[int, int] | None:
    """Number of groups and size of one group in a sentence with two numbers; None if the roles are not clear.

    "6 trays with 4 doses each", "4 doses a day for 6 days" and "4 doses for each of 6 wards" are all (6, 4).
    """
    found = list(re.finditer(r"\d+", sentence))
    if len(found) != 2 or _SHARES.search(sentence):
        return None
    first, second = int(found[0].group()), int(found[1].group())
    between, after = sentence[found[0].end() : found[1].start()], sentence[found[1].end() :]
    if groups := _EACH_OF.search(sentence):
        return (first, second) if groups.start(1) == found[0].start() else (second, first)
    if _RATE.search(between):
        return second, first
    if _EACH.search(between) or _EACH.search(after) or _RATE.search(after) or _FACTORS.search(sentence):
        return first, second
    return None
