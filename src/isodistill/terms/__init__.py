"""What is added to the loss beside the objective."""

from __future__ import annotations

from collections.abc import Callable

from isodistill.terms.base import FeatureTerm
from isodistill.terms.flexkd import FlexKD
from isodistill.terms.projector import CKA, Projector

__all__ = ["CKA", "TERMS", "FeatureTerm", "FlexKD", "Projector"]

TERMS: dict[str, Callable[..., FeatureTerm]] = {"flexkd": FlexKD, "projector": Projector, "cka": CKA}
