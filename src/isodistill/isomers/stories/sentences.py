"""Small rules of English that every story of the logical families needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["NUMBER_WORDS", "Event", "article", "capitalise", "listing", "with_s"]

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


def with_s(word: str) -> str:
    """The plural of a regular noun, and the third person of a regular verb: "juror" "jurors", "fry" "fries"."""
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


@dataclass(frozen=True)
class Event:
    """Something that happens or not: a subject in the singular and a predicate, either "be ..." or a plain verb."""

    subject: str
    predicate: str

    def clause(self, happens: bool) -> str:
        """As a statement: "the bell rings", "the bell does not ring", "the gate is open", "the gate is not open"."""
        verb, _, rest = self.predicate.partition(" ")
        if verb == "be":
            return f"{self.subject} is {rest}" if happens else f"{self.subject} is not {rest}"
        if not happens:
            return f"{self.subject} does not {self.predicate}"
        return f"{self.subject} {with_s(verb)} {rest}".strip()

    @property
    def question(self) -> str:
        """As a question without its mark: "does the bell ring", "is the gate open"."""
        verb, _, rest = self.predicate.partition(" ")
        return f"is {self.subject} {rest}" if verb == "be" else f"does {self.subject} {self.predicate}"
