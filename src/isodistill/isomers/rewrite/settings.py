"""The group ``rewrite`` of a recipe: the one place for its names and defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isodistill.errors import UserError
from isodistill.isomers.words import NEAR_COPY
from isodistill.recipe import parse_settings
from isodistill.teachers.settings import TeacherSettings

__all__ = ["Rewrite", "parse_rewrite"]


@dataclass(frozen=True)
class Rewrite:
    """The group ``rewrite`` of a recipe.

    Attributes:
        domains: what every problem is rewritten into.
        writer: ``TeacherSettings`` of the teacher that rewrites.
        reader: of the teacher that reads back; null takes the writer, which then judges its own work.
        temperature: of the writer; the reader is greedy.
        max_tokens: longest reply of either.
        seed: of the sampling.
        near_copy: overlap of content words from which a text is a copy.
        prompts: folder with wordings of yours in place of ours; see ``load_prompts``.
        max_cost: most money for all answers of both; needs the prices of both.
    """

    domains: list[str] = field(default_factory=list)
    writer: dict[str, Any] = field(default_factory=dict)
    reader: dict[str, Any] | None = None
    temperature: float = 0.7
    max_tokens: int = 600
    seed: int = 0
    near_copy: float = NEAR_COPY
    prompts: str | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"rewrite.max_tokens is {self.max_tokens}; it must be at least 1.")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"rewrite.temperature is {self.temperature}; it must be a number from 0 up.")
        if not 0 < self.near_copy <= 1:
            raise UserError(f"rewrite.near_copy is {self.near_copy}; it must be above 0 and at most 1.")
        if self.max_cost is not None and not (math.isfinite(self.max_cost) and self.max_cost >= 0):
            raise UserError(f"rewrite.max_cost is {self.max_cost}; it must be a number from 0 up.")

    @property
    def of_writer(self) -> TeacherSettings:
        """The teacher that rewrites."""
        return parse_settings(TeacherSettings, self.writer, [], "rewrite.writer")

    @property
    def of_reader(self) -> TeacherSettings:
        """The teacher that reads back."""
        if self.reader is None:
            return self.of_writer
        return parse_settings(TeacherSettings, self.reader, [], "rewrite.reader")


def parse_rewrite(tree: Mapping[str, Any]) -> Rewrite:
    """The settings of a recipe's group ``rewrite``, with its teachers checked.

    Raises:
        UserError: an unknown key, a value of the wrong type or out of range.
    """
    settings = parse_settings(Rewrite, tree, [], "the group rewrite of the recipe")
    prices = settings.of_writer.limits.prices, settings.of_reader.limits.prices
    if settings.max_cost is not None and None in prices:
        raise UserError("rewrite.max_cost needs price_prompt and price_completion of writer and reader.")
    if not settings.domains or len(set(settings.domains)) < len(settings.domains):
        raise UserError(f"rewrite.domains is {settings.domains}; name at least one, and each of them once.")
    return settings
