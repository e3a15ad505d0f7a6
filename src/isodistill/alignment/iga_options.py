"""IGA's presets, the values its options may take, and which of them do not go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isodistill.alignment.iga import InvariantGradientAlignment

__all__ = ["CHOICES", "PRESETS", "check_options"]

_RATIO: dict[str, Any] = {
    "form": "ratio",
    "norm": "tensor_mean",
    "tau": 3.0,
    "grad_ema": 0.95,
    "svd_rank": 0,
    "apply_to": "auto",
}
PRESETS: dict[str, dict[str, Any]] = {
    "default": {"space": "tangent", **_RATIO},
    "fast": {"space": "factor", **_RATIO},
    "literal": {
        "space": "weight", "form": "exp", "norm": "tensor_mean", "tau": 1.0, "grad_ema": 0.0, "svd_rank": "r",
        "apply_to": "gradient",
    },
}  # fmt: skip
"""None of them is the paper's setting, which is not public."""

CHOICES = {
    "space": ("factor", "tangent", "tangent_separable", "weight"),
    "form": ("exp", "ratio"),
    "norm": ("none", "tensor_mean", "global_mean", "relative", "bounded", "keep_rate"),
    "apply_to": ("auto", "gradient", "update"),
    "project_back": ("pullback", "lora_pro", "retract"),
    "svd": ("warm", "exact"),
    "second_moment": ("masked", "unmasked"),
    "control": ("none", "random", "uniform"),
}


def check_options(o: InvariantGradientAlignment) -> None:
    """Ranges, and pairs of options of which one would do nothing.

    Raises:
        ValueError: with the option, its value and what to set instead.
    """
    if o.tau < 0:
        raise ValueError(f"alignment.tau is {o.tau}; it must be 0 (ERM) or more")
    for name in ("grad_ema", "var_ema"):
        if not 0 <= getattr(o, name) < 1:
            raise ValueError(f"alignment.{name} is {getattr(o, name)}; it must be at least 0 and below 1")
    if not 0 <= o.tau_warmup <= 1:
        raise ValueError(f"alignment.tau_warmup is {o.tau_warmup}; it is a share of the steps, 0 to 1")
    if not 0 < o.keep_rate < 1:
        raise ValueError(f"alignment.keep_rate is {o.keep_rate}; it is a share of the entries, between 0 and 1")
    if o.refresh < 1:
        raise ValueError(f"alignment.refresh is {o.refresh}; it is a number of steps, at least 1")
    if o.svd_rank != "r" and (not isinstance(o.svd_rank, int) or o.svd_rank < 0):
        raise ValueError(f"alignment.svd_rank is {o.svd_rank!r}; it is a rank of at least 1, r for LoRA's, 0 for none")
    _check_pairs(o)


def _check_pairs(o: InvariantGradientAlignment) -> None:
    if o.svd_rank and o.space == "factor":
        raise ValueError("alignment.svd_rank truncates gradients of W; space factor has none")
    if o.svd_rank and o.apply_to != "gradient":
        raise ValueError("alignment.svd_rank truncates the masked gradient; set alignment.apply_to to gradient")
    if o.project_back != "pullback" and (o.space == "factor" or o.apply_to != "gradient"):
        raise ValueError(
            f"alignment.project_back {o.project_back} brings a masked gradient of W back to A and B; set "
            "alignment.apply_to to gradient and alignment.space to tangent, tangent_separable or weight"
        )
    if o.project_back == "retract" and o.grad_ema and o.space != "weight":
        raise ValueError(
            f"alignment.grad_ema is {o.grad_ema}, and project_back retract changes the basis of A and B, in which "
            f"space {o.space} keeps its running means; set alignment.grad_ema to 0, or alignment.space to weight"
        )
    if o.second_moment == "unmasked" and o.apply_to != "gradient":
        raise ValueError("alignment.second_moment unmasked is for masks on the gradient; set apply_to to gradient")
    if o.second_moment == "unmasked" and o.project_back != "pullback":
        raise ValueError("alignment.second_moment unmasked needs project_back pullback")
    if o.refresh > 1 and o.space != "tangent":
        raise ValueError("alignment.refresh is for space tangent; the other masks are made anew at every step")
    if o.var_ema and o.space == "tangent":
        raise ValueError("alignment.var_ema cannot average the V of space tangent, which is never kept; use grad_ema")
    if o.space == "tangent_separable" and o.form == "exp" and o.norm in ("relative", "bounded"):
        raise ValueError(
            f"alignment.norm {o.norm} does not split into rows and columns; use form ratio, or space tangent"
        )
