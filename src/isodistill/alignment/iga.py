"""Invariant Gradient Alignment (arXiv 2606.05025): damp what the domains disagree about.

One step, with g_k the gradient of domain k in the chosen space and e_k its bias-corrected running mean:

    mean = (1/K) sum_k e_k ;    V = (1/K) sum_k (e_k - mean)^2
    M    = exp(-tau * norm(V))                     form "exp", the paper's
    M    = mean^2 / (mean^2 + tau V)               form "ratio", ours: disagreement relative to the agreement
    step = M * (what ERM would do)

The mask, its exponential form and the return to the LoRA manifold by truncated SVD are the paper's. The normaliser, the
`ratio` form, the running means, masking the update instead of the gradient, and every default are ours (the paper's
settings are not public). This is not the penalty of the same initials, arXiv 2008.01883.

Spaces: ``factor`` (tier F) masks the entries of A and B; ``weight`` (tier W) masks the entries of the gradient of
W = W0 + s B A and returns to A and B by the chain rule. Tier F depends on the basis of the factors, tier W does not.
Neutral setting: with tau = 0 the step is that of the plain mean of the K gradients, bit for bit (the method ``erm``
sums the same gradient in another order, so the two agree to rounding).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from isodistill.alignment.base import Alignment
from isodistill.alignment.iga_factor import FactorSpace
from isodistill.alignment.iga_weight import WeightSpace
from isodistill.alignment.masking import Control, MaskOptions, Space
from isodistill.models.lora import DomainGradients, LoraLayer
from isodistill.numerics import Form, Norm

__all__ = ["InvariantGradientAlignment"]


@dataclass
class InvariantGradientAlignment(Alignment):
    """IGA, arXiv 2606.05025; see the module for the equations.

    Args:
        space: ``factor`` (tier F, cheap) or ``weight`` (tier W: one dense gradient per layer and domain; small models).
        tau: strength; 0 is ERM. Default 3 for ``ratio``; use 1 for ``exp``. Search 0.1, 0.3, 1, 3, 10.
        form: ``ratio`` (ours, default) or ``exp`` (the paper's).
        norm: normaliser of V for ``exp``: none, tensor_mean, global_mean, relative, bounded, keep_rate.
        keep_rate: for norm ``keep_rate``, the share of entries whose mask stays at or above 1/2.
        grad_ema: decay of the running mean of every domain's gradient; 0 takes this step's gradients alone.
        tau_warmup: share of the steps over which tau rises from 0; early gradients are noise.
        apply_to: mask the ``gradient`` or the ``update`` of the optimizer; ``auto`` masks the update unless the
            optimizer is SGD, because Adam undoes a slowly varying mask on the gradient.
        svd_rank: rank of the truncated SVD of the masked gradient, for space ``weight`` and apply_to ``gradient``;
            None skips it.
        control: ``random`` replaces the mask by a permuted one of equal density and step ratio, ``uniform`` by a
            constant of equal step ratio; a gain that these show too is not invariance.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    space: Literal["factor", "weight"] = "factor"
    tau: float = 3.0
    form: Form = "ratio"
    norm: Norm = "tensor_mean"
    keep_rate: float = 0.7
    grad_ema: float = 0.95
    tau_warmup: float = 0.1
    apply_to: Literal["auto", "gradient", "update"] = "auto"
    svd_rank: int | None = None
    control: Control = "none"

    needs_domains: ClassVar[bool] = True
    needs_domain_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("space", self.space, ("factor", "weight")),
            ("form", self.form, ("exp", "ratio")),
            ("norm", self.norm, ("none", "tensor_mean", "global_mean", "relative", "bounded", "keep_rate")),
            ("apply_to", self.apply_to, ("auto", "gradient", "update")),
            ("control", self.control, ("none", "random", "uniform")),
        ):
            if value not in allowed:
                raise ValueError(f"alignment.{name} is {value!r}; choose one of {', '.join(allowed)}")
        if self.tau < 0:
            raise ValueError(f"alignment.tau is {self.tau}; it must be 0 (ERM) or more")
        if not 0 <= self.grad_ema < 1:
            raise ValueError(f"alignment.grad_ema is {self.grad_ema}; it must be at least 0 and below 1")
        if not 0 <= self.tau_warmup <= 1:
            raise ValueError(f"alignment.tau_warmup is {self.tau_warmup}; it is a share of the steps, 0 to 1")
        if not 0 < self.keep_rate < 1:
            raise ValueError(f"alignment.keep_rate is {self.keep_rate}; it is a share of the entries, between 0 and 1")
        if self.svd_rank is not None and (self.space != "weight" or self.svd_rank < 1):
            raise ValueError(
                f"alignment.svd_rank is {self.svd_rank}; it is a rank of at least 1, for space weight only"
            )
        if self.svd_rank is not None and self.apply_to != "gradient":
            raise ValueError("alignment.svd_rank truncates the masked gradient; set alignment.apply_to to gradient")
        self._step = 0

    @property
    def needs_weight_gradients(self) -> bool:
        """Tier W keeps the dense gradients."""
        return self.space == "weight"

    @property
    def tier(self) -> str:
        """The letter that results carry."""
        return {"factor": "F", "weight": "W"}[self.space]

    def setup(self, *, layers: list[LoraLayer], total_steps: int, adaptive: bool, seed: int) -> None:
        """Choose what is masked and seed the random control."""
        self._warmup_steps = int(self.tau_warmup * total_steps)
        options = MaskOptions(self.form, self.norm, self.keep_rate, self.grad_ema, self.svd_rank, self.control)
        generator = torch.Generator().manual_seed(seed)
        self._space: Space = (
            FactorSpace(options, generator) if self.space == "factor" else WeightSpace(options, layers, generator)
        )
        self._mask_update = self.apply_to == "update" or (self.apply_to == "auto" and adaptive)

    def domain_weights(self, counts: Tensor) -> Tensor:
        """1 / n_k: the rows of the buffers are the gradients of the domain means L_k."""
        return torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)

    def update(self, gradients: DomainGradients, present: Tensor) -> dict[str, float]:
        """ERM's gradient, masked or with the mask kept for the optimizer's step."""
        tau = self.tau * min(1.0, (self._step + 1) / self._warmup_steps) if self._warmup_steps else self.tau
        self._step += 1
        gbar = (gradients.flat if bool(present.all()) else gradients.flat[present]).mean(0)
        start = 0
        for p in gradients.parameters.values():
            p.grad = gbar[start : start + p.numel()].view(p.shape).to(p.dtype)
            start += p.numel()
        self._space.observe(gradients, present, tau)
        return {"tau": tau} | ({} if self._mask_update else self._space.mask_gradient(gradients, present))

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember the parameters, decayed as the optimizer will decay them."""
        if self._mask_update:
            self._space.remember(optimizer)

    def after_step(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Mask the step that the optimizer took."""
        return self._space.mask_step() if self._mask_update else {}

    def state_dict(self) -> dict[str, Tensor]:
        """Running means with their counts, the step of the tau schedule, the generator of the control."""
        return {"step": torch.tensor(self._step), **self._space.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        self._step = int(state["step"])
        self._space.load_state_dict({key: value for key, value in state.items() if key != "step"})
