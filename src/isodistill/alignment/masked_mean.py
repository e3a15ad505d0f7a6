"""What AND-mask and SAND-mask share: a mask per entry on ERM's step, made of averaged domain gradients.

    e_k  = bias-corrected running mean of g_k                (grad_ema 0: g_k itself)
    step = m * (what ERM would do),  divided by mean(m) over the tensor if ``renorm``

Running means and masking the update are those of IGA, so that the masks are compared and not the care around them.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isodistill.alignment.masking import Control, DomainAverages, RememberedStep, controlled, named
from isodistill.alignment.per_domain import PerDomain, leave
from isodistill.models.lora import DomainGradients, LoraLayer
from isodistill.numerics import MaskStats

__all__ = ["MaskedMean", "agreement"]


def agreement(averages: Tensor) -> Tensor:
    """c = abs((1/K) sum_k sign e_k) (P,) of averages (K, P): 1 where all K signs agree, 0 where they cancel."""
    total = torch.zeros_like(averages[0])
    for e in averages:
        total += e.sign()
    return total.abs_().div_(len(averages))


@dataclass
class MaskedMean(PerDomain):
    """A mask m on ERM's step; subclasses say what m is.

    Args:
        grad_ema: decay of the running mean of every domain's gradient; 0 takes this step's gradients alone.
        apply_to: mask the ``gradient`` or the ``update`` of the optimizer; ``auto`` masks the update unless the
            optimizer is SGD. Decoupled weight decay stays outside the mask.
        renorm: divide by the mean of the mask over the tensor, as the reference codes do.
        control: ``random`` replaces the mask by a permuted one of equal density and step ratio, ``uniform`` by a
            constant of equal step ratio.
    """

    grad_ema: float = 0.95
    apply_to: Literal["auto", "gradient", "update"] = "auto"
    renorm: bool = False
    control: Control = "none"

    def __post_init__(self) -> None:
        if not 0 <= self.grad_ema < 1:
            raise ValueError(f"alignment.grad_ema is {self.grad_ema}; it must be at least 0 and below 1")
        for name, value, allowed in (
            ("apply_to", self.apply_to, ("auto", "gradient", "update")),
            ("control", self.control, ("none", "random", "uniform")),
        ):
            if value not in allowed:
                raise ValueError(f"alignment.{name} is {value!r}; choose one of {', '.join(allowed)}")
        self._averages = DomainAverages(self.grad_ema)
        self._masks: dict[torch.nn.Parameter, Tensor] = {}
        self._remembered = RememberedStep()

    @abstractmethod
    def mask(self, averages: Tensor) -> Tensor:
        """The mask (n,) in [0, 1] of one tensor from its averaged gradients (K, n), K at least 1."""

    def setup(self, *, layers: list[LoraLayer], total_steps: int, adaptive: bool, seed: int) -> None:
        """Choose what is masked and seed the random control."""
        self._generator = torch.Generator().manual_seed(seed)
        self._mask_update = self.apply_to == "update" or (self.apply_to == "auto" and adaptive)

    def update(self, gradients: DomainGradients, present: Tensor) -> dict[str, float]:
        """ERM's gradient, masked or with the mask kept for the optimizer's step."""
        leave(gradients.flat[present].mean(0), gradients)
        averages = self._averages.update(gradients.flat, present)
        start = 0
        for p in gradients.parameters.values():
            self._masks[p] = self.mask(averages[:, start : start + p.numel()]).view(p.shape)
            start += p.numel()
        if self._mask_update:
            return {}
        parameters = [p for p in self._masks if p.grad is not None]
        grads = [p.grad for p in parameters if p.grad is not None]
        factors, metrics = self._factors(parameters, grads)
        torch._foreach_mul_(grads, factors)
        return metrics

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember the parameters, decayed as the optimizer will decay them."""
        if self._mask_update:
            self._remembered.remember(optimizer)

    def after_step(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Take (1 - m) * step back, so that m = 1 leaves the optimizer's result bit for bit."""
        if not self._mask_update:
            return {}
        steps = self._remembered.deltas()
        parameters, deltas = list(steps), list(steps.values())
        factors, metrics = self._factors(parameters, deltas)
        with torch.no_grad():
            torch._foreach_sub_(list[Tensor](parameters), torch._foreach_mul([1 - f for f in factors], deltas))
        return metrics

    def _factors(self, parameters: list[torch.nn.Parameter], xs: list[Tensor]) -> tuple[list[Tensor], dict[str, float]]:
        """What the entries of ``xs`` are multiplied by, and what that did."""
        stats, factors = MaskStats(), []
        for p, x in zip(parameters, xs, strict=True):
            mask = self._masks[p]
            if self.renorm:  # 1e-10 is the reference's; a density has no scale, so an absolute eps does no harm
                mask = mask / (mask.mean() + 1e-10)
            factors.append(controlled(mask, x, self.control, self._generator))
            stats.update(factors[-1], x)
        return factors, named(stats)

    def state_dict(self) -> dict[str, Tensor]:
        """Running means with their counts and the generator of the control."""
        return {"generator": self._generator.get_state(), **self._averages.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        self._generator.set_state(state["generator"])
        self._averages.load_state_dict({key: state[key] for key in ("average", "count") if key in state})
