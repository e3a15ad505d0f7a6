"""The conflict mask of Invariant Gradient Alignment (arXiv 2606.05025), its normalisers and its controls.

    M = exp(-tau * norm(V))                              form "exp", the paper's; norm is ours
    M = (mean^2 + eps) / (mean^2 + eps + tau V)          form "ratio", ours: a signal-to-noise gate

``mean`` and ``V`` are the mean and the population variance of a gradient over the domains. ``eps`` is 1e-12 times the
mean of ``mean^2`` over the tensor. Masks carry no graph: the paper's "differentiable" is read as "smooth in V".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from isodistill.numerics.moments import chunk_slices

__all__ = [
    "Form",
    "MaskRule",
    "MaskStats",
    "Norm",
    "conflict_mask",
    "mask_stats",
    "permuted_mask",
    "quantile_of",
    "segmented_conflict_mask",
    "uniform_mask",
]

Form: TypeAlias = Literal["exp", "ratio"]
Norm: TypeAlias = Literal["none", "tensor_mean", "global_mean", "relative", "bounded", "keep_rate"]

# M > 0 must survive underflow; below exp(-87) lie the subnormal fp32 numbers, which are also four times as slow.
_LEAST_EXPONENT = -87.0
_LEAST_MASK = torch.finfo(torch.float32).tiny


@torch.no_grad()
def conflict_mask(
    mean: Tensor,
    variance: Tensor,
    tau: float,
    form: Form = "exp",
    norm: Norm = "tensor_mean",
    *,
    keep_rate: float = 0.7,
    global_mean: float | Tensor | None = None,
) -> Tensor:
    """How far each entry of one tensor may move: 1 where the domains agree, near 0 where they conflict.

    | norm          | norm(V)                         | note                                                        |
    | ------------- | ------------------------------- | ----------------------------------------------------------- |
    | `none`        | V                               | the printed formula; inert at the size of real gradients    |
    | `tensor_mean` | V / mean of V over the tensor   | tau in units of 1 / mean(V)                                 |
    | `global_mean` | V / `global_mean`               | lets whole layers be damped                                 |
    | `relative`    | V / (mean^2 + eps)              | asks for disagreement relative to the mean                  |
    | `bounded`     | V / (mean^2 + V + eps)          | M >= exp(-tau)                                              |
    | `keep_rate`   | V ln 2 / quantile of V          | at tau = 1 a share `keep_rate` of the entries keeps M >= 1/2 |

    All but `none` are the same for gradients times a constant. `keep_rate` becomes `tensor_mean` for a tensor whose
    quantile is 0. The form `ratio` needs no normaliser and does not look at `norm`. Every normaliser, the form `ratio`
    and the choice that `tau` scales `keep_rate` too are ours.

    Exact properties: 0 < M <= 1; V = 0 gives 1 and tau = 0 gives 1, bit for bit; M does not increase in V or tau.

    Args:
        mean: mean gradient over domains, any shape, one parameter tensor.
        variance: population variance over domains, shape of ``mean``, not negative.
        tau: strength, >= 0 and finite; 1 is usual for `exp`, 3 for `ratio`.
        form: `exp` or `ratio`.
        norm: see the table.
        keep_rate: share in (0, 1] for the normaliser `keep_rate`.
        global_mean: mean of V over all masked tensors, needed by the normaliser `global_mean`.

    Returns:
        The mask, fp32, shape of ``mean``. Computed in fp64 when either input is fp64.

    Raises:
        ValueError: for a bad option, or ``variance`` of another shape than ``mean``.
    """
    _check_options(tau, form, norm, keep_rate)
    _check_pair(mean, variance)
    mask = _empty_mask(mean, variance)
    if mask.numel() == 0:
        return mask.float()
    flat_mean, flat_variance = mean.reshape(-1).to(mask.dtype), variance.reshape(-1).to(mask.dtype)
    if form == "ratio" or norm in ("relative", "bounded"):
        scalar = _epsilon(torch.linalg.vector_norm(flat_mean).square() / mask.numel())
    else:
        scalar = _unit(flat_variance, norm, keep_rate, global_mean)
    _write_mask(mask.view(-1), flat_mean, flat_variance, MaskRule(tau, form, norm, scalar))
    return mask.float()


@torch.no_grad()
def segmented_conflict_mask(
    mean: Tensor,
    variance: Tensor,
    bounds: Sequence[int],
    tau: float,
    form: Form = "exp",
    norm: Norm = "tensor_mean",
    *,
    keep_rate: float = 0.7,
    global_mean: float | Tensor | None = None,
) -> Tensor:
    """``conflict_mask`` of every parameter tensor in a flat buffer, in one flat buffer.

    Args:
        mean: (P,) mean gradient, the tensors one after another.
        variance: (P,) variance.
        bounds: 0, the end of the first tensor, ..., P; strictly increasing.
        tau: as in ``conflict_mask``, like every further argument.
        form: as above.
        norm: as above.
        keep_rate: as above.
        global_mean: as above, but the mean of ``variance`` if not given.

    Returns:
        The mask (P,), fp32.

    Raises:
        ValueError: for a bad option, shapes that differ, or bounds that do not cut the buffer.
    """
    _check_options(tau, form, norm, keep_rate)
    _check_pair(mean, variance)
    rising = all(start < stop for start, stop in pairwise(bounds))
    if mean.ndim != 1 or len(bounds) < 2 or not rising or bounds[0] != 0 or bounds[-1] != mean.numel():
        raise ValueError(f"bounds must rise from 0 to the length of a flat buffer {tuple(mean.shape)}, got {bounds}.")
    if norm == "global_mean" and global_mean is None:
        global_mean = variance.mean()
    mask = _empty_mask(mean, variance)
    mean, variance = mean.to(mask.dtype), variance.to(mask.dtype)
    sizes = [stop - start for start, stop in pairwise(bounds)]
    tensors = list(zip(mask.split(sizes), mean.split(sizes), variance.split(sizes), strict=True))
    if form == "ratio" or norm in ("relative", "bounded"):
        # All norms at once: hundreds of small tensors cost more in calls than in arithmetic.
        norms = torch.stack(torch._foreach_norm([mean for _, mean, _ in tensors]))
        scalars = _epsilon(norms.square() / norms.new_tensor(sizes)).unbind()
    else:
        scalars = tuple(_unit(variance, norm, keep_rate, global_mean) for _, _, variance in tensors)
    for (out, mean, variance), scalar in zip(tensors, scalars, strict=True):
        _write_mask(out, mean, variance, MaskRule(tau, form, norm, scalar))
    return mask.float()


def _check_options(tau: float, form: Form, norm: Norm, keep_rate: float) -> None:
    if not (tau >= 0 and math.isfinite(tau)):
        raise ValueError(f"tau must be a finite number >= 0, got {tau}.")
    if form not in get_args(Form):
        raise ValueError(f"form must be one of {', '.join(get_args(Form))}; got {form!r}.")
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be one of {', '.join(get_args(Norm))}; got {norm!r}.")
    if not 0 < keep_rate <= 1:
        raise ValueError(f"keep_rate is a share in (0, 1], got {keep_rate}.")


def _check_pair(mean: Tensor, variance: Tensor) -> None:
    if mean.shape != variance.shape:
        raise ValueError(f"mean {tuple(mean.shape)} and variance {tuple(variance.shape)} must have one shape.")


def _empty_mask(mean: Tensor, variance: Tensor) -> Tensor:
    dtype = torch.float64 if torch.float64 in (mean.dtype, variance.dtype) else torch.float32
    return torch.empty(mean.shape, dtype=dtype, device=mean.device)


def _write_mask(out: Tensor, mean: Tensor, variance: Tensor, rule: MaskRule) -> None:
    """Write the mask of one tensor into the flat ``out``, chunk by chunk; scalars stay on the device."""
    for part in chunk_slices(out.numel(), out.device):
        rule.write(out[part], mean[part], variance[part])


@dataclass(frozen=True)
class MaskRule:
    """``conflict_mask`` of a tensor that is never whole: its one scalar is known, its entries come in tiles.

    Attributes:
        tau: strength.
        form: `exp` or `ratio`.
        norm: normaliser of `exp`.
        scalar: 0-dim; eps for `ratio`, `relative` and `bounded`, else what V is divided by.
    """

    tau: float
    form: Form
    norm: Norm
    scalar: Tensor

    @classmethod
    def of_moments(
        cls, tau: float, form: Form, norm: Norm, mean_square: Tensor, unit: Tensor, quantile: Tensor | None = None
    ) -> MaskRule:
        """The rule of a tensor from its mean of mean^2 and, for `exp`, its unit of V.

        Args:
            tau: strength.
            form: as in ``conflict_mask``.
            norm: as in ``conflict_mask``.
            mean_square: 0-dim mean of mean^2 over the tensor.
            unit: 0-dim mean of V over the tensor, or over all tensors for `global_mean`.
            quantile: 0-dim quantile of V, for `keep_rate`.
        """
        if form == "ratio" or norm in ("relative", "bounded"):
            return cls(tau, form, norm, _epsilon(mean_square))
        if norm == "none":
            unit = torch.ones_like(unit)
        elif quantile is not None:
            unit = torch.where(quantile > 0, quantile, unit * math.log(2))
        return cls(tau, form, norm, torch.where(unit == 0, math.inf, unit))

    def write(self, out: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        """Write the mask of a tile into ``out``, of the shape of ``mean`` and ``variance``; returns it."""
        tau, norm = self.tau, self.norm
        if tau == 0:
            return out.fill_(1)
        if self.form == "ratio" or norm in ("relative", "bounded"):
            signal = torch.addcmul(self.scalar, mean, mean, out=out)
        if self.form == "ratio":
            return signal.div_(torch.add(signal, variance, alpha=tau)).clamp_(min=_LEAST_MASK)
        if norm == "relative":
            torch.div(variance, signal, out=out).mul_(-tau)
        elif norm == "bounded":
            torch.div(variance, signal.add_(variance), out=out).mul_(-tau)
        else:
            torch.div(variance, self.scalar / -tau, out=out)
        out.clamp_(min=_LEAST_EXPONENT)
        # Base 2 makes an entry at the quantile exactly 1/2, where exp(-ln 2) may round below it.
        return out.exp2_() if norm == "keep_rate" else out.exp_()


def _epsilon(mean_square: Tensor) -> Tensor:
    """1e-12 of the mean square; the smallest normal number for an all-zero mean, so that V = 0 gives 1 and not 0/0."""
    return (1e-12 * mean_square).clamp(min=torch.finfo(mean_square.dtype).tiny)


def _unit(variance: Tensor, norm: Norm, keep_rate: float, global_mean: float | Tensor | None) -> Tensor:
    """What V is divided by, as a 0-dim tensor; infinite where it would be 0, so that V = 0 everywhere gives M = 1."""
    if norm == "none":
        return variance.new_ones(())
    if norm == "global_mean":
        if global_mean is None:
            raise ValueError("norm 'global_mean' needs global_mean: the mean of V over all masked tensors.")
        unit = torch.as_tensor(global_mean, dtype=variance.dtype, device=variance.device)
    else:
        unit = variance.mean()
    if norm == "keep_rate":
        quantile = quantile_of(variance, keep_rate)
        unit = torch.where(quantile > 0, quantile, unit * math.log(2))
    return torch.where(unit == 0, math.inf, unit)


def quantile_of(variance: Tensor, keep_rate: float) -> Tensor:
    """The smallest V, 0-dim, at or below which lies the share ``keep_rate`` of the entries."""
    flat = variance.reshape(-1)
    return flat.kthvalue(math.ceil(keep_rate * flat.numel())).values


@torch.no_grad()
def permuted_mask(
    mask: Tensor, x: Tensor, generator: torch.Generator | None = None, *, by_axis: bool = False
) -> Tensor:
    """Control: the same entries in random places, then one scalar for the same step ratio.

    A gain that this mask also shows comes from damping entries, not from damping the *conflicting* ones. Our control.

    Args:
        mask: any shape, one parameter tensor.
        x: the masked tensor (gradient or step), shape of ``mask``.
        generator: where the permutation comes from.
        by_axis: permute whole rows and whole columns of a matrix, independently, instead of single entries: the mask
            keeps its row and column structure.

    Returns:
        fp32, shape of ``mask``: ``c`` times the permuted entries, with norm(result * x) = norm(mask * x). The scalar
        ``c`` may lift entries above 1; it is 1 where ``x`` is zero.
    """
    device = mask.device if generator is None else generator.device
    if by_axis:
        rows, columns = (torch.randperm(n, generator=generator, device=device).to(mask.device) for n in mask.shape)
        permuted = mask[rows][:, columns].float()
    else:
        order = torch.randperm(mask.numel(), generator=generator, device=device).to(mask.device)
        permuted = mask.reshape(-1)[order].view(mask.shape).float()
    return permuted.mul_(_ratio(_norm(mask * x), _norm(permuted * x)))


@torch.no_grad()
def uniform_mask(mask: Tensor, x: Tensor) -> Tensor:
    """Control: one constant with the step ratio of ``mask``, a smaller learning rate in disguise. Our control.

    Args:
        mask: any shape.
        x: the masked tensor, shape of ``mask``.

    Returns:
        fp32, shape of ``mask``: norm(mask * x) / norm(x) everywhere, or 1 where ``x`` is zero.
    """
    return _ratio(_norm(mask * x), _norm(x)).float().expand(mask.shape).clone()


def _norm(x: Tensor) -> Tensor:
    # Not linalg.vector_norm: in fp32 it is off by 1e-4 at five million entries, a sum of squares by 1e-7.
    return x.square().sum().sqrt()


def _ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator / denominator; 1 where the denominator is 0, that is, where there is nothing to mask."""
    return torch.where(denominator > 0, numerator / denominator, 1.0)


