"""What a term is: options, a neutral setting, metrics, perhaps parameters of its own; and what one on features owes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from isodistill.terms.learner import Learner

__all__ = ["FeatureTerm", "Term"]


class Term(ABC):
    """Something that is added to the loss.

    Attributes:
        name: in recipes and metrics.
        learner: parameters of its own with their optimizer, which are no part of the student; None without any.
    """

    name: ClassVar[str]
    learner: Learner | None = None

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}

    @property
    @abstractmethod
    def is_neutral(self) -> bool:
        """Training is what it is without the term."""

    @property
    def needs_teacher(self) -> bool:
        """It looks at the hidden states of a teacher at the trained positions."""
        return False

    def require(self, *above: str, **least: float) -> None:
        """Refuse options that are not finite, not above 0 (``above``), or smaller than ``least``.

        Raises:
            ValueError: naming the first such option.
        """
        for name in above:
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number above 0")
        for name, bound in least.items():
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= bound):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number, {bound} or more")

    def measure(self, name: str, value: Tensor | float, n: int = 1) -> None:
        """Add the mean of ``n`` values to the mean that ``take_metrics`` gives."""
        value = value.detach().double().cpu() if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
        one = torch.stack([n * value, torch.full_like(value, n)])
        self._sums[name] = self._sums[name] + one if name in self._sums else one

    def take_metrics(self) -> dict[str, float]:
        """The means, and nothing is left of them."""
        sums, self._sums = self._sums, {}
        return {name: float(total / n) for name, (total, n) in sums.items()}

    def step(self) -> None:
        """The gradients of a step are complete: move what it has of its own."""
        if self.learner is not None:
            self.learner.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything beyond the student's weights that an exact resume needs."""
        return {} if self.learner is None else self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state back."""
        if self.learner is not None:
            self.learner.load_state_dict(state)


class FeatureTerm(Term):
    """b L_feature added to the loss; ``b`` 0 is the loss without it, bit for bit.

    The loss of a micro-batch counts by its share of the step's trained tokens. Where an alignment keeps domains apart,
    the term is made domain by domain, so it is a part of each domain's loss.

    Attributes:
        b: the factor.
        layers: pairs of teacher layer and student layer; -1 is the last hidden state after the final norm.
    """

    b: float
    layers: list[list[int]]

    @property
    def is_neutral(self) -> bool:
        """``b`` is 0."""
        return self.b == 0

    @property
    def needs_teacher(self) -> bool:
        """Always, but where it is left out."""
        return not self.is_neutral

    def setup(self, widths: list[tuple[int, int]], seed: int) -> None:
        """Learn d_S and d_T of every pair of layers, before training and before state is loaded."""

    @abstractmethod
    def loss(self, pair: int, F_S: Tensor, F_T: Tensor, step: int) -> Tensor:
        """L of one pair of layers without its factor: features (N, d_S) with gradient and (N, d_T) without."""
