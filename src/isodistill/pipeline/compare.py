"""``isodistill compare``: a grid of runs, what the selection rules choose from it, and the paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from isodistill.data.files import write_lines
from isodistill.errors import UserError
from isodistill.evaluation.answer import read_representations
from isodistill.evaluation.records import PredictionLog, Record
from isodistill.evaluation.results import compare_seeds, comparison_json, json_text
from isodistill.evaluation.selection import Choice, Setting, leave_one_out, oracle, train_val
from isodistill.evaluation.statistics import holm
from isodistill.pipeline.grid import Cell, Plan, all_cells, before_cell
from isodistill.pipeline.jobs import default_jobs, walk_all
from isodistill.pipeline.problems import check_askable, make_problems, test_splits
from isodistill.pipeline.search import CONTROLS, method_recipe, searched
from isodistill.pipeline.stamps import Stamps
from isodistill.pipeline.steps import resolved, write_recipe
from isodistill.pipeline.teach import teach_rows
from isodistill.pipeline.walk import read_results
from isodistill.recipe import Recipe
from isodistill.report import write_comparison_report
from isodistill.training import DistillConfig

__all__ = ["Plan", "compare_methods"]

Finished: TypeAlias = Mapping[tuple[str, int, int], Cell]
"""(method, draw, seed) -> a run that did not fail."""


def compare_methods(recipe: Recipe, plan: Plan, out: Path, command: str, jobs: int | None = None) -> Path:
    """Run every method with every draw and seed on the same problems, choose by the rules, and compare.

    For each seed all methods share the split, the order of the sets and the initial adapters. What is finished is
    skipped and what was interrupted goes on, so the same command after a kill redoes nothing; runs that failed are
    tried again. One that fails does not stop the others.

    Args:
        recipe: student, problems, training and evaluation; its slots are those of the method it names.
        plan: what is compared.
        out: folder of the comparison.
        command: shown in the report as what made it.
        jobs: runs side by side; None takes one per core, as far as the memory goes.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: a method is unknown, there is nothing to select by, or every run failed.
    """
    if recipe.stages is not None:
        raise UserError("compare trains single distillations, and the recipe has stages; run it once for each guard.")
    plan = _checked(recipe, plan)
    write_recipe(replace(recipe, baseline=None), out)
    make_problems(recipe, out, Stamps(out))
    check_askable(recipe, out)
    if recipe.teach is not None:
        teach_rows(recipe, out, Stamps(out))
    splits = test_splits(out)
    if (plan.search > 1 or plan.leave_one_out) and not (out / "problems" / "valid.jsonl").exists():
        raise UserError(
            "A search needs held-out sets of the training domains to choose by, but there is no split valid. "
            "Set split.valid, for example to 0.2 (or --search 1 to compare the settings of the recipe alone)."
        )
    cells = all_cells(recipe, plan, out, splits)
    before = [before_cell(recipe, plan, out, splits)] if recipe.evaluate.before else []
    failed = walk_all([*before, *cells], out, jobs or default_jobs())
    finished = {(c.method, c.draw, c.seed): c for c in cells if c.without is None and c.folder not in failed}
    if not finished:
        raise UserError(f"All {len(cells)} runs failed, the first because: {next(iter(failed.values()))}")
    content = _content(plan, finished, splits, _rules(plan, cells, failed, finished, splits))
    content["before"] = read_results(before[0].folder)["before"] if before and before[0].folder not in failed else {}
    content["failed"] = [
        {"method": c.method, "seed_hparam": c.draw, "seed": c.seed, "without": c.without, "reason": failed[c.folder]}
        for c in (*before, *cells)
        if c.folder in failed
    ]
    write_lines(out / "comparison.json", [json_text(content).rstrip("\n")])
    write_comparison_report(content, recipe=resolved(recipe), command=command, out=out / "report.html")
    return out / "report.html"


def _checked(recipe: Recipe, plan: Plan) -> Plan:
    """The plan with the baseline first; what would stop every run of a method is said before hours of training."""
    for name, least in (("methods", plan.methods), ("seeds", plan.seeds)):
        if len(set(least)) < len(least) or not least:
            raise UserError(f"--{name} must name each once, and at least one; got {', '.join(map(str, least))}.")
    if plan.search < 1:
        raise UserError(f"--search is {plan.search}; it must be at least 1: the settings of the recipe.")
    if plan.leave_one_out and plan.search == 1:
        raise UserError("--leave-one-out is a way to choose among search draws; give --search a number above 1.")
    baseline = recipe.baseline or "erm"
    methods = [baseline, *(method for method in plan.methods if method != baseline)]
    for method in methods:
        method_recipe(recipe, method)
    return replace(plan, methods=methods)


def _rules(
    plan: Plan, cells: Sequence[Cell], failed: Mapping[Path, str], finished: Finished, splits: Sequence[str]
) -> dict[str, dict[str, Choice]]:
    """Rule -> method -> the chosen setting; with one draw there is nothing to choose, and the rule is ``defaults``."""
    records = [record for cell in finished.values() for record in _answers(cell)]
    if plan.search == 1:
        return {"defaults": oracle(records, _headline(splits))}
    rules = {"train_val": train_val(records)}
    if plan.leave_one_out:
        without: dict[str, list[Record]] = {}
        for cell in cells:
            if cell.without is not None and cell.folder not in failed:
                without.setdefault(cell.without, []).extend(_answers(cell))
        rules["leave_one_out"] = leave_one_out(without)
    return rules | {"oracle": oracle(records, _headline(splits))}


def _headline(splits: Sequence[str]) -> str:
    return "ood" if "ood" in splits else splits[0]


def _content(
    plan: Plan, finished: Finished, splits: Sequence[str], rules: Mapping[str, Mapping[str, Choice]]
) -> dict[str, Any]:
    """What comparison.json holds, but for the untrained student and the failures."""
    order = sorted(finished, key=lambda key: (plan.methods.index(key[0]), key[1:]))
    runs = [read_results(finished[key].folder) for key in order]
    pairs = _Pairs(finished, splits)
    chosen = {rule: _chosen(plan, choices, finished, pairs) for rule, choices in rules.items()}
    default = next(iter(chosen))
    search = {
        "methods": list(plan.methods),
        "seeds": list(plan.seeds),
        "draws": plan.search,
        "splits": list(splits),
        "controls": {control: of for control, of in CONTROLS.items() if control in plan.methods},
    }
    content = comparison_json(runs, chosen[default]["differences"])
    return content | {"baseline": plan.methods[0], "search": search, "default_rule": default, "rules": chosen}


def _chosen(plan: Plan, choices: Mapping[str, Choice], finished: Finished, pairs: _Pairs) -> dict[str, Any]:
    """What one rule chose, the differences to the baseline, and those of a method to its controls."""
    baseline = plan.methods[0]
    methods = [method for method in plan.methods if method in choices]
    differences = {
        method: found
        for method in methods
        if method != baseline and baseline in choices and (found := pairs(choices, baseline, method))
    }
    to_controls: dict[str, Any] = {}
    for control, method in CONTROLS.items():
        if {control, method} <= choices.keys() and (found := pairs(choices, control, method)):
            to_controls.setdefault(method, {})[control] = found
    return {
        "methods": {method: _setting(method, choices[method], finished) for method in methods},
        "differences": differences,
        "differences_to_controls": to_controls,
        "holm": _holm(differences, pairs.splits),
    }


def _setting(method: str, choice: Choice, finished: Finished) -> dict[str, Any]:
    number = choice.setting.seed_hparam
    tree = resolved(finished[method, number, choice.seeds[0]].recipe)
    parts = [part for part in (tree["alignment"], tree["term"]) if part]
    return {
        "seed_hparam": number,
        "step": choice.setting.step,
        "score": round(choice.score, 10),
        "scores": {str(setting.seed_hparam): round(score, 10) for setting, score in choice.scores.items()},
        "seeds": choice.seeds,
        "searched": {name: part[name] for part in parts for name in searched(part["name"])},
        "learning_rate": tree["train"].get("learning_rate", DistillConfig.learning_rate),
        "objective": tree["objective"],
        "alignment": tree["alignment"],
        "term": tree["term"],
    }


def _holm(differences: Mapping[str, Any], splits: Sequence[str]) -> dict[str, dict[str, float]]:
    """Split -> method -> p of the accuracy, adjusted for the family of all methods compared with the baseline."""
    methods = list(differences)
    return {
        split: dict(zip(methods, holm([differences[m][split]["p"]["acc_macro"] for m in methods]), strict=True))
        for split in splits
    }


class _Pairs:
    """Paired differences over the seeds that two choices share; each pair of draws is computed once for all rules."""

    def __init__(self, finished: Finished, splits: Sequence[str]) -> None:
        self.finished = finished
        self.splits = splits
        self.known: dict[tuple[str, Setting, str, Setting], dict[str, Any] | None] = {}

    def __call__(self, choices: Mapping[str, Choice], left: str, right: str) -> dict[str, Any] | None:
        """Split -> metric -> right minus left; None where they share no seed."""
        key = (left, choices[left].setting, right, choices[right].setting)
        if key not in self.known:
            seeds = [seed for seed in choices[left].seeds if seed in choices[right].seeds]
            sides = [
                [self.finished[method, choices[method].setting.seed_hparam, seed] for seed in seeds]
                for method in (left, right)
            ]
            self.known[key] = self._compare(*sides) if seeds else None
        return self.known[key]

    def _compare(self, left: Sequence[Cell], right: Sequence[Cell]) -> dict[str, Any]:
        states = [[read_representations(cell.folder, "after") for cell in cells] for cells in (left, right)]
        measured = all(all(side) for side in states)
        return compare_seeds(
            *([self._tests(cell) for cell in cells] for cells in (left, right)),
            baseline_representations=states[0] if measured else None,
            method_representations=states[1] if measured else None,
        )

    def _tests(self, cell: Cell) -> list[Record]:
        return [record for record in _answers(cell) if record.split in self.splits]


def _answers(cell: Cell) -> list[Record]:
    return [r for r in PredictionLog(cell.folder / "predictions.jsonl").read() if r.stage == "after"]
