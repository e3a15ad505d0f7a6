"""Tier F of IGA: the mask acts on the entries of the trainable tensors themselves (LoRA's A and B, biases, ...)."""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor

from isodistill.alignment.masking import DomainAverages, MaskOptions, RememberedStep, Space, controlled, named
from isodistill.models.lora import DomainGradients
from isodistill.numerics import MaskStats, segmented_conflict_mask

__all__ = ["FactorSpace"]


class FactorSpace(Space):
    """Mask of shape (P,), one tensor after the other; cost: a few passes over K P floats, whatever the token count.

    The mask depends on the basis of the factors: (A, B) and (R^-1 A, B R) are one W and get two masks.
    """

    def __init__(self, options: MaskOptions, generator: torch.Generator) -> None:
        self.options = options
        self.generator = generator
        self.averages = DomainAverages(options.grad_ema)
        self.masks: dict[torch.nn.Parameter, Tensor] = {}
        self.step = RememberedStep()

    def observe(self, gradients: DomainGradients, present: Tensor, tau: float) -> None:
        """Masks of all trainable tensors from the averaged domain gradients."""
        mean, variance = self.averages.statistics(gradients.flat, present)
        options = self.options
        global_mean = float(variance.mean()) if options.norm == "global_mean" else None
        parameters = list(gradients.parameters.values())
        bounds = list(accumulate((p.numel() for p in parameters), initial=0))
        mask = segmented_conflict_mask(
            mean,
            variance,
            bounds,
            tau,
            options.form,
            options.norm,
            keep_rate=options.keep_rate,
            global_mean=global_mean,
        )
        pieces = zip(parameters, bounds[:-1], bounds[1:], strict=True)
        self.masks = {p: mask[start:stop].view(p.shape) for p, start, stop in pieces}

    def mask_gradient(self, gradients: DomainGradients, present: Tensor) -> dict[str, float]:
        """grad <- M * grad for every trainable tensor."""
        parameters = list(gradients.parameters.values())
        grads = [p.grad for p in parameters if p.grad is not None]
        masks = self._controlled(parameters, grads)
        metrics = self._metrics(masks, grads)
        torch._foreach_mul_(grads, masks)
        return metrics

    def remember(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the parameters before the step."""
        self.step.remember(optimizer)

    def mask_step(self) -> dict[str, float]:
        """Take (1 - M) * step back, so that M = 1 leaves the optimizer's result bit for bit."""
        parameters, deltas = self.step.parameters, self.step.deltas()
        masks = self._controlled(parameters, deltas)
        metrics = self._metrics(masks, deltas)
        with torch.no_grad():
            torch._foreach_sub_(list[Tensor](parameters), torch._foreach_mul([1 - mask for mask in masks], deltas))
        return metrics

    def _controlled(self, parameters: list[torch.nn.Parameter], xs: list[Tensor]) -> list[Tensor]:
        control, generator = self.options.control, self.generator
        return [controlled(self.masks[p], x, control, generator) for p, x in zip(parameters, xs, strict=True)]

    def _metrics(self, masks: list[Tensor], xs: list[Tensor]) -> dict[str, float]:
        stats = MaskStats()
        for mask, x in zip(masks, xs, strict=True):
            stats.update(mask, x)
        return named(stats)

    def state_dict(self) -> dict[str, Tensor]:
        """Running means and the generator of the control."""
        return {"generator": self.generator.get_state(), **self.averages.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        self.generator.set_state(state["generator"])
        self.averages.load_state_dict({key: state[key] for key in ("average", "count") if key in state})
