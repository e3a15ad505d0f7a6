"""Tier F of IGA: the mask acts on the entries of the trainable tensors themselves (LoRA's A and B, biases, ...)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from isodistill.alignment.masking import (
    DomainStep,
    MaskOptions,
    RememberedStep,
    Removed,
    Signals,
    Space,
    controlled,
    named,
)
from isodistill.numerics import Ema, MaskStats, conflict_mask, domain_statistics, segmented_conflict_mask
from isodistill.numerics.moments import chunk_slices

__all__ = ["FactorSpace", "remove_by_entry", "tensor_masks"]


class FactorSpace(Space):
    """Mask of shape (P,), one tensor after the other; cost: a few passes over K P floats, whatever the token count.

    The mask depends on the basis of the factors: (A, B) and (R^-1 A, B R) are one W and get two masks.
    """

    def __init__(self, options: MaskOptions, generator: torch.Generator) -> None:
        self.options = options
        self.generator = generator
        self.signals = Signals(options.grad_ema)
        self.variance = Ema(options.var_ema)
        self.masks: dict[Parameter, Tensor] = {}

    def observe(self, step: DomainStep, tau: float) -> dict[str, float]:
        """Masks of all trainable tensors from the averaged domain gradients."""
        options, metrics = self.options, {}
        if step.noise is None:
            mean, variance = self.signals.averages.statistics(step.flat, step.present)
        else:
            averaged, noise = self.signals.update(step.flat, step.present, step.noise, step.noise_present)
            mean, variance = domain_statistics(averaged)
            if noise is not None:
                total = variance.sum()
                variance = variance.sub_(noise.square().sum(0), alpha=self.signals.noise_weight(averaged, noise))
                metrics["noise_share"] = float(1 - variance.clamp(min=0).sum() / total) if total > 0 else 0.0
        if options.var_ema:
            variance = self.variance.update(variance)
        if step.noise is not None:
            variance = variance.clamp(min=0)
        mask = segmented_conflict_mask(
            mean, variance, step.bounds, tau, options.form, options.norm, keep_rate=options.keep_rate
        )
        self.masks = {p: mask[step.places[p]].view(p.shape) for p in step.parameters}
        return metrics

    def removed_gradient(self, step: DomainStep) -> tuple[Removed, dict[str, float]]:
        """(1 - M) * grad of every trainable tensor."""
        return self._removed({p: p.grad for p in step.parameters if p.grad is not None})

    def removed_step(self, remembered: RememberedStep) -> tuple[Removed, dict[str, float]]:
        """(1 - M) * step of every trainable tensor."""
        return self._removed(remembered.deltas())

    def _removed(self, xs: dict[Parameter, Tensor]) -> tuple[Removed, dict[str, float]]:
        stats = MaskStats()
        removed = remove_by_entry(self.masks, xs, self.options, self.generator, stats)
        return removed, named(stats)

    def state_dict(self) -> dict[str, Tensor]:
        """Running means and the generator of the control."""
        state = {"generator": self.generator.get_state(), **self.signals.state_dict()}
        return state | {f"variance/{key}": value for key, value in self.variance.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        self.generator.set_state(state["generator"])
        self.signals.load_state_dict(state)
        self.variance.load_state_dict(
            {key: state[f"variance/{key}"] for key in ("count", "value") if f"variance/{key}" in state}
        )


def remove_by_entry(
    masks: dict[Parameter, Tensor],
    xs: dict[Parameter, Tensor],
    options: MaskOptions,
    generator: torch.Generator,
    stats: MaskStats,
) -> Removed:
    """(1 - M) * x of every tensor that has a mask, with the control in M's place; adds to ``stats``."""
    chosen = [p for p in masks if p in xs]
    final = [controlled(masks[p], xs[p], options.control, generator) for p in chosen]
    if not chosen:
        return []
    # One flat buffer in cache-sized chunks: hundreds of small tensors cost more in calls than in arithmetic.
    mask = torch.cat([m.reshape(-1) for m in final])
    x = torch.cat([xs[p].detach().reshape(-1) for p in chosen])
    for part in chunk_slices(x.numel(), x.device):
        stats.update(mask[part], x[part])
        x[part].mul_(1 - mask[part])
    parts = x.split([p.numel() for p in chosen])
    return [(p, part.view(p.shape)) for p, part in zip(chosen, parts, strict=True)]


def tensor_masks(
    parameters: list[Parameter], step: DomainStep, averaged: Tensor, tau: float, options: MaskOptions
) -> dict[Parameter, Tensor]:
    """Masks in their own space of some trainable tensors, from averaged domain gradients (K', P); no noise correction.

    ``global_mean`` is read as ``tensor_mean``: their entries are not in the units of W.
    """
    norm = "tensor_mean" if options.norm == "global_mean" else options.norm
    masks = {}
    for p in parameters:
        mean, variance = domain_statistics(averaged[:, step.places[p]])
        mask = conflict_mask(mean, variance, tau, options.form, norm, keep_rate=options.keep_rate)
        masks[p] = mask.view(p.shape)
    return masks
