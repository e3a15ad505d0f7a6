"""How the losses of K domains become one update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isodistill.alignment.base import Alignment
from isodistill.alignment.erm import ERM, PooledERM
from isodistill.alignment.iga import InvariantGradientAlignment

__all__ = ["ALIGNMENTS", "ERM", "SEARCH", "Alignment", "InvariantGradientAlignment", "PooledERM"]

ALIGNMENTS: dict[str, Callable[..., Alignment]] = {
    "erm": ERM,
    "erm_pooled": PooledERM,
    "iga": InvariantGradientAlignment,
}

SEARCH: dict[str, dict[str, list[Any]]] = {
    "iga": {"tau": [0.1, 0.3, 1.0, 3.0, 10.0]},
}
"""Values to search per option, around the defaults of the classes; methods that are not listed have nothing to tune."""
