"""What a text shows without being understood: its numbers, whether it copies another, whether it changed language."""

from __future__ import annotations

import re
from collections import Counter
from fractions import Fraction
from typing import NamedTuple

__all__ = ["NEAR_COPY", "changed_language", "changed_numbers", "numbers_in", "overlap"]

NEAR_COPY = 0.5
"""Overlap from which a rewriting counts as a near-copy; docs/steps/isomers.md shows how true isomers are spread."""

_ENGLISH = 0.2  # least share of function words in an English text; the built-in problems have 0.25 and more

_FUNCTION = (
    "a about after all an and are as at be been before but by can did do does each every for from had has have he her "
    "him his how if in into is it its many more most much no not of on one or other per she so than that the their "
    "them then there they this to was were what when where which who will with"
)
_FUNCTION_WORDS = frozenset(_FUNCTION.split())
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: i for i, word in enumerate(_ONES.split())} | {word: 10 * i for i, word in enumerate(_TENS.split(), 2)}
_SCALES = {"hundred": 100, "thousand": 1000, "million": 1_000_000}
_SAID = {"half": Fraction(1, 2), "twice": Fraction(2), "double": Fraction(2), "triple": Fraction(3)}
_SAID |= {"dozen": Fraction(12), "quarter": Fraction(1, 4), "thrice": Fraction(3)}
_TOKEN = re.compile(r"\d[\d,]*(?:\.\d+)?(?:/\d+)?|[a-z]+")


class Numbers(NamedTuple):
    """The numbers of a text: those in digits, and those in words."""

    digits: Counter[Fraction]
    words: Counter[Fraction]


def numbers_in(text: str) -> Numbers:
    """The numbers of a text, in digits or English words ("1,200", "1/2", "twenty-five", "twice", "a dozen").

    Ordinals are not counted, nor are 0 and 1 ("one of them", "starts at zero").
    """
    digits: list[Fraction] = []
    said: list[Fraction] = []
    words: list[int] = []  # of the number word that is being read
    for token in [*_TOKEN.findall(text.lower()), ""]:
        if token in _SMALL and (not words or (words[-1] >= 20 and words[-1] % 10 == 0 and _SMALL[token] < words[-1])):
            words.append(_SMALL[token])
        elif token in _SCALES and words:
            words = [sum(words) * _SCALES[token]]
        else:
            said += [Fraction(sum(words))] if words else []
            words = [_SMALL[token]] if token in _SMALL else []
            digits += [_digits(token)] if token[:1].isdigit() else []
            said += [_SAID[token]] if token in _SAID else []
    return Numbers(_counted(digits), _counted(said))


def changed_numbers(source: str, text: str) -> str | None:
    """How the numbers of a rewriting differ from its source's; None where they do not.

    A number in digits must stand in the other text in digits or in words. Numbers in words alone may come and go
    ("the two shops"); whether they matter is for the reader to say.
    """
    ours, theirs = numbers_in(source), numbers_in(text)
    added, missing = theirs.digits - sum(ours, Counter()), ours.digits - sum(theirs, Counter())
    if not added and not missing:
        return None
    new, lost = (", ".join(str(n) for n in sorted(found.elements())) or "none" for found in (added, missing))
    return f"new in the text: {new}; missing: {lost}"


def overlap(left: str, right: str) -> float:
    """Share of the content words of either text that stand in both (Jaccard); 0 where there are none."""
    ours, theirs = _content_words(left), _content_words(right)
    either = ours | theirs
    return len(ours & theirs) / len(either) if either else 0.0


def changed_language(source: str, text: str) -> bool:
    """Whether an English source became a text that is not English; sources in other languages are not judged."""
    return _english(source) and not _english(text)


def _counted(numbers: list[Fraction]) -> Counter[Fraction]:
    return Counter(number for number in numbers if number not in (0, 1))


def _digits(token: str) -> Fraction:
    over, _, under = token.replace(",", "").partition("/")
    return Fraction(over) / Fraction(under) if under and int(under) else Fraction(over)


def _content_words(text: str) -> frozenset[str]:
    words = re.findall(r"[^\W\d_]{3,}", text.lower())
    return frozenset(word.removesuffix("s") for word in words if word not in _FUNCTION_WORDS)


def _english(text: str) -> bool:
    words = re.findall(r"[^\W\d_]+", text.lower())
    return bool(words) and sum(word in _FUNCTION_WORDS for word in words) >= _ENGLISH * len(words)
