"""The report: a page for a run, for two runs, for many methods or many stages; and a student's model card."""

from __future__ import annotations

from isodistill.report.card import write_model_card
from isodistill.report.comparison import write_comparison_report
from isodistill.report.html import write_report
from isodistill.report.stages import write_stage_report

__all__ = ["write_comparison_report", "write_model_card", "write_report", "write_stage_report"]
