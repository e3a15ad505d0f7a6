"""The trainer, its arguments and its checkpoints."""

from __future__ import annotations

from isodistill.training.config import DistillConfig
from isodistill.training.trainer import DistillTrainer

__all__ = ["DistillConfig", "DistillTrainer"]
