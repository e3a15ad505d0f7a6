"""Pure functions on tensors: moments over domains, conflict masks, low-rank algebra, finite checks."""

from isodistill.numerics.checks import require_finite
from isodistill.numerics.lowrank import (
    SubspaceState,
    lora_pro,
    pull_back,
    sylvester_gauge,
    tangent_gradient,
    tangent_step,
    truncated_svd,
)
from isodistill.numerics.masks import (
    Form,
    MaskStats,
    Norm,
    conflict_mask,
    mask_stats,
    permuted_mask,
    segmented_conflict_mask,
    uniform_mask,
)
from isodistill.numerics.moments import DomainMoments, Ema, domain_statistics, lerp_and_statistics

__all__ = [
    "DomainMoments",
    "Ema",
    "Form",
    "MaskStats",
    "Norm",
    "SubspaceState",
    "conflict_mask",
    "domain_statistics",
    "lerp_and_statistics",
    "lora_pro",
    "mask_stats",
    "permuted_mask",
    "pull_back",
    "require_finite",
    "segmented_conflict_mask",
    "sylvester_gauge",
    "tangent_gradient",
    "tangent_step",
    "truncated_svd",
    "uniform_mask",
]
