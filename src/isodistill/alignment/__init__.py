"""How the losses of K domains become one update."""

from __future__ import annotations

from collections.abc import Callable

from isodistill.alignment.base import Alignment
from isodistill.alignment.erm import ERM, PooledERM
from isodistill.alignment.iga import InvariantGradientAlignment

__all__ = ["ALIGNMENTS", "ERM", "Alignment", "InvariantGradientAlignment", "PooledERM"]

ALIGNMENTS: dict[str, Callable[..., Alignment]] = {
    "erm": ERM,
    "erm_pooled": PooledERM,
    "iga": InvariantGradientAlignment,
}
