"""Invariant Gradient Alignment (arXiv 2606.05025): damp what the domains disagree about.

One step, with g_k the gradient of domain k in the chosen space and e_k its bias-corrected running mean:

    mean = (1/K) sum_k e_k ;    V = (1/K) sum_k (e_k - mean)^2
    M    = exp(-tau * norm(V))                     form "exp", the paper's
    M    = mean^2 / (mean^2 + tau V)               form "ratio", ours: disagreement relative to the agreement
    step = M * (what ERM would do)

The mask, its exponential form and the return to the LoRA manifold by truncated SVD are the paper's. The normaliser, the
`ratio` form, the running means, masking the update instead of the gradient, and every default are ours (the paper's
settings are not public). This is not the penalty of the same initials, arXiv 2008.01883.

Spaces: ``factor`` (tier F) masks the entries of A and B; ``tangent`` (T) those of the tangent part of the gradient of
W = W0 + s B A; ``tangent_separable`` (TS) likewise, with V known by row and column means; ``weight`` (W) the entries of
that gradient itself. Tier F depends on the basis of the factors, the others do not.
Neutral setting: with tau = 0 the step is that of the plain mean of the K gradients, bit for bit (the method ``erm``
sums the same gradient in another order, so the two agree to rounding).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from isodistill.alignment.base import Alignment
from isodistill.alignment.iga_factor import FactorSpace
from isodistill.alignment.iga_options import CHOICES, PRESETS, check_options
from isodistill.alignment.iga_second_moment import UnmaskedSecondMoment
from isodistill.alignment.iga_tangent import SeparableSpace, TangentSpace
from isodistill.alignment.iga_weight import WeightSpace
from isodistill.alignment.masking import (
    Control,
    DomainStep,
    MaskOptions,
    ProjectBack,
    RememberedStep,
    Removed,
    Space,
    conflict_cosines,
)
from isodistill.errors import UserError
from isodistill.models.lora import DomainGradients, LoraLayer
from isodistill.numerics import Form, Norm

__all__ = ["InvariantGradientAlignment"]

_CLOSED_DENSITY, _CLOSED_STEPS = 1e-3, 20
_OF_PRESET: Any = None  # the preset fills it in


@dataclass
class InvariantGradientAlignment(Alignment):
    """IGA, arXiv 2606.05025; see the module for the equations.

    Args:
        preset: values of the seven options below it, each of which may still be given: ``fast`` (tier F), ``default``
            (tier T), or ``literal`` (the nearest to the printed formula: tier W, ``exp`` with ``tensor_mean``, tau 1,
            no running means, truncation to the rank of LoRA, mask on the gradient).
        space: ``factor``, ``tangent``, ``tangent_separable``, or ``weight`` (one dense gradient per layer and domain).
        tau: strength; 0 is ERM. 3 suits ``ratio``, 1 suits ``exp``. Search 0.1, 0.3, 1, 3, 10.
        form: ``ratio`` (ours) or ``exp`` (the paper's).
        norm: normaliser of V for ``exp``: none, tensor_mean, global_mean, relative, bounded, keep_rate.
        grad_ema: decay of the running mean of every domain's gradient; 0 takes this step's gradients alone.
        svd_rank: rank of the truncated SVD of the masked gradient, ``r`` for the rank of LoRA, 0 for none; not in
            space ``factor``, and only with apply_to ``gradient``.
        apply_to: mask the ``gradient`` or the ``update`` of the optimizer; ``auto`` masks the update unless the
            optimizer is SGD, because Adam undoes a slowly varying mask on the gradient.
        keep_rate: for norm ``keep_rate``, the share of entries whose mask stays at or above 1/2.
        tau_warmup: share of the steps over which tau rises from 0; early gradients are noise.
        project_back: how a masked gradient of W becomes one of A and B: ``pullback`` (the chain rule), ``lora_pro``
            (the closest step in W, arXiv 2407.18242; not ERM at tau 0) or ``retract`` (the step in W, cut back to rank
            r; plain SGD only).
        svd: ``warm`` (subspace iteration from the last step's basis) or ``exact``.
        second_moment: ``masked``, or ``unmasked``: Adam's v sees the gradient without mask, m the one with it.
        debias: subtract the noise within domains from V, estimated by two half-batches per domain.
        var_ema: decay of a running mean of V (its row and column means in TS); not in space ``tangent``.
        refresh: space ``tangent``: make the mask every so many steps; above 1 it is kept, 2 bytes an entry of W.
        control: ``random`` replaces the mask by a permuted one of equal density and step ratio, ``uniform`` by a
            constant of equal step ratio; a gain that these show too is not invariance.

    Raises:
        ValueError: an option is unknown, out of range, or would do nothing.
    """

    preset: Literal["default", "fast", "literal"] = "fast"
    space: Literal["factor", "tangent", "tangent_separable", "weight"] = _OF_PRESET
    tau: float = _OF_PRESET
    form: Form = _OF_PRESET
    norm: Norm = _OF_PRESET
    grad_ema: float = _OF_PRESET
    svd_rank: int | str = _OF_PRESET
    apply_to: Literal["auto", "gradient", "update"] = _OF_PRESET
    keep_rate: float = 0.7
    tau_warmup: float = 0.1
    project_back: ProjectBack = "pullback"
    svd: Literal["warm", "exact"] = "warm"
    second_moment: Literal["masked", "unmasked"] = "masked"
    debias: bool = False
    var_ema: float = 0.0
    refresh: int = 1
    control: Control = "none"

    needs_domains: ClassVar[bool] = True
    needs_domain_gradients: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"alignment.preset is {self.preset!r}; choose one of {', '.join(PRESETS)}")
        for name, value in PRESETS[self.preset].items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"alignment.{name} is {getattr(self, name)!r}; choose one of {', '.join(allowed)}")
        check_options(self)
        self._step, self._closed = 0, 0

    @property
    def needs_weight_gradients(self) -> bool:
        """Tier W keeps the dense gradients."""
        return self.space == "weight"

    @property
    def needs_halves(self) -> bool:
        """``debias`` compares two halves of every domain's batch."""
        return self.debias

    @property
    def tier(self) -> str:
        """The letter that results carry."""
        return {"factor": "F", "tangent": "T", "tangent_separable": "TS", "weight": "W"}[self.space]

    def setup(self, *, layers: list[LoraLayer], total_steps: int, adaptive: bool, seed: int) -> None:
        """Choose what is masked and seed the random control."""
        if adaptive and self.project_back == "retract":
            raise UserError(
                "alignment.project_back retract changes the basis of A and B at every step, which makes the moments of "
                "an Adam-like optimizer meaningless; train with optim: sgd, or choose pullback."
            )
        if self.space != "factor" and not layers:
            raise UserError(
                f"alignment.space {self.space} masks W = W0 + s B A, and this student has no LoRA linears; choose "
                "alignment.space factor, which masks its trainable tensors themselves."
            )
        if adaptive and not self._masks_update(adaptive) and self.second_moment == "masked":
            warnings.warn(
                "IGA masks the gradient, and the optimizer is Adam-like, which undoes a slowly varying mask: with it "
                "this is nearly ERM. Choose alignment.apply_to update, or train with optim: sgd.",
                stacklevel=2,
            )
        self._warmup_steps = int(self.tau_warmup * total_steps)
        options = MaskOptions(
            form=self.form, norm=self.norm, keep_rate=self.keep_rate, grad_ema=self.grad_ema, var_ema=self.var_ema,
            svd_rank=self.svd_rank or None, exact_svd=self.svd == "exact", project_back=self.project_back,
            refresh=self.refresh, control=self.control,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        self._space: Space
        if self.space == "factor":
            self._space = FactorSpace(options, generator)
        else:
            kinds: dict[str, Callable[..., Space]] = {
                "tangent": TangentSpace,
                "tangent_separable": SeparableSpace,
                "weight": WeightSpace,
            }
            self._space = kinds[self.space](options, layers, generator)
        self._mask_update = self._masks_update(adaptive)
        self._remembered = RememberedStep()
        self._second_moment = UnmaskedSecondMoment() if self.second_moment == "unmasked" else None

    def _masks_update(self, adaptive: bool) -> bool:
        return self.apply_to == "update" or (self.apply_to == "auto" and adaptive)

    def domain_weights(self, counts: Tensor) -> Tensor:
        """1 / n_k: the rows of the buffers are the gradients of the domain means L_k."""
        return torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)

    def update(self, gradients: DomainGradients, present: Tensor) -> dict[str, float]:
        """ERM's gradient, masked or with the mask kept for the optimizer's step."""
        tau = self.tau * min(1.0, (self._step + 1) / self._warmup_steps) if self._warmup_steps else self.tau
        self._step += 1
        step = DomainStep.of(gradients, present)
        mean = step.mean()
        for p in step.parameters:
            p.grad = mean[step.places[p]].view(p.shape).to(p.dtype)
        metrics = {"tau": tau} | conflict_cosines(step, list(gradients.parameters))
        metrics |= self._space.observe(step, tau)
        if self._mask_update:
            return metrics
        removed, told = self._space.removed_gradient(step)
        if self._second_moment is None:
            with torch.no_grad():
                for p, part in removed:
                    if p.grad is not None:
                        p.grad.sub_(part)
        else:
            self._second_moment.hold(removed)
        return metrics | self._watched(told)

    def before_clipping(self) -> None:
        """What a guard added is clipped with the rest."""
        if self._second_moment is not None:
            self._second_moment.before_clipping()

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Remember the parameters, decayed as the optimizer will decay them."""
        if self.project_back == "retract" and any(group.get("momentum") for group in optimizer.param_groups):
            raise UserError("alignment.project_back retract needs SGD without momentum, whose basis it would change.")
        if self._mask_update or self.project_back == "retract":
            self._remembered.remember(optimizer)
        if self._second_moment is not None:
            self._second_moment.before_step(optimizer)

    def after_step(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Mask the step that the optimizer took."""
        if self._second_moment is not None:
            self._second_moment.after_step(optimizer)
        if not (self._mask_update or self.project_back == "retract"):
            return {}
        removed, told = self._space.removed_step(self._remembered)
        _subtract(removed)
        return self._watched(told)

    def _watched(self, told: dict[str, float]) -> dict[str, float]:
        """Warn once when the mask has been shut for so long that nothing is learned."""
        if "mask_density" in told:
            self._closed = self._closed + 1 if told["mask_density"] < _CLOSED_DENSITY else 0
            if self._closed == _CLOSED_STEPS:
                warnings.warn(
                    f"The mean of IGA's mask has been below {_CLOSED_DENSITY} for {_CLOSED_STEPS} steps: the student "
                    "hardly learns. Lower alignment.tau, raise alignment.grad_ema, or use form: ratio.",
                    stacklevel=2,
                )
        return told

    def state_dict(self) -> dict[str, Tensor]:
        """Running means with their counts, the step of the tau schedule, the generator of the control."""
        return {"step": torch.tensor([self._step, self._closed]), **self._space.state_dict()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state back."""
        self._step, self._closed = state["step"].tolist()
        self._space.load_state_dict({key: value for key, value in state.items() if key != "step"})


def _subtract(removed: Removed) -> None:
    with torch.no_grad():
        for p, part in removed:
            p.sub_(part.to(p.dtype))