class MaskStats:
    """What a mask did, summed over tensors or tiles and read once.

    `mean`: average of M; `keep_rate`: share of entries with M >= 1/2; `step_ratio`: norm(M * x) / norm(x); `cosine`:
    between M * x and x. The last two are 1 where ``x`` is zero.
    """

    def __init__(self) -> None:
        self._count = 0
        self._sums: Tensor | None = None

    @torch.no_grad()
    def update(self, mask: Tensor, x: Tensor) -> None:
        """Add one tensor or tile: its mask and the masked tensor ``x``, of one shape."""
        after = mask * x
        sums = [mask.sum(), (mask >= 0.5).sum(), (after * x).sum(), after.square_().sum(), x.square().sum()]
        self.add(torch.stack([s.float() for s in sums]), mask.numel())

    def add(self, sums: Tensor, count: int) -> None:
        """Add ``count`` entries by their five sums: of M, of M >= 1/2, of M x^2, of (M x)^2, of x^2."""
        self._sums = sums.float() if self._sums is None else self._sums + sums
        self._count += count

    def result(self) -> dict[str, float]:
        """The four numbers.

        Raises:
            ValueError: if nothing was added.
        """
        if self._sums is None or self._count == 0:
            raise ValueError("MaskStats is empty: call update() with a mask and the masked tensor first.")
        total, kept, inner, after, before = self._sums.tolist()
        return {
            "mean": total / self._count,
            "keep_rate": kept / self._count,
            "step_ratio": math.sqrt(after / before) if before else 1.0,
            "cosine": inner / math.sqrt(after * before) if after else 1.0,
        }


def mask_stats(mask: Tensor, x: Tensor) -> dict[str, float]:
    """``MaskStats`` of one mask: mean, keep_rate, step_ratio, cosine."""
    stats = MaskStats()
    stats.update(mask, x)
    return stats.result()
