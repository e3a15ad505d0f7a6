"""Small networks that learn a stream of tasks without their old data: ang-DEN (arXiv 2112.09175) and its rivals."""

from __future__ import annotations

from isodistill.continual.decide import Decision, SplitRule
from isodistill.continual.den import AngularDEN, DenOptions
from isodistill.continual.mlp import GrowingMLP

__all__ = ["AngularDEN", "Decision", "DenOptions", "GrowingMLP", "SplitRule"]
