"""The usual feature distillation, as baselines of Flex-KD: a learned linear projector, and CKA, which needs none.

    projector:  L = mean over tokens and dimensions of (F_S W' + c - F_T)^2,   W (d_T, d_S), c (d_T,) learned
    cka:        L = 1 - CKA(F_S, F_T)                                          arXiv 1905.00414, linear kernel

W and c have an AdamW of their own; they are no part of the student and are thrown away after training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from isodistill.numerics.correlation import linear_cka
from isodistill.terms.base import FeatureTerm
from isodistill.terms.learner import Learner

__all__ = ["CKA", "Projector"]


@dataclass
class Projector(FeatureTerm):
    """Hidden states through a learned linear map, MSE to all of the teacher's; (d_S + 1) d_T extra parameters.

    Args:
        b: factor of the loss; 0 is the loss without it. Default 1.
        learning_rate: of the map. Default 1e-3.

    Raises:
        ValueError: an option is out of range.
    """

    name: ClassVar[str] = "projector"

    b: float = 1.0
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__init__()
        self.layers = [[-1, -1]]
        self.require("learning_rate", b=0)

    def setup(self, widths: list[tuple[int, int]], seed: int) -> None:
        """The map, drawn from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.learner = Learner(nn.Linear(*widths[0]), self.learning_rate)

    def loss(self, pair: int, F_S: Tensor, F_T: Tensor, step: int) -> Tensor:
        """See the module."""
        assert self.learner is not None
        project = self.learner.on(F_S.device)
        with torch.autocast(F_S.device.type, enabled=False):
            L: Tensor = (project(F_S.float()) - F_T.float()).square().mean()
        self.measure("loss", L)
        return L


@dataclass
class CKA(FeatureTerm):
    """1 - CKA of the two sides; free of width, blind to rotations of the features.

    Args:
        b: factor of the loss; 0 is the loss without it. Default 1.

    Raises:
        ValueError: b is negative or not finite.
    """

    name: ClassVar[str] = "cka"

    b: float = 1.0

    def __post_init__(self) -> None:
        super().__init__()
        self.layers = [[-1, -1]]
        self.require(b=0)

    def loss(self, pair: int, F_S: Tensor, F_T: Tensor, step: int) -> Tensor:
        """See the module; 0, with its graph, for fewer than two rows."""
        L = 1 - linear_cka(F_S, F_T) if len(F_S) > 1 else (0.0 * F_S).sum()
        self.measure("loss", L)
        return L
