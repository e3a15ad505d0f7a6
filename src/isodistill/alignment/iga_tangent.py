"""Tiers T and TS of IGA: the mask acts on the tangent part of the gradient of W, known from ``.grad`` alone.

    T_k = P_T(G_k) = B F_k + E_k A,   F_k = (1/s)(B'B)^-1 a_k,   E_k = (1/s)(b_k - B (B'B)^-1 a_k A')(AA')^-1
    mean = (1/K) sum_k T_k ;   V = (1/K) sum_k (T_k - mean)^2 ;   M from both, as in every tier

P_T(G_k) is all of dL_k/dW that a small change of A and B can follow, and does not depend on the basis of the factors.
Tier T forms mean, V and M in row tiles and keeps nothing of shape (m, n); tier TS replaces V by its row and column
means, so that M = u v' and nothing of that shape is ever formed. The identity, the tiles and TS are ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isodistill.alignment.iga_layers import LayerSpace
from isodistill.alignment.masking import DomainStep, MaskOptions, Signals
from isodistill.models.lora import LoraLayer
from isodistill.numerics import (
    DenseMask,
    Ema,
    MaskRule,
    Thin,
    TileMask,
    axis_means,
    domain_contrasts,
    quantile_of,
    sampled_rows,
    separable_mask,
)

__all__ = ["SeparableSpace", "TangentSpace"]


class _FromFactors(LayerSpace):
    """Mean, contrasts and noise of every layer as thin products, from averaged gradients of A and B."""

    def __init__(self, options: MaskOptions, layers: list[LoraLayer], generator: torch.Generator) -> None:
        super().__init__(options, layers, generator)
        self.signals = Signals(options.grad_ema)

    def _moments(self, step: DomainStep, layers: list[LoraLayer]) -> tuple[Tensor, dict[str, Thin], int, float]:
        """Averaged rows; per layer the mean, the K' - 1 contrasts and the noise rows; K'; the weight of noise in V."""
        averaged, noise = self.signals.update(step.flat, step.present, step.noise, step.noise_present)
        mean, contrasts = domain_contrasts(averaged)
        weight = 0.0 if noise is None else self.signals.noise_weight(averaged, noise)
        parts = [mean[None], contrasts] if noise is None else [mean[None], contrasts, noise]
        thin = {}
        for layer in layers:
            a, b = (torch.cat([x[:, step.places[p]] for x in parts]) for p in (layer.A, layer.B))
            thin[layer.name] = self._thin(layer, a.view(-1, *layer.A.shape), b.view(-1, *layer.B.shape))
        return averaged, thin, len(averaged), weight

    def _thin(self, layer: LoraLayer, a: Tensor, b: Tensor) -> Thin:
        """P_T of J gradients of W, from J gradients of A and B."""
        F, E = self.bases[layer.name].coordinates(a / layer.scale, b / layer.scale)
        A, B = layer.A.detach().float(), layer.B.detach().float()
        J = len(a)
        return Thin(torch.cat([B.expand(J, -1, -1), E.float()], 2), torch.cat([F.float(), A.expand(J, -1, -1)], 1))

    def gradient(self, layer: LoraLayer, step: DomainStep) -> Thin:
        """The tangent part of the mean gradient of W."""
        assert layer.A.grad is not None
        assert layer.B.grad is not None
        return self._thin(layer, layer.A.grad.float()[None], layer.B.grad.float()[None])

    def state_dict(self) -> dict[str, Tensor]:
        """With the running means."""
        return super().state_dict() | self.signals.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        super().load_state_dict(state)
        self.signals.load_state_dict(state)


def _split(thin: Thin, domains: int) -> tuple[Thin, Thin, Thin | None]:
    mean, contrasts, noise = (
        Thin(thin.X[part], thin.Y[part]) for part in (slice(1), slice(1, domains), slice(domains, None))
    )
    return mean, contrasts, noise if len(noise.X) else None


class TangentSpace(_FromFactors):
    """Tier T. Cost per layer and step: 2 (2r) (K + 1) m n operations for V, mean and x, 4 r m n for the way back.

    With ``refresh`` q the masks of every q-th step serve the q - 1 steps after it; they are then kept, 2 bytes for each
    entry of W.
    """

    def __init__(self, options: MaskOptions, layers: list[LoraLayer], generator: torch.Generator) -> None:
        super().__init__(options, layers, generator)
        self.age = 0

    def make_masks(self, step: DomainStep, tau: float, layers: list[LoraLayer]) -> tuple[Tensor, dict[str, float]]:
        """Masks that are formed tile by tile when they are used."""
        # A layer that could not be factorised at the last refresh has no mask yet.
        known = all(layer.name in self.masks for layer in layers)
        age, self.age = (self.age, self.age + 1) if known else (0, 1)
        if age % self.options.refresh:
            self.masks = {layer.name: self.masks[layer.name] for layer in layers}
            return self.signals.update(step.flat, step.present, step.noise, step.noise_present)[0], {}
        averaged, thin, domains, weight = self._moments(step, layers)
        parts = {name: _split(matrices, domains) for name, matrices in thin.items()}
        sizes = {layer.name: layer.shape[0] * layer.shape[1] for layer in layers}
        total = {name: contrasts.energy().sum() / domains for name, (_, contrasts, _) in parts.items()}
        taken = {
            name: weight * noise.energy().sum() if noise is not None else torch.zeros_like(total[name])
            for name, (_, _, noise) in parts.items()
        }
        left = {name: (total[name] - taken[name]).clamp(min=0) for name in parts}
        units = {name: left[name] / sizes[name] for name in parts}
        if self.options.norm == "global_mean" and parts:
            shared = torch.stack(list(left.values())).sum() / sum(sizes.values())
            units = dict.fromkeys(parts, shared)
        self.masks = {}
        for name, (mean, contrasts, noise) in parts.items():
            mask = self._mask(mean, contrasts, noise, weight, tau, units[name])
            self.masks[name] = DenseMask(mask.dense().bfloat16()) if self.options.refresh > 1 else mask
        if not weight or not parts:
            return averaged, {}
        whole = float(torch.stack(list(total.values())).sum())
        share = float(torch.stack(list(taken.values())).sum()) / whole if whole else 0.0
        return averaged, {"noise_share": min(1.0, share)}

    def _mask(
        self, mean: Thin, contrasts: Thin, noise: Thin | None, weight: float, tau: float, unit: Tensor
    ) -> TileMask:
        form, norm = self.options.form, self.options.norm
        m, n = mean.X.shape[1], mean.Y.shape[2]
        mean_square = mean.energy()[0] / (m * n)
        mask = TileMask(mean, contrasts, MaskRule.of_moments(tau, form, norm, mean_square, unit), noise, weight)
        if form == "exp" and norm == "keep_rate":
            quantile = quantile_of(mask.variance(sampled_rows(m)), self.options.keep_rate)
            rule = MaskRule.of_moments(tau, form, norm, mean_square, unit, quantile)
            mask = TileMask(mean, contrasts, rule, noise, weight)
        return mask

    def state_dict(self) -> dict[str, Tensor]:
        """With the age of the masks, and the masks where they outlive a step."""
        masks = {f"mask/{name}": mask.M for name, mask in self.masks.items() if isinstance(mask, DenseMask)}
        return super().state_dict() | masks | {"age": torch.tensor(self.age)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        super().load_state_dict(state)
        self.age = int(state["age"])
        # A checkpoint is loaded on the CPU.
        kept = {layer.name: state[f"mask/{layer.name}"] for layer in self.layers if f"mask/{layer.name}" in state}
        devices = {layer.name: layer.A.device for layer in self.layers}
        self.masks = {name: DenseMask(x.clone().to(devices[name])) for name, x in kept.items()}


class SeparableSpace(_FromFactors):
    """Tier TS. Cost O((m + n) r^2 K) per layer and step."""

    def __init__(self, options: MaskOptions, layers: list[LoraLayer], generator: torch.Generator) -> None:
        super().__init__(options, layers, generator)
        self.variances = {layer.name: (Ema(options.var_ema), Ema(options.var_ema)) for layer in layers}

    def make_masks(self, step: DomainStep, tau: float, layers: list[LoraLayer]) -> tuple[Tensor, dict[str, float]]:
        """Masks u v' from row and column means."""
        options = self.options
        averaged, thin, domains, weight = self._moments(step, layers)
        means, variances, total, subtracted = {}, {}, 0.0, 0.0
        for layer in layers:
            mean, contrasts, noise = _split(thin[layer.name], domains)
            means[layer.name] = axis_means(mean)
            axes = [axis / domains for axis in axis_means(contrasts)]
            if noise is not None:
                total += float(axes[0].sum()) * layer.shape[1]
                axes = [axis - weight * w for axis, w in zip(axes, axis_means(noise), strict=True)]
            if options.var_ema:
                axes = [ema.update(axis) for ema, axis in zip(self.variances[layer.name], axes, strict=True)]
            rho, gamma = (axis.clamp(min=0) for axis in axes)
            variances[layer.name] = (rho, gamma)
            subtracted += float(rho.sum()) * layer.shape[1] if noise is not None else 0.0
        shared = None
        if options.norm == "global_mean" and layers:
            weights = {layer.name: layer.shape[0] * layer.shape[1] for layer in layers}
            sums = [variances[name][0].mean() * size for name, size in weights.items()]
            shared = torch.stack(sums).sum() / sum(weights.values())
        self.masks = {
            name: separable_mask(
                means[name], v, tau, options.form, options.norm, keep_rate=options.keep_rate, global_mean=shared
            )
            for name, v in variances.items()
        }
        return averaged, {"noise_share": min(1.0, max(0.0, 1 - subtracted / total))} if total else {}

    def state_dict(self) -> dict[str, Tensor]:
        """With the running means of V's row and column means."""
        state = super().state_dict()
        for name, pair in self.variances.items():
            for axis, ema in zip(("rows", "columns"), pair, strict=True):
                state |= {f"{axis}/{key}/{name}": x for key, x in ema.state_dict().items() if ema.count}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        super().load_state_dict(state)
        for name, pair in self.variances.items():
            for axis, ema in zip(("rows", "columns"), pair, strict=True):
                if f"{axis}/count/{name}" in state:
                    ema.load_state_dict({key: state[f"{axis}/{key}/{name}"] for key in ("count", "value")})
