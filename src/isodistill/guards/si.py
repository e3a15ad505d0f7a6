"""Synaptic intelligence (arXiv 1703.04200)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isodistill.guards.base import QuadraticGuard, StageEnd

__all__ = ["SI"]


@dataclass
class SI(QuadraticGuard):
    """Entries whose way through the last stages lowered the loss are held firmly; no pass over the data is needed.

        c sum_i Om_i (theta_i - theta*_i)^2,    Om_i = sum over stages of w_i / (delta_i^2 + xi), never below 0
        w_i = - sum over steps of g_i dtheta_i

    g is the direction before this guard's pull and before clipping, dtheta the move that was made, delta the move over
    the whole stage. A negative Om_i would push the weights away; it is cut to 0 after every stage, as in the authors'
    code (ganguli-lab/pathint).

    Args:
        c: default 0.1. 0 is no guard.
        xi: default 0.1.

    Raises:
        ValueError: an option is out of range.
    """

    c: float = 0.1
    xi: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.c < math.inf:
            raise ValueError(f"c is {self.c}; it must be 0 or more, and finite")
        if not 0 < self.xi < math.inf:
            raise ValueError(f"xi is {self.xi}; it must be above 0, and finite")

    @property
    def strength(self) -> float:
        return 2 * self.c

    def begin(self, model: nn.Module, past: Mapping[str, Tensor] | None, seed: int) -> None:
        """Om of the stages so far, and an empty path."""
        super().begin(model, past, seed)
        past = past or {}
        self.Om = {n: past.get(f"Om/{n}", torch.zeros_like(p)).to(p.device) for n, p in self.parameters.items()}
        self.w = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self._g: dict[str, Tensor] = {}

    def weights(self) -> Mapping[str, Tensor]:
        """Om."""
        return self.Om

    @torch.no_grad()
    def after_backward(self) -> dict[str, float]:
        """Remember the direction and where the step begins."""
        self._g = {name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None}
        self._theta = {name: self.parameters[name].detach().clone() for name in self._g}
        return super().after_backward()

    @torch.no_grad()
    def after_step(self) -> dict[str, float]:
        """One piece of the path integral."""
        for name, g in self._g.items():
            self.w[name].sub_(g * (self.parameters[name] - self._theta[name]))
        return {}

    @torch.no_grad()
    def end(self, stage: StageEnd) -> dict[str, Any]:
        """Turn the path into importance."""
        for name, p in self.parameters.items():
            delta = p - self.reference[name]
            self.Om[name] = (self.Om[name] + self.w[name] / (delta**2 + self.xi)).clamp(min=0)
        return {"importance": sum(float(Om.sum()) for Om in self.Om.values())}

    def carried(self) -> dict[str, Tensor]:
        """Om."""
        return {f"Om/{name}": Om for name, Om in self.Om.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """The path so far."""
        return {f"w/{name}": w for name, w in self.w.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the path back."""
        self.w = {name: state[f"w/{name}"].to(w.device) for name, w in self.w.items()}
