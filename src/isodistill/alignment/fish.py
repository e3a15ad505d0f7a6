"""Fish (arXiv 2104.09937): the gradients of the domains shall point the same way; a first-order method.

    theta_in = theta ;  for k in a fresh random order:  one AdamW step on L_k
    theta <- theta_in + meta_lr (theta - theta_in)

To first order this descends Lbar and climbs the inner products of the domains' gradients (the paper's derivation, for
plain SGD inner steps). Inner Adam whose moments go on from one outer step to the next is DomainBed's; with the learning
rates of LoRA plain SGD would hardly move. There is no outer optimizer: learning rate, schedule and decay of the run's
optimizer act on the inner steps, and clipping does not (Adam's steps do not depend on the size of gradients). Each step
moves about meta_lr K learning rates, where ERM moves one. Cost: K - 1 more passes over one domain each, together about
one more forward and backward of the step. There is no neutral setting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from isodistill.alignment.per_domain import PerDomain, leave
from isodistill.models.lora import DomainGradients, LoraLayer
from isodistill.numerics import require_finite

__all__ = ["Fish"]


@dataclass
class Fish(PerDomain):
    """Fish, arXiv 2104.09937; see the module for the equations.

    Args:
        meta_lr: share of the way of the inner steps that is kept. Default 0.5, search 0.05, 0.1, 0.5 (DomainBed's).

    Raises:
        ValueError: ``meta_lr`` is out of range.
    """

    meta_lr: float = 0.5

    needs_recompute: ClassVar[bool] = True
    steps_on_direction: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.meta_lr <= 1:
            raise ValueError(f"alignment.meta_lr is {self.meta_lr}; it must be above 0 and at most 1")
        self._inner: torch.optim.AdamW | None = None
        self._resumed: dict[str, Tensor] = {}

    def setup(self, *, layers: list[LoraLayer], total_steps: int, adaptive: bool, seed: int) -> None:
        """Seed the order of the domains, alike on all processes."""
        self._generator = torch.Generator().manual_seed(seed)

    def update(self, gradients: DomainGradients, present: Tensor) -> dict[str, float]:
        """ERM's gradient, which is logged and not used, and what the inner steps need."""
        self._gradients, self._present = gradients, present
        leave(gradients.flat[present].mean(0), gradients)
        return {}

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """All inner steps; the optimizer of the run then finds no gradient and moves nothing."""
        inner, gradients = self._inner_optimizer(optimizer), self._gradients
        for group, outer in zip(inner.param_groups, optimizer.param_groups, strict=True):
            group["lr"] = outer["lr"]
        parameters = list(gradients.parameters.values())
        start = [p.detach().clone() for p in parameters]
        order = self._present.nonzero().squeeze(1)[torch.randperm(int(self._present.sum()), generator=self._generator)]
        for place, k in enumerate(order.tolist()):
            g = gradients.recompute(k) if place else gradients.flat[k].clone()
            require_finite({f"gradient of domain {k}": g}, "inner step of Fish")
            leave(g, gradients)
            inner.step()
        with torch.no_grad():
            for p, theta_in in zip(parameters, start, strict=True):
                p.copy_(theta_in.lerp(p, self.meta_lr))
                p.grad = None

    def _inner_optimizer(self, optimizer: torch.optim.Optimizer) -> torch.optim.AdamW:
        if self._inner is None:
            groups = [
                {"params": group["params"], "weight_decay": group["weight_decay"]} for group in optimizer.param_groups
            ]
            self._inner = torch.optim.AdamW(groups)
            if self._resumed:
                state: dict[int, dict[str, Tensor]] = {}
                for name, value in self._resumed.items():
                    i, _, key = name.partition("/")
                    state.setdefault(int(i), {})[key] = value
                self._inner.load_state_dict({"state": state, "param_groups": self._inner.state_dict()["param_groups"]})
        return self._inner

    def state_dict(self) -> dict[str, Tensor]:
        """The generator of the order and the moments of the inner optimizer."""
        entries = self._inner.state_dict()["state"] if self._inner is not None else {}
        moments = {f"inner/{i}/{key}": value for i, entry in entries.items() for key, value in entry.items()}
        return {"generator": self._generator.get_state(), **moments}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back; the inner optimizer takes its part when it is made, in the first step."""
        self._generator.set_state(state["generator"])
        self._resumed = {name.removeprefix("inner/"): v for name, v in state.items() if name.startswith("inner/")}
