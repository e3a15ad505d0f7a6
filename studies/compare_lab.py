"""Nine methods and the control on the lab student, side by side.

    python studies/compare_lab.py

Trains every method of `METHODS` with its defaults on the conflicting-cue task, seeds outermost, so that methods stay
comparable whenever it is stopped. Each run is one `python -m isodistill.lab`; its record is appended to
docs/results/compare-runs.jsonl, and what stands there is not run again. Then writes docs/results/compare.json and from
it the tables of docs/results/compare.md. `--runs 0` only writes these.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from isodistill.data.files import read_log, write_lines
from isodistill.evaluation import mean_sd
from isodistill.evaluation.statistics import MIN_SEEDS, paired_interval

RESULTS = Path("docs/results")
BEGIN, END = "<!-- compare: begin, made by studies/compare_lab.py from compare.json -->", "<!-- compare: end -->"
SETTING = "conflicting cues, K = 8, rho 1"
SEEDS = range(5)

METHODS: dict[str, str] = {
    "erm": "ERM",
    "iga": "IGA",
    "irm": "IRM",
    "vrex": "V-REx",
    "group_dro": "GroupDRO",
    "fish": "Fish",
    "fishr": "Fishr",
    "and_mask": "AND-mask",
    "pcgrad": "PCGrad",
    "random_mask": "random mask, density and step ratio of IGA",
}
"""Preset -> label, in the order in which a seed is run."""

METRICS: dict[str, tuple[str | None, str]] = {
    "acc_ood": ("ood", "acc_macro"),
    "all_correct_ood": ("ood", "all_correct"),
    "agreement_ood": ("ood", "agreement"),
    "lcs_ratio_ood": ("ood", "lcs_ratio"),
    "acc_cue_random": ("cue_random", "acc_macro"),
    "acc_id": ("id", "acc_macro"),
    "seconds": (None, "seconds"),
}
"""Metric -> split and name in a run's record."""
LOWER_IS_BETTER = ("lcs_ratio_ood", "seconds")

Run = dict[str, Any]


def main() -> None:
    """Run what is missing, then write the records and the tables."""
    parser = argparse.ArgumentParser(description="The methods side by side in the laboratory.")
    parser.add_argument("--runs", type=int, default=None, help="run at most so many; 0 only writes the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of compare-runs.jsonl and what it gives")
    given = parser.parse_args()
    torch.set_num_threads(1)
    lab = lab_study()
    log = given.results / "compare-runs.jsonl"
    done = {run["command"] for run in read_log(log)}
    missing = [run for run in planned() if run["command"] not in done]
    for number, run in enumerate(missing[: given.runs], start=1):
        lab.append(log, run | {"record": lab.train_and_test(run)})
        print(f"{number} of {len(missing)}: {run['command']}", flush=True)
    records = collect(lab, read_log(log))
    path = given.results / "compare.json"  # shared with studies/four_benchmarks.py
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    others = [record for record in known if record["setting"] != SETTING]
    write_lines(path, [json.dumps([*records, *others], indent=1, allow_nan=False)])
    page = given.results / "compare.md"
    write_lines(page, with_tables(page.read_text(encoding="utf-8"), table(records)).splitlines())


def lab_study() -> ModuleType:
    """The study of IGA, whose log and intervals serve here too."""
    spec = importlib.util.spec_from_file_location("lab_study", Path(__file__).with_name("lab.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def planned() -> Iterator[Run]:
    """Every run: what it is and the command that makes it."""
    for seed in SEEDS:
        for method in METHODS:
            yield {
                "setting": SETTING,
                "method": method,
                "command": f"python -m isodistill.lab --method {method} --seed {seed}",
                "tree": {"method": method, "seed": seed},
                "overrides": [],
            }


def collect(lab: ModuleType, runs: list[Run]) -> list[Run]:
    """One record per method and metric; differences are paired by seed."""
    found: dict[str, dict[int, Run]] = {method: {} for method in METHODS}
    for run in runs:
        found[run["method"]][run["record"]["seed"]] = run["record"]
    return [
        _record(lab, method, metric, {name: dict(sorted(seeds.items())) for name, seeds in found.items()})
        for method in METHODS
        if found[method]
        for metric in METRICS
    ]


def _record(lab: ModuleType, method: str, metric: str, found: dict[str, dict[int, Run]]) -> Run:
    runs = found[method]
    values = {seed: _value(run, metric) for seed, run in runs.items()}
    defined = [value for value in values.values() if value is not None]
    mean, sd = mean_sd(defined) if defined else (math.nan, math.nan)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    differences = {}
    for rival in ("erm", "random_mask"):
        pairs = [(values[seed], _value(found[rival][seed], metric)) for seed in values if seed in found[rival]]
        apart = [sign * (ours - theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
        if rival != method and len(apart) >= MIN_SEEDS:
            differences[rival] = paired_interval(apart)
    first = next(iter(runs.values()))
    return {
        "setting": SETTING,
        "student": f"lab transformer, {first['parameters'] / 1e6:.2f} M parameters",
        "method": method,
        "metric": metric,
        "mean": None if math.isnan(mean) else round(mean, 6),
        "sd": None if math.isnan(sd) else round(sd, 6),
        "seeds": list(values.values()),
        "diff_to": differences,
        "command": "python studies/compare_lab.py",
    }


def _value(run: Run, metric: str) -> float | None:
    """None where the number is undefined."""
    split, name = METRICS[metric]
    value: float | None = run[name] if split is None else run["splits"][split][name]
    return value


def table(records: list[Run]) -> str:
    """The table of the page, the best mean first, from the records alone."""
    found = {(r["method"], r["metric"]): r for r in records}
    ranked = sorted(
        (method for method in METHODS if (method, "acc_ood") in found),
        key=lambda method: -found[method, "acc_ood"]["mean"],
    )
    lines = [
        "| method | accuracy, unseen surfaces | seeds | better than ERM by | than random mask by | all correct | "
        "agreement | LCS ratio | trained surfaces, cue random | seconds against ERM |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method in ranked:
        accuracy = found[method, "acc_ood"]
        cells = [METHODS[method], _mean(accuracy), " / ".join(f"{value:.3f}" for value in accuracy["seeds"])]
        cells += [_difference(accuracy, rival) for rival in ("erm", "random_mask")]
        cells += [
            _mean(found[method, metric])
            for metric in ("all_correct_ood", "agreement_ood", "lcs_ratio_ood", "acc_cue_random")
        ]
        ratio = found[method, "seconds"]["mean"] / found["erm", "seconds"]["mean"]
        lines.append(f"| {' | '.join([*cells, f'{ratio:.2f}'])} |")
    return "\n".join(lines)


def with_tables(page: str, text: str) -> str:
    """The page with what stands between its marks replaced."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def _mean(record: Run) -> str:
    if record["mean"] is None:
        return "-"
    return f"{record['mean']:.3f}" + ("" if record["sd"] is None else f" ± {record['sd']:.3f}")


def _difference(record: Run, rival: str) -> str:
    if rival not in record["diff_to"]:
        return "-"
    value, low, high = record["diff_to"][rival]
    return f"{value:+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    main()
