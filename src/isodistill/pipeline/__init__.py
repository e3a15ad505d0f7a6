"""The walk through the steps of a run: problems -> traces -> before -> train -> after -> results -> report."""

from __future__ import annotations

from isodistill.pipeline.audit import audit_pairs
from isodistill.pipeline.audit_sets import audit_sets
from isodistill.pipeline.compare import Plan, compare_methods
from isodistill.pipeline.demo import demo_recipe
from isodistill.pipeline.environment import describe_environment
from isodistill.pipeline.rewrite import rewrite_plan, rewrite_run
from isodistill.pipeline.steps import write_results
from isodistill.pipeline.walk import evaluate_run, report_runs, run_recipe, teach_run, train_run

__all__ = [
    "Plan",
    "audit_pairs",
    "audit_sets",
    "compare_methods",
    "demo_recipe",
    "describe_environment",
    "evaluate_run",
    "report_runs",
    "rewrite_plan",
    "rewrite_run",
    "run_recipe",
    "teach_run",
    "train_run",
    "write_results",
]
