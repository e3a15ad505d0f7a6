"""Reads proportional sharing back out of a text."""

from __future__ import annotations

import re

from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.check.reading import has, numbers, sentences

__all__ = ["parse"]

_PLACES = ("first", "second", "third")
_BEFORE_A_NAME = r".*\b(?:between|among|of|from|into|by|in|to|plants|pieces|numbers)\b"
_NO_NAME = {"the", "a", "an", "and", "of", "in", "to", "is", "are", "have", "whose", "with"}


def parse(question: str, choices: tuple[str, ...] | None = None) -> Parsed | None:
    """Structure, numbers and answer of a question, or None if it is not clearly of this family."""
    told = sentences(question)
    if choices or len(told) != 3 or not has(told[2], "how many|what is") or numbers(told[2]):
        return None
    split = _by_ratio(told[0]) or _by_turns(told[0])
    if split is None:
        return None
    ratio, names = split
    given, asked = _given(told[1], names), _sought(told[2], names)
    if given is None or asked is None or given[0] == asked:
        return None
    unit = _unit(ratio, *given)
    if unit is None:
        return None
    answer = unit * _units(ratio, asked)
    return Parsed("sharing", (len(ratio), given[0], asked), (*ratio, *given[1]), str(answer))


def _by_ratio(sentence: str) -> tuple[tuple[int, ...], list[set[str]]] | None:
    """The numbers of "in the ratio 3 to 5" and the words of each name in the list before it."""
    read = re.search(r"ratio (\d+(?: to \d+)+)\.$", sentence)
    if read is None or numbers(sentence) != numbers(read[1]):
        return None
    ratio = numbers(read[1])
    head, _, last = sentence[: read.start()].rpartition(" and ")
    earlier = head.split(", ")[-(len(ratio) - 1) :]
    earlier[0] = re.sub(_BEFORE_A_NAME, "", earlier[0])
    last = re.split(r",| in the| have| are| together", last)[0]
    return _distinct(ratio, [*earlier, last])


def _by_turns(sentence: str) -> tuple[tuple[int, ...], list[set[str]]] | None:
    """The numbers and names of "3 to one and 5 to the other each time"."""
    if not has(sentence, "each time|(?:in )?(?:each|every) (?:round|cycle)"):
        return None
    pairs = re.findall(r"(\d+) to ([^\d,.]+?)(?= each time| in each| in every| and \d|,|\.)", sentence)
    if len(pairs) != len(numbers(sentence)):
        return None
    return _distinct(tuple(int(share) for share, _ in pairs), [name for _, name in pairs])


def _distinct(ratio: tuple[int, ...], names: list[str]) -> tuple[tuple[int, ...], list[set[str]]] | None:
    """The ratio with the words that tell each name from the others; None if the names cannot be told apart."""
    words = [set(re.findall(r"[^\s,.]+", name)) - _NO_NAME for name in names]
    own = [mine - set().union(*words[:i], *words[i + 1 :]) for i, mine in enumerate(words)]
    if not 2 <= len(ratio) <= 3 or len(own) != len(ratio) or not all(own) or 0 in ratio:
        return None
    return ratio, own


def _place(sentence: str, names: list[set[str]]) -> str | None:
    """Which of the names stands in the sentence: its place, "" for none of them, None for several."""
    words = set(re.findall(r"[^\s,.?]+", sentence))
    found = [place for place, own in zip(_PLACES, names, strict=False) if own & words]
    return None if len(found) > 1 else "".join(found)


def _given(sentence: str, names: list[set[str]]) -> tuple[str, tuple[int, ...]] | None:
    """What a sentence makes known, and its numbers (the total before what is kept back)."""
    found, place = numbers(sentence), _place(sentence, names)
    if len(found) == 2 and place == "":
        if has(sentence, "adding .* gives|together with"):
            return "rest", found[::-1]
        return ("rest", found) if has(sentence, "but|kept") else None
    if len(found) != 1 or place is None:
        return None
    if has(sentence, "difference"):
        return ("difference", found) if _spans(sentence, names) else None
    return place or "total", found


def _spans(sentence: str, names: list[set[str]]) -> bool:
    """Whether a difference is the one between two parts, or between the largest and the smallest of three."""
    return has(sentence, "two") if len(names) == 2 else has(sentence, "largest and the smallest")


def _sought(asked: str, names: list[set[str]]) -> str | None:
    """What the question asks for."""
    if has(asked, "difference"):
        return "difference" if _spans(asked, names) else None
    sizes = [size for size in ("larger", "smaller") if has(asked, f"{size}|{size[:-1]}st")]
    place = _place(asked, names)
    if sizes:
        return sizes[0] if len(sizes) == 1 and place == "" else None
    return None if place is None else place or "total"


def _units(ratio: tuple[int, ...], what: str) -> int:
    """How many shares something makes up."""
    low, *_, high = sorted(ratio)
    if what in _PLACES:
        return ratio[_PLACES.index(what)]
    return {"larger": high, "smaller": low, "difference": high - low}.get(what, sum(ratio))


def _unit(ratio: tuple[int, ...], what: str, known: tuple[int, ...]) -> int | None:
    """The size of one share, or None if what is known does not divide into shares."""
    units = _units(ratio, what)
    amount = known[0] - sum(known[1:])
    return amount // units if units > 0 and amount > 0 and amount % units == 0 else None
