"""The group ``steps`` of VCRD: how the next steps of a trace are proposed and scored; names and defaults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["SEGMENTS", "StepSettings"]

SEGMENTS = ("lines", "paragraphs", "sentences", "statements")


@dataclass(frozen=True)
class StepSettings:
    """Step mode.

    Attributes:
        segment: where steps end: ``sentences``, ``lines``, ``paragraphs`` (blank lines) or code ``statements``.
        scorer: ``{name: rule}``, ``{name: rollout, n: 4}``, ...; see ``isodistill.validity``.
        n_prefix: steps drawn from each trace; the others keep w = 1.
        temperature: of the student's proposals.
        max_tokens: longest proposal.
        every: optimizer steps after which a row's proposals are made anew; 0 keeps those of its first visit.
        limit: seconds a scorer may take for one step, before that counts as a failure.
        max_failed: share of steps that may stay without a score before training stops.
    """

    segment: str = "sentences"
    scorer: dict[str, Any] = field(default_factory=lambda: {"name": "likelihood"})
    n_prefix: int = 4
    temperature: float = 0.7
    max_tokens: int = 64
    every: int = 0
    limit: float = 60.0
    max_failed: float = 0.2

    def __post_init__(self) -> None:
        if self.segment not in SEGMENTS:
            raise ValueError(f"steps.segment is {self.segment!r}; choose one of {', '.join(SEGMENTS)}")
        if "name" not in self.scorer:
            raise ValueError("steps.scorer needs a name, as in {name: rule}")
        for name, least in (("n_prefix", 1), ("max_tokens", 1), ("every", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"steps.{name} is {getattr(self, name)}; it must be at least {least}")
        for name in ("temperature", "limit"):
            if getattr(self, name) <= 0:
                raise ValueError(f"steps.{name} is {getattr(self, name):g}; it must be above 0")
        if not 0 <= self.max_failed <= 1:
            raise ValueError(f"steps.max_failed is {self.max_failed:g}; it is a share, 0 to 1")
