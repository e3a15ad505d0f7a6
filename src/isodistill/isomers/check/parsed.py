"""What the check reads out of a text: the structure, the values and the answer that follow from the words alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Item", "Parsed"]

Item: TypeAlias = "int | str | bool | tuple[Item, ...]"


@dataclass(frozen=True, slots=True)
class Parsed:
    """One problem as read from its text; members of an isomer set give equal objects.

    Attributes:
        family: name of the structure family whose parser understood the text.
        structure: the logic without its numbers.
        values: the numbers (or numbered entities), in the order of the structure.
        answer: solved from structure and values by the parser's own code; canonical, as in the rows.
    """

    family: str
    structure: tuple[Item, ...]
    values: tuple[Item, ...]
    answer: str
