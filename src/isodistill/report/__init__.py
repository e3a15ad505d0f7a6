"""The report: one page for a run, or for a run against its baseline, and the model card of a student."""

from __future__ import annotations

from isodistill.report.card import write_model_card
from isodistill.report.html import write_report

__all__ = ["write_model_card", "write_report"]
