"""The field of a comparison: its methods, what each selection rule chose for them, and their runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from isodistill.report import text
from isodistill.report.run import Estimate, ordered_splits

__all__ = ["Field"]


class Field:
    """What a page reads of comparison.json as ``isodistill compare`` writes it.

    Attributes:
        content: the whole file.
        baseline: the method that every other one is compared with.
        rules: selection rule -> its entry; the default rule first.
        rule: the default rule.
        splits: the test splits, domains never trained on first.
        controls: control -> the method whose idea it takes away.
    """

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content
        self.baseline: str = content["baseline"]
        self.rules: Mapping[str, Any] = content["rules"]
        self.rule: str = content["default_rule"]
        tested = {split: {"n_items": 1} for split in content["search"]["splits"]}
        self.splits = ordered_splits({"splits": tested})
        self.controls: Mapping[str, str] = content["search"]["controls"]
        self._runs = {(run["method"], run["seed_hparam"], run["seed"]): run for run in content["runs"]}

    def runs(self, rule: str, method: str) -> list[Mapping[str, Any]]:
        """The results of a method's chosen setting, one per seed."""
        entry = self.rules[rule]["methods"][method]
        return [self._runs[method, entry["seed_hparam"], seed] for seed in entry["seeds"]]

    def values(self, rule: str, method: str, split: str, key: str) -> list[float]:
        """One number per seed, where it is defined."""
        numbers = [run["splits"].get(split, {}).get(key) for run in self.runs(rule, method)]
        return [value for value in numbers if value is not None]

    def mean(self, rule: str, method: str, split: str, key: str) -> float:
        """The mean over seeds; NaN where no seed defines it."""
        values = self.values(rule, method, split, key)
        return fmean(values) if values else math.nan

    def difference(self, rule: str, method: str, split: str, key: str = "acc_macro") -> Estimate | None:
        """Method minus baseline, paired; None for the baseline, and where it is undefined."""
        numbers = self.rules[rule]["differences"].get(method, {}).get(split, {}).get(key)
        return Estimate(*numbers) if numbers else None

    def holm(self, rule: str, method: str, split: str) -> float | None:
        """p of the accuracy's difference, adjusted for all methods of the table."""
        p: float | None = self.rules[rule]["holm"].get(split, {}).get(method)
        return p

    def ranked(self, rule: str) -> list[str]:
        """The methods of a rule, the most accurate on the first split on top."""
        methods = list(self.rules[rule]["methods"])
        return sorted(methods, key=lambda m: -self.mean(rule, m, self.splits[0], "acc_macro"))

    def label(self, method: str) -> str:
        """The method's full name; its tier stands in it."""
        entry = self.rules[self.rule]["methods"].get(method)
        if entry is None:
            return text.method_name(method)
        return text.method_label({"method": method}, {"alignment": entry["alignment"]})

    def short(self, method: str) -> str:
        """The method's name for a plot."""
        return f"{text.method_name(method)} (control)" if method in self.controls else text.method_name(method)

    def role(self, method: str) -> str:
        """The colour and marker of a method, the same in every plot."""
        return "baseline" if method == self.baseline else f"m{list(self.content['search']['methods']).index(method)}"
