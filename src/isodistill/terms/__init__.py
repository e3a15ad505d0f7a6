"""What is added to the loss beside the objective."""

from __future__ import annotations

from collections.abc import Callable

from isodistill.terms.base import FeatureTerm, Term
from isodistill.terms.flexkd import FlexKD
from isodistill.terms.prada import PRADA
from isodistill.terms.projector import CKA, Projector

__all__ = ["CKA", "PRADA", "TERMS", "FeatureTerm", "FlexKD", "Projector", "Term"]

TERMS: dict[str, Callable[..., Term]] = {"flexkd": FlexKD, "projector": Projector, "cka": CKA, "prada": PRADA}
