"""Tier W of IGA: the mask acts on the gradient of the effective weight W = W0 + s B A of every LoRA layer.

    Gm = M * mean_k G_k ,  optionally truncated to rank svd_rank
    A.grad = s B' Gm ,  B.grad = s Gm A'                                      (apply_to gradient: the chain rule)
    s (cA, cB) = what of (1 - M) * s(B dA + dB A) lies in the tangent space   (apply_to update: taken from dA, dB)

Needs the dense G_k, (K, m, n) floats per layer: the oracle, and small models. Independent of the basis of the factors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isodistill.alignment.masking import DomainAverages, MaskOptions, RememberedStep, Space, controlled, named
from isodistill.models.lora import DomainGradients, LoraLayer
from isodistill.numerics import MaskStats, conflict_mask, domain_statistics, pull_back, tangent_step, truncated_svd

__all__ = ["WeightSpace"]


class WeightSpace(Space):
    """Masks of shape (m, n), one per LoRA layer; trainable tensors that are no LoRA factor are refused at the start."""

    def __init__(self, options: MaskOptions, layers: list[LoraLayer], generator: torch.Generator) -> None:
        self.options = options
        self.layers = layers
        self.generator = generator
        self.averages = {layer.name: DomainAverages(options.grad_ema) for layer in layers}
        self.masks: dict[str, Tensor] = {}
        self.step = RememberedStep()

    def observe(self, gradients: DomainGradients, present: Tensor, tau: float) -> None:
        """Masks of all layers from the averaged gradients of W."""
        options = self.options
        moments = {}
        for layer in self.layers:
            averaged = self.averages[layer.name].update(gradients.dense[layer.name], present)
            mean, variance = domain_statistics(averaged.flatten(1))
            moments[layer.name] = (mean.view(layer.shape), variance.view(layer.shape))
        global_mean = None
        if options.norm == "global_mean":
            total = sum(float(v.sum(dtype=torch.float64)) for _, v in moments.values())
            global_mean = total / sum(v.numel() for _, v in moments.values())
        self.masks = {
            name: conflict_mask(
                mean, variance, tau, options.form, options.norm, keep_rate=options.keep_rate, global_mean=global_mean
            )
            for name, (mean, variance) in moments.items()
        }

    def mask_gradient(self, gradients: DomainGradients, present: Tensor) -> dict[str, float]:
        """Take the gradient of what the mask (and the truncation) removed out of A.grad and B.grad."""
        stats = MaskStats()
        for layer in self.layers:
            G = gradients.dense[layer.name][present].mean(0)
            mask = controlled(self.masks[layer.name], G, self.options.control, self.generator, by_axis=True)
            removed = (1 - mask) * G
            if self.options.svd_rank is not None:
                U, S, Vh, _ = truncated_svd(mask * G, self.options.svd_rank)
                removed = G - (U * S) @ Vh
            grad_A, grad_B = pull_back(removed, layer.A.detach().float(), layer.B.detach().float(), layer.scale)
            for factor, removed_part in ((layer.A, grad_A), (layer.B, grad_B)):
                if factor.grad is not None:
                    factor.grad.sub_(removed_part.to(factor.dtype))
            stats.update(mask, G)
        return named(stats)

    def remember(self, optimizer: torch.optim.Optimizer) -> None:
        """Copy the parameters before the step."""
        self.step.remember(optimizer)

    def mask_step(self) -> dict[str, float]:
        """Take the tangent part of (1 - M) * (step of W) back from A and B."""
        deltas = dict(zip(self.step.parameters, self.step.deltas(), strict=True))
        stats = MaskStats()
        for layer in self.layers:
            dA, dB, s = deltas[layer.A].float(), deltas[layer.B].float(), layer.scale
            A, B = layer.A.detach().float() - dA, layer.B.detach().float() - dB
            U = s * (B @ dA + dB @ A)
            mask = controlled(self.masks[layer.name], U, self.options.control, self.generator, by_axis=True)
            D = (1 - mask) * U
            cA, cB = tangent_step(D, A, B, s)
            with torch.no_grad():
                layer.A.sub_(cA.to(layer.A.dtype))
                layer.B.sub_(cB.to(layer.B.dtype))
            stats.update(mask, U)
        return named(stats)

    def state_dict(self) -> dict[str, Tensor]:
        """Running means of every layer and the generator of the control."""
        state = {"generator": self.generator.get_state()}
        for name, averages in self.averages.items():
            state |= {f"{key}/{name}": value for key, value in averages.state_dict().items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        self.generator.set_state(state["generator"])
        for name, averages in self.averages.items():
            keys = ("average", "count")
            averages.load_state_dict({key: state[f"{key}/{name}"] for key in keys if f"{key}/{name}" in state})
