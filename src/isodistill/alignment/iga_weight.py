"""Tier W of IGA: the mask acts on the gradient of the effective weight W = W0 + s B A of every LoRA layer.

    mean = (1/K) sum_k G_k ;   V = (1/K) sum_k (G_k - mean)^2 ;   Gm = M * mean, optionally truncated to rank svd_rank

Needs the dense G_k, (K, m, n) floats per layer: the oracle, and small models. Independent of the basis of the factors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isodistill.alignment.iga_layers import LayerSpace
from isodistill.alignment.masking import DomainStep, MaskOptions, Signals
from isodistill.models.lora import LoraLayer
from isodistill.numerics import DenseMask, Ema, conflict_mask, domain_statistics

__all__ = ["WeightSpace"]


class WeightSpace(LayerSpace):
    """Masks of shape (m, n), one per LoRA layer; trainable tensors that are no LoRA factor are refused at the start."""

    def __init__(self, options: MaskOptions, layers: list[LoraLayer], generator: torch.Generator) -> None:
        super().__init__(options, layers, generator)
        self.signals = {layer.name: Signals(options.grad_ema) for layer in layers}
        self.variances = {layer.name: Ema(options.var_ema) for layer in layers}

    def make_masks(self, step: DomainStep, tau: float, layers: list[LoraLayer]) -> tuple[Tensor, dict[str, float]]:
        """Masks of all layers from the averaged gradients of W."""
        options, self.masks = self.options, {}
        shared, before, after = None, 0.0, 0.0
        if options.norm == "global_mean":  # one mean over all layers has to be known before the first mask
            moments = {layer.name: self._moments(layer, step) for layer in layers}
            shared = sum(float(v.sum(dtype=torch.float64)) for _, v, _ in moments.values())
            shared /= sum(v.numel() for _, v, _ in moments.values())
        for layer in layers:
            mean, variance, total = moments[layer.name] if shared is not None else self._moments(layer, step)
            before, after = before + total, after + (float(variance.sum()) if total else 0.0)
            M = conflict_mask(
                mean, variance, tau, options.form, options.norm, keep_rate=options.keep_rate, global_mean=shared
            )
            self.masks[layer.name] = DenseMask(M.view(layer.shape))
        return step.flat[step.present], {"noise_share": 1 - after / before} if before else {}

    def _moments(self, layer: LoraLayer, step: DomainStep) -> tuple[Tensor, Tensor, float]:
        """Mean and V, flat, and with ``debias`` the sum of V before the correction, else 0."""
        signals, total, gradients = self.signals[layer.name], 0.0, step.dense[layer.name].flatten(1)
        rows = step.noise_dense.get(layer.name)
        if rows is None:
            mean, variance = signals.averages.statistics(gradients, step.present)
        else:
            averaged, noise = signals.update(gradients, step.present, rows.flatten(1), step.noise_present)
            mean, variance = domain_statistics(averaged)
            if noise is not None:
                total = float(variance.sum())
                variance.sub_(noise.square().sum(0), alpha=signals.noise_weight(averaged, noise))
        if self.options.var_ema:
            variance = self.variances[layer.name].update(variance)
        return mean, variance if rows is None else variance.clamp(min=0), total

    def gradient(self, layer: LoraLayer, step: DomainStep) -> Tensor:
        """The mean gradient of W."""
        return step.dense[layer.name][step.present].mean(0)

    def state_dict(self) -> dict[str, Tensor]:
        """With the running means of every layer."""
        state = super().state_dict()
        for name in self.signals:
            state |= {f"{key}/{name}": value for key, value in self.signals[name].state_dict().items()}
            ema = self.variances[name]
            state |= {f"variance_{key}/{name}": value for key, value in ema.state_dict().items() if ema.count}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        super().load_state_dict(state)
        for name, signals in self.signals.items():
            ending = f"/{name}"
            own = {key.removesuffix(ending): value for key, value in state.items() if key.endswith(ending)}
            signals.load_state_dict(own)
            if "variance_count" in own:
                self.variances[name].load_state_dict({key: own[f"variance_{key}"] for key in ("count", "value")})
