"""How the losses of K domains become one update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isodistill.alignment.and_mask import ANDMask
from isodistill.alignment.base import Alignment
from isodistill.alignment.erm import ERM, PooledERM
from isodistill.alignment.iga import InvariantGradientAlignment
from isodistill.alignment.sand_mask import SANDMask

__all__ = ["ALIGNMENTS", "ERM", "SEARCH", "ANDMask", "Alignment", "InvariantGradientAlignment", "PooledERM", "SANDMask"]

ALIGNMENTS: dict[str, Callable[..., Alignment]] = {
    "erm": ERM,
    "erm_pooled": PooledERM,
    "iga": InvariantGradientAlignment,
    "and_mask": ANDMask,
    "sand_mask": SANDMask,
}

SEARCH: dict[str, dict[str, list[Any]]] = {
    "iga": {"tau": [0.1, 0.3, 1.0, 3.0, 10.0]},
    "and_mask": {"t": [0.5, 0.75, 1.0]},
    "sand_mask": {"t": [0.0, 0.25, 0.5, 0.75], "k": [0.1, 1.0, 10.0, 100.0]},
}
"""Values to search per option, around the defaults of the classes; methods that are not listed have nothing to tune."""
