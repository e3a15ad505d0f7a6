"""What is added to the loss beside the objective."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isodistill.terms.base import FeatureTerm, Term
from isodistill.terms.flexkd import FlexKD
from isodistill.terms.isomer_consistency import IsomerConsistency, SetMembers
from isodistill.terms.prada import PRADA
from isodistill.terms.projector import CKA, Projector

__all__ = [
    "CKA",
    "PRADA",
    "SEARCH",
    "TERMS",
    "FeatureTerm",
    "FlexKD",
    "IsomerConsistency",
    "Projector",
    "SetMembers",
    "Term",
]

TERMS: dict[str, Callable[..., Term]] = {
    "isomer_consistency": IsomerConsistency,
    "flexkd": FlexKD,
    "projector": Projector,
    "cka": CKA,
    "prada": PRADA,
}

SEARCH: dict[str, dict[str, list[Any]]] = {
    "isomer_consistency": {"answers": [0.0, 0.1, 0.3, 1.0, 3.0], "states": [0.01, 0.03, 0.1, 0.3, 1.0]},
    "prada": {"lam": [0.01, 0.1, 1.0]},
}
"""Values to search per option, around the defaults of the classes."""
