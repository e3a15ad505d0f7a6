"""What a structure family owes: draw a problem without words, solve it, tell it in a domain."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from isodistill.data.rows import AnswerType

__all__ = ["DOMAINS", "HELD_OUT_DOMAINS", "TRAIN_DOMAINS", "Family", "Problem", "Telling", "Value"]

TRAIN_DOMAINS = ("mathematics", "medicine", "law", "science")
HELD_OUT_DOMAINS = ("cooking", "sports", "finance", "astronomy", "gardening", "logistics")
DOMAINS = TRAIN_DOMAINS + HELD_OUT_DOMAINS

Value = int | str | bool | tuple["Value", ...]


@dataclass(frozen=True)
class Problem:
    """The logic of a problem and its values, without its words.

    Attributes:
        family: name of the structure family.
        shape: the discrete knobs (which operations, how many steps, who is asked); the *structure*.
        values: numbers and abstract entity indices; never words.
    """

    family: str
    shape: tuple[str | int, ...]
    values: Mapping[str, Value]

    @property
    def structure_id(self) -> str:
        """Family and shape: the logical template that splits keep on one side."""
        return "/".join([self.family, "-".join(str(s) for s in self.shape)])


@dataclass(frozen=True)
class Telling:
    """A problem told in one domain.

    ``rationale`` is the worked solution in short plain sentences, *without* the closing "The answer is ..." which the
    generator adds the same way for every family. ``answer`` follows the rows' convention for its type. For answers that
    are names (``answer_type`` "choice"), ``choices`` lists the options, in the same structural order in every domain.
    """

    question: str
    rationale: str
    answer: str
    choices: tuple[str, ...] | None = None


class Family(Protocol):
    """A structure family: the same logic told in every domain of ``DOMAINS``."""

    name: str
    answer_type: AnswerType

    def shapes(self, difficulty: int) -> list[tuple[str | int, ...]]:
        """All structures at a difficulty (1 easy, 2 middle, 3 hard); at least 6 at every level, 12 over all."""
        ...

    def draw(self, shape: tuple[str | int, ...], rng: random.Random) -> Problem:
        """Values for a structure; answers are spread evenly (yes/no balanced, choice letters balanced)."""
        ...

    def solve(self, problem: Problem) -> str:
        """The canonical answer from values alone: a decimal, yes/no, or the letter of the option."""
        ...

    def tell(self, problem: Problem, domain: str, rng: random.Random) -> Telling:
        """The problem in the words of one domain; ``rng`` picks among its phrasings and names."""
        ...
