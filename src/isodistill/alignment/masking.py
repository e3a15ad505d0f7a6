"""What the mask spaces of IGA share: options, running means per domain, controls, the remembered step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from isodistill.models.lora import DomainGradients
from isodistill.numerics import (
    Form,
    MaskStats,
    Norm,
    domain_statistics,
    lerp_and_statistics,
    permuted_mask,
    uniform_mask,
)

__all__ = ["Control", "DomainAverages", "MaskOptions", "RememberedStep", "Space", "controlled", "named"]

Control: TypeAlias = Literal["none", "random", "uniform"]


@dataclass(frozen=True)
class MaskOptions:
    """The options of IGA that a space needs; meanings in ``InvariantGradientAlignment``."""

    form: Form
    norm: Norm
    keep_rate: float
    grad_ema: float
    svd_rank: int | None
    control: Control


class Space(ABC):
    """Where the mask acts."""

    @abstractmethod
    def observe(self, gradients: DomainGradients, present: Tensor, tau: float) -> None:
        """Take in the step's domain gradients and make the masks."""

    @abstractmethod
    def mask_gradient(self, gradients: DomainGradients, present: Tensor) -> dict[str, float]:
        """Replace ERM's gradient in ``.grad`` by the masked one; returns metrics."""

    @abstractmethod
    def remember(self, optimizer: torch.optim.Optimizer) -> None:
        """Before the optimizer's step."""

    @abstractmethod
    def mask_step(self) -> dict[str, float]:
        """After the optimizer's step: keep the masked part of it; returns metrics."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """For an exact resume."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""


class DomainAverages:
    """Bias-corrected running mean of every domain's gradient: e_k = sum of decayed g_k / sum of decays.

    A domain that is absent from a step keeps its average. With decay 0 this is the step's gradient itself.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: Tensor | None = None  # (K, *shape), not yet corrected
        self.count: Tensor | None = None  # (K,) steps in which the domain was present

    def update(self, gradients: Tensor, present: Tensor) -> Tensor:
        """Take in (K, *shape) and return the averages of the domains seen so far, (K', *shape)."""
        if self.decay == 0:
            return gradients if bool(present.all()) else gradients[present]
        if self.average is None or self.count is None:
            self.average = torch.zeros_like(gradients)
            self.count = torch.zeros(len(gradients), dtype=torch.float64)
        self.average = self.average.to(gradients.device)  # a checkpoint is loaded on the CPU
        if bool(present.all()):
            self.average.lerp_(gradients, 1 - self.decay)
        else:
            self.average[present] = self.average[present].lerp(gradients[present], 1 - self.decay)
        self.count += present.cpu()
        seen = self.count > 0
        correction = (1 - self.decay ** self.count[seen]).to(gradients)
        average = self.average if bool(seen.all()) else self.average[seen]
        return average / correction.view(-1, *[1] * (gradients.dim() - 1))

    def statistics(self, gradients: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """``update`` with flat gradients (K, P), and mean (P,) and variance (P,) over the domains of its result."""
        average, count = self.average, self.count
        if average is None or count is None or not bool(present.all()) or len(set(count.tolist())) > 1:
            return domain_statistics(self.update(gradients, present))
        # All domains were seen equally often, so one correction serves them all and can wait for mean and variance.
        self.average = average.to(gradients.device)
        count += 1
        correction = 1 - self.decay ** float(count[0])
        mean, variance = lerp_and_statistics(self.average, gradients, 1 - self.decay)
        return mean.div_(correction), variance.div_(correction**2)

    def state_dict(self) -> dict[str, Tensor]:
        """Empty before the first update, or with decay 0."""
        if self.average is None or self.count is None:
            return {}
        return {"average": self.average, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back; an empty one means that nothing was seen."""
        if state:
            self.average, self.count = state["average"].clone(), state["count"].clone()


class RememberedStep:
    """The optimizer's step without its decoupled decay: after - (1 - lr * weight_decay) * before, per parameter."""

    def __init__(self) -> None:
        self.parameters: list[torch.nn.Parameter] = []
        self._origin: list[Tensor] = []

    def remember(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the parameters, decayed as the optimizer will decay them."""
        self.parameters, self._origin = [], []
        for group in optimizer.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:  # transformers keeps a group for tensors without decay, often empty
                continue
            decoupled = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
            factor = 1 - group["lr"] * group["weight_decay"] if decoupled else 1.0
            self.parameters += params
            self._origin += torch._foreach_mul([p.detach() for p in params], float(factor))

    def deltas(self) -> list[Tensor]:
        """The step of every remembered parameter."""
        return list(torch._foreach_sub([p.detach() for p in self.parameters], self._origin))


def controlled(
    mask: Tensor, x: Tensor, control: Control, generator: torch.Generator, *, by_axis: bool = False
) -> Tensor:
    """The mask itself, or the control that shares its density and step ratio on ``x``."""
    if control == "random":
        return permuted_mask(mask, x, generator, by_axis=by_axis)
    if control == "uniform":
        return uniform_mask(mask, x)
    return mask


def named(stats: MaskStats) -> dict[str, float]:
    """What the masks of a step did, under the names that are logged."""
    result = stats.result()
    return {"mask_density": result.pop("mean"), **result}
