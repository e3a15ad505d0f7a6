"""What the student is taught on each token."""

from __future__ import annotations

from collections.abc import Callable

from isodistill.objectives.base import Objective, StudentOutput, TrainedTokens
from isodistill.objectives.ce import CrossEntropy

__all__ = ["OBJECTIVES", "CrossEntropy", "Objective", "StudentOutput", "TrainedTokens"]

OBJECTIVES: dict[str, Callable[..., Objective]] = {"ce": CrossEntropy}
