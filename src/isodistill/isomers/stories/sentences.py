"""Small rules of English that every story of the logical families needs."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["NUMBER_WORDS", "article", "capitalise", "listing"]

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")


def capitalise(text: str) -> str:
    """The text with an upper-case first letter; the other letters stay as they are."""
    return text[:1].upper() + text[1:]


def article(noun: str) -> str:
    """The noun with "a" or "an" in front, by its first letter; the lexicons hold no silent h and no "you" sound."""
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def listing(words: Sequence[str]) -> str:
    """The words as "x, y, and z"."""
    return f"{', '.join(words[:-1])}, and {words[-1]}"
