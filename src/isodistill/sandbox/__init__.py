"""Programs that a student wrote, run where they can reach nothing, against tests that they cannot see."""

from __future__ import annotations

from isodistill.sandbox.outside import Limits, Trial, run_tests, why_no_sandbox

__all__ = ["Limits", "Trial", "run_tests", "why_no_sandbox"]
