"""Read an ordering problem back: comparatives, superlatives and ordinals of English, solved by trying all orders."""

from __future__ import annotations

import re
from itertools import permutations
from typing import TypeAlias

from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.check.reading import sentences

__all__ = ["parse"]

Clue: TypeAlias = tuple[str, int, int]

# Where an adjective or adverb lies on its scale; one that is missing here cannot be read.
_LOW = "short light small early cheap low near close cool cold mild dim young thin fast quick narrow shallow little few"
_HIGH = "long heavy large late high far warm hot tall big great bright old thick slow wide deep loud strong"
_LOW_COMPARATIVES = {"before", "ahead", "sooner", "less", "fewer"}
_HIGH_COMPARATIVES = {"after", "behind", "more", "farther", "further"}
_LOW_SUPERLATIVES = {"first", "least", "fewest"}
_HIGH_SUPERLATIVES = {"last", "most", "farthest", "furthest"}
_ORDINALS = {"second": 1, "third": 2, "fourth": 3, "fifth": 4}
_LETTERS = "ABCDE"


def parse(question: str, choices: tuple[str, ...] | None = None) -> Parsed | None:
    """Structure and answer of an ordering problem; None when any clue is unclear or several answers are possible.

    Things are numbered by their place among the options. A clue is ("before", i, j) for "i is lower than j" or
    ("place", i, k) for "i stands at place k"; the structure holds their kinds, the values all of it in text order.
    """
    if not choices or not 2 <= len(choices) <= len(_LETTERS):
        return None
    *told, asked = sentences(question)
    place = _place(_words(asked), len(choices))
    if not asked.endswith("?") or _mentions(asked, choices) or place is None:
        return None
    clues: list[Clue] = []
    for sentence in told:
        if 0 < len(_mentions(sentence, choices)) < 3:
            clue = _clue(sentence, choices)
            if clue is None:
                return None
            clues.append(clue)
    answer = _answer(clues, place, len(choices))
    if answer is None:
        return None
    return Parsed("ordering", (len(choices), place, tuple(kind for kind, _, _ in clues)), tuple(clues), answer)


def _words(sentence: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", sentence)


def _mentions(sentence: str, choices: tuple[str, ...]) -> list[tuple[int, int]]:
    """(position in the sentence, number) of every option that is named, in the order of the text."""
    found = [
        (match.start(), i)
        for i, choice in enumerate(choices)
        for match in re.finditer(rf"\b{re.escape(choice.lower())}\b", sentence)
    ]
    return sorted(found)


def _forms(ending: str) -> dict[str, int]:
    """Inflected adjectives with -1 for the low and +1 for the high end: "shorter", "bigger", "earlier", ..."""
    forms: dict[str, int] = {}
    for adjectives, sign in ((_LOW, -1), (_HIGH, 1)):
        for word in adjectives.split():
            stem = word.removesuffix("e")
            stem = stem[:-1] + "i" if stem.endswith("y") else stem
            forms |= {stem + ending: sign, stem + stem[-1] + ending: sign}
    return forms


_COMPARATIVES = _forms("er") | dict.fromkeys(_LOW_COMPARATIVES, -1) | dict.fromkeys(_HIGH_COMPARATIVES, 1)
_SUPERLATIVES = _forms("est") | dict.fromkeys(_LOW_SUPERLATIVES, -1) | dict.fromkeys(_HIGH_SUPERLATIVES, 1)


def _clue(sentence: str, choices: tuple[str, ...]) -> Clue | None:
    """One statement about one or two options; None when it is neither a clear comparison nor a clear place."""
    named = _mentions(sentence, choices)
    if re.search(r"\b(?:not|never|nor|neither|no)\b|n't", sentence):
        return None
    if len(named) == 1:
        place = _place(_words(sentence), len(choices))
        return None if place is None else ("place", named[0][1], place)
    signs = [
        (m.start(), _COMPARATIVES[m.group()]) for m in re.finditer(r"[a-z]+", sentence) if m.group() in _COMPARATIVES
    ]
    (_, one), (second_at, two) = named
    if len(signs) != 1 or one == two:
        return None
    at, sign = signs[0]
    # The standard of comparison is the first option after the comparative: "x is taller than y", "after x came y".
    standard, target = (two, one) if named[0][0] < at < second_at else (one, two)
    if at > second_at:
        return None
    return ("before", target, standard) if sign < 0 else ("before", standard, target)


def _place(words: list[str], n: int) -> int | None:
    """The place, from the low end, that "second lightest", "last", "third" or "most expensive" means among n."""
    signs = {_SUPERLATIVES[word] for word in words if word in _SUPERLATIVES}
    steps = [_ORDINALS[word] for word in words if word in _ORDINALS]
    if len(signs) > 1 or len(steps) > 1 or not (signs or steps):
        return None
    step = steps[0] if steps else 0
    if step >= n:
        return None
    return n - 1 - step if signs == {1} else step


def _answer(clues: list[Clue], place: int, n: int) -> str | None:
    """The letter that stands at the place in every order allowed by the clues; None if there are several or none."""

    def allowed(at: tuple[int, ...]) -> bool:
        return all(at[i] < at[j] if kind == "before" else at[i] == j for kind, i, j in clues)

    answers = {at.index(place) for at in permutations(range(n)) if allowed(at)}
    return _LETTERS[answers.pop()] if len(answers) == 1 else None
