"""The laboratory: a transformer trained from scratch in about a minute on a task with a planted shortcut."""

from __future__ import annotations

from isodistill.lab.run import run_lab
from isodistill.lab.settings import LabSettings

__all__ = ["LabSettings", "run_lab"]
