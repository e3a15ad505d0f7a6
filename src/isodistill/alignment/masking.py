"""What the mask spaces of IGA share: options, the step's gradients, running means per domain, controls, metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

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

__all__ = [
    "Control",
    "DomainAverages",
    "DomainStep",
    "MaskOptions",
    "ProjectBack",
    "RememberedStep",
    "Removed",
    "Signals",
    "Space",
    "conflict_cosines",
    "controlled",
    "named",
]

Control: TypeAlias = Literal["none", "random", "uniform"]
ProjectBack: TypeAlias = Literal["pullback", "lora_pro", "retract"]


@dataclass(frozen=True)
class MaskOptions:
    """The options of IGA that a space needs; meanings in ``InvariantGradientAlignment``."""

    form: Form = "ratio"
    norm: Norm = "tensor_mean"
    keep_rate: float = 0.7
    grad_ema: float = 0.0
    var_ema: float = 0.0
    svd_rank: int | str | None = None  # "r": the rank of the layer's LoRA
    exact_svd: bool = False
    project_back: ProjectBack = "pullback"
    refresh: int = 1
    control: Control = "none"


@dataclass(frozen=True)
class DomainStep:
    """The gradients of one step, one row per domain.

    Attributes:
        parameters: every trainable tensor.
        bounds: where each of them begins and ends in the flat rows.
        places: the same as a slice for each.
        flat: (K, P).
        dense: layer name -> (K, m, n).
        present: (K,) bool, domains with trained tokens.
        noise: with ``debias``, rows whose squares have the expectation of the noise in the square of ``flat``'s rows.
        noise_present: (K,) bool, domains with trained tokens in both halves.
    """

    parameters: list[Parameter]
    bounds: list[int]
    places: dict[Parameter, slice]
    flat: Tensor
    dense: dict[str, Tensor]
    present: Tensor
    noise: Tensor | None = None
    noise_dense: dict[str, Tensor] = field(default_factory=dict)
    noise_present: Tensor | None = None

    @classmethod
    def of(cls, gradients: DomainGradients, present: Tensor) -> DomainStep:
        """One row per domain; where the buffers hold two half-batches per domain, their sum and their difference.

        With h_1, h_2 the halves' rows, n_1, n_2 their tokens, both divided by the tokens n of the domain:

            g = h_1 + h_2;    d = sqrt(n_1 n_2) (h_1 / n_1 - h_2 / n_2);    E[d^2] = variance of g within the domain

        which for equal halves is (m_1 - m_2)^2 / 4, m the halves' means. d is linear in the gradients, so it may be
        projected and averaged over steps exactly as g is before it is squared (ours).
        """
        parameters = list(gradients.parameters.values())
        bounds = list(accumulate((p.numel() for p in parameters), initial=0))
        places = {p: slice(start, stop) for p, (start, stop) in zip(parameters, pairwise(bounds), strict=True)}
        tokens = gradients.half_tokens
        if tokens is None:
            return cls(parameters, bounds, places, gradients.flat, gradients.dense, present)
        n = tokens.to(gradients.flat)
        whole = (n > 0).all(1)
        # sqrt(n_1 n_2) / n_1 for the first half and minus sqrt(n_1 n_2) / n_2 for the second; 0 where a half is empty.
        weights = torch.where(whole[:, None], (n.flip(1) / n.clamp(min=1)).sqrt(), 0.0) * n.new_tensor([1.0, -1.0])

        def split(rows: Tensor) -> tuple[Tensor, Tensor]:
            halves = rows.view(len(n), 2, *rows.shape[1:])
            w = weights.view(len(n), 2, *[1] * (rows.dim() - 1))
            return halves.sum(1), (w * halves).sum(1)

        flat, noise = split(gradients.flat)
        dense = {name: split(rows) for name, rows in gradients.dense.items()}
        return cls(
            parameters,
            bounds,
            places,
            flat,
            {name: g for name, (g, _) in dense.items()},
            present,
            noise,
            {name: d for name, (_, d) in dense.items()},
            whole.to(present.device),
        )

    def mean(self) -> Tensor:
        """The gradient of ERM, (P,): the plain mean of the domains present."""
        return self.of_present().mean(0)

    def of_present(self) -> Tensor:
        """Rows of the domains present, (K', P); no copy where all are."""
        return self.flat if bool(self.present.all()) else self.flat[self.present]


Removed: TypeAlias = list[tuple[Parameter, Tensor]]
"""What a mask takes out of the gradients or steps of trainable tensors; zero, bit for bit, where M = 1."""


class Space(ABC):
    """Where the mask acts."""

    @abstractmethod
    def observe(self, step: DomainStep, tau: float) -> dict[str, float]:
        """Take in the step's domain gradients and make the masks; returns metrics."""

    @abstractmethod
    def removed_gradient(self, step: DomainStep) -> tuple[Removed, dict[str, float]]:
        """What to subtract from ERM's gradient, and metrics."""

    @abstractmethod
    def removed_step(self, remembered: RememberedStep) -> tuple[Removed, dict[str, float]]:
        """What to subtract from the parameters after the optimizer's step, and metrics."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """For an exact resume."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""


class DomainAverages:
    """Bias-corrected running mean of every domain's gradient: e_k = sum of decayed g_k / sum of decays.

    Kept as ``e_k += w_k (g_k - e_k)``, w_k = (1 - decay) / (1 - decay^t_k), so that no correction is left to divide by.
    A domain that is absent from a step keeps its average. With decay 0 this is the step's gradient itself.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: Tensor | None = None  # (K, *shape)
        self.count: Tensor | None = None  # (K,) steps in which the domain was present

    def update(self, gradients: Tensor, present: Tensor) -> Tensor:
        """Take in (K, *shape) and return the averages of the domains seen so far, (K', *shape)."""
        if self.decay == 0:
            return gradients if bool(present.all()) else gradients[present]
        if self.average is None or self.count is None:
            self.average = torch.zeros_like(gradients)
            self.count = torch.zeros(len(gradients), dtype=torch.float64)
        self.average = self.average.to(gradients.device)  # a checkpoint is loaded on the CPU
        self.count += present.cpu()
        for k, (there, count) in enumerate(zip(present.tolist(), self.count.tolist(), strict=True)):
            if there:
                self.average[k].lerp_(gradients[k], (1 - self.decay) / (1 - self.decay**count))
        seen = (self.count > 0).to(gradients.device)
        return self.average if bool(seen.all()) else self.average[seen]

    def statistics(self, gradients: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """``update`` with flat gradients (K, P), and mean (P,) and variance (P,) over the domains of its result."""
        average, count = self.average, self.count
        if average is None or count is None or not bool(present.all()) or len(set(count.tolist())) > 1:
            return domain_statistics(self.update(gradients, present))
        # All domains were seen equally often, so they share one weight, and one pass over the gradients does both.
        self.average = average.to(gradients.device)
        count += 1
        w = (1 - self.decay) / (1 - self.decay ** float(count[0]))
        return lerp_and_statistics(self.average, gradients, w)

    def state_dict(self) -> dict[str, Tensor]:
        """Empty before the first update, or with decay 0."""
        if self.average is None or self.count is None:
            return {}
        return {"average": self.average, "count": self.count}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back; an empty one means that nothing was seen."""
        if state:
            self.average, self.count = state["average"].clone(), state["count"].clone()


class Signals:
    """Running means of one buffer's domain gradients and, with ``debias``, of their noise rows, averaged alike."""

    def __init__(self, decay: float) -> None:
        self.averages, self.noise = DomainAverages(decay), DomainAverages(decay)

    def update(
        self, gradients: Tensor, present: Tensor, noise: Tensor | None, noise_present: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Averaged gradients (K', *shape) of the domains seen, and averaged noise rows (K'', *shape) or None."""
        averaged = self.averages.update(gradients, present)
        if noise is None or noise_present is None or not bool(noise_present.any()):
            return averaged, None
        return averaged, self.noise.update(noise, noise_present)

    @staticmethod
    def noise_weight(averaged: Tensor, noise: Tensor) -> float:
        """What the summed squares of the noise rows are times in V: E[V] = between + ((K - 1) / K) mean_k w_k."""
        return (len(averaged) - 1) / (len(averaged) * len(noise))

    def state_dict(self) -> dict[str, Tensor]:
        """Both averages."""
        return self.averages.state_dict() | {f"noise_{key}": x for key, x in self.noise.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back; other keys are ignored."""
        keys = ("average", "count")
        self.averages.load_state_dict({key: state[key] for key in keys if key in state})
        self.noise.load_state_dict({key: state[f"noise_{key}"] for key in keys if f"noise_{key}" in state})


class RememberedStep:
    """The optimizer's step without its decoupled decay: after - (1 - lr * weight_decay) * before, per parameter."""

    def __init__(self) -> None:
        self.parameters: list[Parameter] = []
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

    def deltas(self) -> dict[Parameter, Tensor]:
        """The step of every remembered parameter."""
        steps = torch._foreach_sub([p.detach() for p in self.parameters], self._origin)
        return dict(zip(self.parameters, steps, strict=True))


def controlled(
    mask: Tensor, x: Tensor, control: Control, generator: torch.Generator, *, by_axis: bool = False
) -> Tensor:
    """The mask itself, or the control that shares its density and step ratio on ``x``."""
    if control == "random":
        return permuted_mask(mask, x, generator, by_axis=by_axis)
    if control == "uniform":
        return uniform_mask(mask, x)
    return mask


def conflict_cosines(step: DomainStep, names: list[str]) -> dict[str, float]:
    """Mean cosine between two domains' gradients, over the pairs, per kind of layer (q_proj, down_proj, ...).

    Below 0 the domains pull apart; the gradients are the step's own, of the factors, with their noise.
    """
    rows = step.of_present()
    if len(rows) < 2:
        return {}
    grams: dict[str, Tensor] = {}
    for name, (start, stop) in zip(names, pairwise(step.bounds), strict=True):
        kind = name.partition(".lora_")[0].rpartition(".")[2]
        part = rows[:, start:stop]
        grams[kind] = grams.get(kind, 0) + part @ part.T
    gram = torch.stack(list(grams.values()))
    norms = gram.diagonal(dim1=1, dim2=2).sqrt()
    cosines = gram / (norms[:, :, None] * norms[:, None]).clamp(min=torch.finfo(gram.dtype).tiny)
    upper = torch.triu_indices(len(rows), len(rows), 1)
    means = cosines[:, upper[0], upper[1]].mean(1).tolist()
    return {f"conflict_cosine/{kind}": value for kind, value in zip(grams, means, strict=True)}


def named(stats: MaskStats) -> dict[str, float]:
    """What the masks of a step did, under the names that are logged."""
    result = stats.result()
    return {"mask_density": result.pop("mean"), **result}
