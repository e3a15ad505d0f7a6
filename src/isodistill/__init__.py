"""Robust reasoning distillation: train small LoRA students on isomer sets and measure whether reasoning holds."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isodistill.training import DistillConfig, DistillTrainer

__all__ = ["DistillConfig", "DistillTrainer"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Importing the trainer costs seconds of torch; `isodistill --help` must not wait for them.
    if name in __all__:
        return getattr(import_module("isodistill.training"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
