"""Which nodes to freeze, update or duplicate after a task, from how far each one drifted."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from isodistill.numerics.angles import METRICS, drifts

__all__ = ["Decision", "SplitRule"]

Mode = Literal["select", "bands", "quantile"]


@dataclass(frozen=True)
class Decision:
    """What happens to the units of a layer: indices to duplicate (largest drift first) and to restore."""

    duplicate: Tensor
    restore: Tensor


@dataclass(frozen=True)
class SplitRule:
    """The rule of a layer (arXiv 2112.09175 measures the angle; modes and defaults are ours).

        select     drift > threshold: duplicated, else the new weights stay
        bands      drift < lower: the old weights return; drift > threshold: duplicated
        quantile   the share ``quantile`` with the largest drifts is duplicated

    With ``norm_guard`` a unit whose norm changed by more than that is duplicated like one that turned too far; the
    angle does not see it. Units that the task did not select are never touched.

    Args:
        metric: ``angular`` (radians), ``cosine``, ``l2``, ``l1``, or ``random``: the control that draws its nodes.
        mode: see above.
        threshold: default 0.1 pi, for the angle.
        lower: of ``bands``; default 0.02 pi.
        quantile: default 0.1.
        norm_guard: of ``select`` and ``bands``: largest |log(norm now / norm then)|; None: rescaling is no drift.
        k_max: most duplicates per layer and task, those with the largest drift; None for no limit.

    Raises:
        ValueError: an option is unknown or out of range.
    """

    metric: str = "angular"
    mode: Mode = "select"
    threshold: float = 0.1 * math.pi
    lower: float = 0.02 * math.pi
    quantile: float = 0.1
    norm_guard: float | None = None
    k_max: int | None = 10

    def __post_init__(self) -> None:
        if self.metric not in (*METRICS, "random"):
            raise ValueError(f"metric is {self.metric!r}; choose one of {', '.join(METRICS)}, random")
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode is {self.mode!r}; choose one of {', '.join(get_args(Mode))}")
        if self.metric == "random" and self.mode != "quantile":
            raise ValueError("metric random draws a share of the nodes, so it needs mode quantile")
        most = {"angular": math.pi, "cosine": 2.0}.get(self.metric, math.inf)
        if not self.threshold <= most:  # below 0 everything selected is duplicated
            raise ValueError(f"threshold is {self.threshold}; drifts of metric {self.metric} lie in 0 to {most:g}")
        if self.mode == "bands" and not 0 <= self.lower <= self.threshold:
            raise ValueError(f"lower is {self.lower}; it must lie between 0 and threshold ({self.threshold})")
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile is {self.quantile}; it is a share, 0 to 1")
        if self.norm_guard is not None and (not 0 < self.norm_guard < math.inf or self.mode == "quantile"):
            raise ValueError(
                f"norm_guard is {self.norm_guard} in mode {self.mode}; it is above 0 and finite, in select or bands"
            )
        if self.k_max is not None and (type(self.k_max) is not int or self.k_max < 0):  # True is an int to Python
            raise ValueError(f"k_max is {self.k_max}; it must be a whole number, 0 or more, or None for no limit")

    def __call__(self, old: Tensor, new: Tensor, selected: Tensor, generator: torch.Generator) -> Decision:
        """Decide about the units of a layer.

        Args:
            old: (U, n) incoming weights before the task.
            new: (U, n) after it.
            selected: (U,) bool, units that the task trained.
            generator: of the random control.
        """
        if self.metric == "random":
            values = torch.rand(len(old), generator=generator)
        else:
            values = drifts(old, new, self.metric)[0]  # type: ignore[arg-type]
        candidates = selected.nonzero().squeeze(1)
        ranked = candidates[values[candidates].argsort(descending=True, stable=True)]
        if self.mode == "quantile":
            chosen = ranked[: math.ceil(self.quantile * len(ranked))]
        else:
            chosen = ranked[(values[ranked] > self.threshold) | self._rescaled(old, new)[ranked]]
        small = (values < self.lower) & ~self._rescaled(old, new)
        restore = ranked[small[ranked]] if self.mode == "bands" else ranked[:0]
        return Decision(chosen if self.k_max is None else chosen[: self.k_max], restore)

    def _rescaled(self, old: Tensor, new: Tensor) -> Tensor:
        """Units (U,) whose norm changed by more than ``norm_guard``; one that was or is zero among them."""
        if self.norm_guard is None:
            return torch.zeros(len(old), dtype=torch.bool)
        then, now = (torch.linalg.vector_norm(x.double(), dim=1) for x in (old, new))
        rescaled: Tensor = ((now.log() - then.log()).abs() > self.norm_guard) & ((then > 0) | (now > 0))
        return rescaled
