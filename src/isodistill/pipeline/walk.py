"""The walk: every step of a run in order, the baseline beside it, and the report at the end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from isodistill.data.files import write_lines
from isodistill.errors import UserError
from isodistill.evaluation.answer import read_representations
from isodistill.evaluation.records import PredictionLog, Record, Stage
from isodistill.evaluation.results import compare, comparison_json, json_text
from isodistill.pipeline.problems import check_askable, make_problems
from isodistill.pipeline.ranks import is_main, wait_for_all
from isodistill.pipeline.stages import STAGES, run_stages, train_stages
from isodistill.pipeline.stamps import Stamps, share_step
from isodistill.pipeline.steps import evaluate_student, train_student, write_recipe, write_results
from isodistill.pipeline.target import check_target
from isodistill.pipeline.teach import plan_in_words, summary_lines, teach_rows
from isodistill.recipe import Recipe
from isodistill.report import write_model_card, write_report, write_stage_report
from isodistill.training.slots import fill_guard

__all__ = ["BASELINE", "evaluate_run", "read_results", "report_runs", "run_recipe", "teach_run", "train_run"]

BASELINE = "baseline"


def run_recipe(recipe: Recipe, folder: Path, command: str) -> Path:
    """Walk the whole way; steps whose inputs and settings are unchanged are skipped.

    With ``recipe.baseline`` that method is trained too, in ``folder/baseline``, from the same start on the same sets in
    the same order, and the report leads with the paired difference.

    Args:
        recipe: the run.
        folder: the run folder.
        command: shown in the report as what made it.

    Returns:
        The path of ``report.html``.
    """
    if recipe.stages is not None:
        return run_stages(recipe, folder, command)
    runs, donor = {folder: recipe}, None
    if recipe.baseline is not None and recipe.baseline != recipe.method:
        donor = folder / BASELINE
        runs[donor] = replace(recipe, method=recipe.baseline, baseline=None, objective=None, alignment=None, term=None)
    # What would stop a later step is said before hours of training; so the method goes before its baseline, too.
    for path, each in runs.items():
        _begin(each, path)
    check_askable(recipe, folder)
    if recipe.teach is not None:
        teach_rows(recipe, folder, Stamps(folder))
        if donor is not None:
            share_step("teach", folder, donor, "taught")
    for path, each in runs.items():
        train_run(each, path)
    for path, each in reversed(runs.items()):
        evaluate_run(each, path, donor)
        write_results(each, path)
    return report_runs(folder, donor, folder / "report.html", command)


def report_runs(folder: Path, baseline: Path | None, out: Path, command: str) -> Path:
    """``comparison.json`` beside ``out``, the model cards, and the report, from the files of finished runs.

    Args:
        folder: the run.
        baseline: the run to compare it with; None takes the one that ``run`` trained beside it, where there is one.
        out: the page to write.
        command: shown in the report as what made it.

    Raises:
        UserError: a folder holds no evaluated run, or the two did not answer the same problems.
    """
    if (folder / STAGES).exists():
        write_stage_report(folder, command=command, out=out)
        return out
    if baseline is None and (folder / BASELINE / "results.json").exists():
        baseline = folder / BASELINE
    results = [read_results(path) for path in (baseline, folder) if path is not None]
    _compare(folder, baseline, results, out.parent)
    write_report(folder, baseline=baseline, command=command, out=out)
    return out


def train_run(recipe: Recipe, folder: Path) -> Path:
    """Problems, traces and training of one run folder, or of all its stages, by one process or by all of a launch.

    Returns:
        Where the student lies.
    """
    if recipe.stages is not None:
        return train_stages(recipe, folder)
    if is_main():
        stamps = _begin(recipe, folder)
        if recipe.teach is not None:
            teach_rows(recipe, folder, stamps)
    wait_for_all()
    train_student(recipe, folder, Stamps(folder))
    return folder / "student"


def teach_run(recipe: Recipe, folder: Path, *, dry: bool) -> list[str]:
    """Problems and traces of one run folder; with ``dry`` nothing is asked.

    Returns:
        What was done, or what would be, in lines to print.

    Raises:
        UserError: the recipe has no group ``teach``, and whatever ``teach_rows`` raises.
    """
    if recipe.teach is None:
        raise UserError(
            "The recipe has no group teach. Give it one with at least one teacher; see examples/teach.yaml."
        )
    stamps = _begin(recipe, folder)
    if dry:
        return plan_in_words(recipe, folder)
    if teach_rows(recipe, folder, stamps):
        return []  # told already
    return summary_lines(json.loads((folder / "taught" / "teach.json").read_text(encoding="utf-8")))


def evaluate_run(recipe: Recipe, folder: Path, donor: Path | None = None) -> None:
    """Answers before and after training."""
    _require_single(recipe)
    write_recipe(recipe, folder)
    stamps = Stamps(folder)
    if recipe.evaluate.before:
        evaluate_student(recipe, folder, stamps, "before", donor)
    evaluate_student(recipe, folder, stamps, "after")


def _begin(recipe: Recipe, folder: Path) -> Stamps:
    """The run folder with its recipe and problems."""
    _require_single(recipe)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The run folder {folder} cannot be made: {error}. Choose another one with --out.") from error
    for left in folder.glob("**/.*.tmp"):  # by a killed run
        left.unlink()
    write_recipe(recipe, folder)
    stamps = Stamps(folder)
    make_problems(recipe, folder, stamps)
    check_target(recipe, folder)
    return stamps


def _require_single(recipe: Recipe) -> None:
    """Refuse stages where one distillation is meant, and a guard where there are none."""
    if recipe.stages is not None:
        raise UserError(
            "This verb works on one distillation, and the recipe has stages: `isodistill run` does all of them, and "
            "RUN/stages/N-NAME is a run folder of its own."
        )
    guard, name = fill_guard(recipe.guard)
    if name != "none" and getattr(guard, "mode", "") != "monitor":
        raise UserError(
            f"The guard {name} protects what earlier stages taught, and the recipe has no stages; leave guard out, or "
            "give stages."
        )


def _compare(folder: Path, donor: Path | None, results: list[dict[str, Any]], target: Path) -> None:
    """The paired differences: to the baseline, and from before to after for each of the two."""
    recipe_text = {path: _recipe(path) for path in (folder, donor) if path is not None}
    differences: dict[str, Any] = {}
    if donor is not None:
        differences[results[-1]["method"]] = _difference((donor, "after"), (folder, "after"))
    first = donor or folder
    if all(result["before"] for result in results):
        differences["before"] = _difference((first, "before"), (first, "after"))
        if donor is not None:
            differences[f"before_{results[-1]['method']}"] = _difference((folder, "before"), (folder, "after"))
    write_lines(target / "comparison.json", [json_text(comparison_json(results, differences)).rstrip("\n")])
    quoted = None
    if donor is not None:
        quoted = {"baseline": results[0]["method"], **differences[results[-1]["method"]]}
        write_model_card(donor / "student", results[0], recipe_text[donor], None)
    write_model_card(folder / "student", results[-1], recipe_text[folder], quoted)


def _difference(left: tuple[Path, Stage], right: tuple[Path, Stage]) -> dict[str, Any]:
    (records_a, states_a), (records_b, states_b) = (_answers(*side) for side in (left, right))
    both = bool(states_a and states_b)
    return compare(
        records_a,
        records_b,
        baseline_representations=states_a if both else None,
        method_representations=states_b if both else None,
    )


def _answers(folder: Path, stage: Stage) -> tuple[list[Record], dict[str, Any]]:
    records = [r for r in PredictionLog(folder / "predictions.jsonl").read() if r.stage == stage]
    return records, read_representations(folder, stage)


def read_results(folder: Path) -> dict[str, Any]:
    """``results.json`` of a run folder.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{folder} has no results.json; `isodistill evaluate {folder}` makes it.")
    try:
        results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. `isodistill evaluate {folder}` makes it again.") from error
    return results


def _recipe(folder: Path) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    return tree
