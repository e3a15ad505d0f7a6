"""What one page is about: a run, perhaps its baseline, their differences, and what can be claimed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isodistill.report import text
from isodistill.report.run import (
    Estimate,
    Run,
    Side,
    estimate,
    ordered_splits,
    read_comparison,
    read_own_changes,
    read_run,
)

__all__ = ["Study", "cautions", "claims", "read_study"]

MANY_UNFINISHED = 0.05
BUDGET_TOLERANCE = 0.05


@dataclass(frozen=True)
class Study:
    """A run with all that it is compared with.

    Attributes:
        label: how the run's method is printed.
        run: the run.
        baseline_label: how the baseline's method is printed; empty without one.
        baseline: the run it is compared with, or None.
        differences: split -> metric -> method minus baseline; None without a baseline.
        changes: label -> split -> metric -> after minus before, for the runs that have it.
        all_results: every results.json of the comparison, so every seed.
    """

    label: str
    run: Run
    baseline_label: str
    baseline: Run | None
    differences: Mapping[str, Mapping[str, Any]] | None
    changes: Mapping[str, Mapping[str, Mapping[str, Any]]]
    all_results: Sequence[Mapping[str, Any]]

    @property
    def runs(self) -> list[tuple[str, Run]]:
        """Label and run: the baseline (where there is one), then the run."""
        first = [] if self.baseline is None else [(self.baseline_label, self.baseline)]
        return [*first, (self.label, self.run)]

    @property
    def splits(self) -> list[str]:
        """The evaluated splits, domains never trained on first."""
        return ordered_splits(self.run.results)

    @property
    def sides(self) -> list[Side]:
        """The students of tables and plots: before training, the baseline, the method."""
        before = self.run.results.get("before") or {}
        sides = [Side("before training", "before", before)] if any(before.values()) else []
        if self.baseline is not None:
            sides.append(Side(self.baseline_label, "baseline", self.baseline.results["splits"]))
        return [*sides, Side(self.label, "method", self.run.results["splits"])]

    def difference(self, split: str) -> Mapping[str, Any] | None:
        """Metric -> [difference, lo, hi] to the baseline or, without one, to the student before training."""
        found = self.changes.get(self.label, {}) if self.differences is None else self.differences
        return found.get(split)


def read_study(run_folder: Path, baseline_folder: Path | None, comparison_folder: Path) -> Study:
    """Read a run alone, or a run with its baseline and the ``comparison.json`` in ``comparison_folder``.

    In ``differences`` of that file, ``before`` is after minus before of the baseline (of the run, where it holds that
    run alone) and ``before_<method>`` that of the method.
    """
    run = read_run(run_folder)
    label = text.method_label(run.results, run.recipe)
    own = read_own_changes(run)
    if baseline_folder is None:
        return Study(label, run, "", None, None, {} if own is None else {label: own}, [run.results])
    baseline = read_run(baseline_folder)
    comparison = read_comparison(comparison_folder, run, baseline)
    baseline_label = text.method_label(baseline.results, baseline.recipe)
    if baseline_label == label:
        label, baseline_label = f"{label}, {run.path.name}", f"{baseline_label}, {baseline.path.name}"
    differences, method = comparison["differences"], run.results["method"]
    of_run = own or differences.get(f"before_{method}") or {}
    changes = {baseline_label: differences.get("before") or {}, label: of_run}
    return Study(label, run, baseline_label, baseline, differences[method], changes, comparison["runs"])


def claims(study: Study) -> list[text.Claim]:
    """The findings, headline first: method against baseline per split, then before against after of each run."""
    found = [_pair(study, split) for split in study.splits] if study.baseline is not None else []
    found += [_change(study, label, run, split) for label, run in study.runs for split in study.splits]
    kept = [claim for claim in found if claim is not None]
    return kept or [
        text.level_claim(split, study.label, accuracy)
        for split in study.splits
        if (accuracy := estimate(study.run.results["splits"][split], "acc_macro"))
    ]


def cautions(study: Study) -> list[str]:
    """What a reader should know before believing the headline."""
    method = study.run.results["method"]
    seeds = {numbers["seed"] for numbers in study.all_results if numbers["method"] == method}
    found = [text.seed_note(len(seeds), study.run.results["seed"])]
    if study.baseline is not None:
        found += _unequal(study.run, study.baseline)
    found += _unfinished(study)
    return found


def _pair(study: Study, split: str) -> text.Claim | None:
    assert study.baseline is not None
    left = estimate(study.baseline.results["splits"].get(split) or {}, "acc_macro")
    right = estimate(study.run.results["splits"][split], "acc_macro")
    if left is None or right is None:
        return None
    paired = ((study.differences or {}).get(split) or {}).get("acc_macro")
    difference = Estimate(*paired) if paired else Estimate(right.value - left.value)
    return text.pair_claim(split, study.baseline_label, study.label, (left.value, right.value), difference)


def _change(study: Study, label: str, run: Run, split: str) -> text.Claim | None:
    before = estimate((run.results.get("before") or {}).get(split) or {}, "acc_macro")
    after = estimate(run.results["splits"].get(split) or {}, "acc_macro")
    if before is None or after is None:
        return None
    paired = (study.changes.get(label, {}).get(split) or {}).get("acc_macro")
    difference = Estimate(*paired) if paired else Estimate(after.value - before.value)
    return text.change_claim(split, label, (before.value, after.value), difference)


def _unfinished(study: Study) -> list[str]:
    """One sentence on the students of whose answers at least 5 % stopped at the length limit."""
    parts = []
    for side in study.sides:
        shares = {split: (side.splits.get(split) or {}).get("truncated") or 0.0 for split in study.splits}
        if max(shares.values()) >= MANY_UNFINISHED:
            parts.append(f"{side.label} {', '.join(f'{text.percent(x)} ({split})' for split, x in shares.items())}")
    if not parts:
        return []
    return [f"Answers that stopped at the length limit count as not correct: {'; '.join(parts)}."]


def _unequal(run: Run, baseline: Run) -> list[str]:
    found = []
    for key, words in (("student", "students"), ("seed", "training seeds")):
        ours, theirs = run.results[key], baseline.results[key]
        if ours != theirs:
            found.append(f"The two runs have different {words}: {ours} (method) and {theirs} (baseline).")
    for key, words in (("steps", "training steps"), ("tokens", "trained tokens")):
        ours, theirs = ((r.results.get("train") or {}).get(key) for r in (run, baseline))
        if ours and theirs and abs(ours - theirs) > BUDGET_TOLERANCE * max(ours, theirs):
            found.append(f"The budgets differ: {ours:,} {words} (method) and {theirs:,} (baseline).")
    return found
