"""What is added to the loss of the traces."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isodistill.terms.isomer_consistency import IsomerConsistency, SetMembers

__all__ = ["SEARCH", "TERMS", "IsomerConsistency", "SetMembers"]

TERMS: dict[str, Callable[..., IsomerConsistency]] = {"isomer_consistency": IsomerConsistency}

SEARCH: dict[str, dict[str, list[Any]]] = {
    "isomer_consistency": {"answers": [0.0, 0.1, 0.3, 1.0, 3.0], "states": [0.01, 0.03, 0.1, 0.3, 1.0]}
}
"""Values to search per option, around the defaults of the classes."""
