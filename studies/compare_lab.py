"""Nine methods, the control of IGA and isomer consistency on the lab student, side by side.

    python studies/compare_lab.py

Trains every method of `METHODS` with its defaults on the conflicting-cue task, seeds outermost, so that methods stay
comparable whenever it is stopped. Each run is one `python -m isodistill.lab`; its record is appended to
docs/results/compare-runs.jsonl, and what stands there is not run again. Then writes docs/results/compare.json and from
it the tables of docs/results/compare.md. `--runs 0` only writes these.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from cells import difference_cell, mean_cell

import lab
from isodistill.data.files import read_log, write_between_marks, write_lines
from isodistill.evaluation import mean_sd
from isodistill.evaluation.statistics import MIN_SEEDS, paired_interval

RESULTS = Path("docs/results")
BEGIN, END = "<!-- compare: begin, made by studies/compare_lab.py from compare.json -->", "<!-- compare: end -->"
SETTING = "conflicting cues, K = 8, rho 1"
SEEDS = range(5)

WHOLE = ["task.sets=true"]
METHODS: dict[str, tuple[str, str, list[str]]] = {
    "erm": ("ERM", "erm", []),
    "iga": ("IGA", "iga", []),
    "irm": ("IRM", "irm", []),
    "vrex": ("V-REx", "vrex", []),
    "group_dro": ("GroupDRO", "group_dro", []),
    "fish": ("Fish", "fish", []),
    "fishr": ("Fishr", "fishr", []),
    "and_mask": ("AND-mask", "and_mask", []),
    "pcgrad": ("PCGrad", "pcgrad", []),
    "random_mask": ("random mask, density and step ratio of IGA", "random_mask", []),
    "isomer_consistency": ("isomer consistency (ERM and the term), whole sets", "isomer_consistency", WHOLE),
    "iga_consistency": ("IGA + isomer consistency, whole sets", "iga_consistency", WHOLE),
    "erm_sets": ("ERM, whole sets", "erm", WHOLE),
    "iga_sets": ("IGA, whole sets", "iga", WHOLE),
    "shuffled_sets": (
        "isomer consistency, members of different sets (control)",
        "isomer_consistency",
        [*WHOLE, "term.control=shuffled"],
    ),
}
"""Method -> label, preset, options, in the order in which a seed is run. A step of whole sets tells the same problems
on all surfaces, so the term has a baseline of its own."""

RIVALS = ("erm", "random_mask", "erm_sets", "iga_sets", "shuffled_sets")
TERMS = {"isomer_consistency": ("erm_sets", "shuffled_sets"), "iga_consistency": ("iga_sets",)}
"""Method with the term -> what it is without, and its control."""

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
    log = given.results / "compare-runs.jsonl"
    done = {run["command"] for run in read_log(log)}
    missing = [run for run in planned() if run["command"] not in done]
    for number, run in enumerate(missing[: given.runs], start=1):
        lab.append(log, run | {"record": lab.train_and_test(run)})
        print(f"{number} of {len(missing)}: {run['command']}", flush=True)
    records = collect(read_log(log))
    write_records(given.results / "compare.json", records, SETTING)
    page = given.results / "compare.md"
    write_between_marks(page, BEGIN, END, tables(records))


def planned() -> Iterator[Run]:
    """Every run: what it is and the command that makes it."""
    for seed in SEEDS:
        for method, (_, preset, options) in METHODS.items():
            command = f"python -m isodistill.lab --method {preset} --seed {seed}"
            yield {
                "setting": SETTING,
                "method": method,
                "command": command + "".join(f" --set {option}" for option in options),
                "tree": {"method": preset, "seed": seed},
                "overrides": options,
            }


def write_records(path: Path, records: list[Run], setting: str) -> None:
    """compare.json, in which the records of other settings stay, those of defaults first."""
    known: list[Run] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    whole = records + [record for record in known if not record["setting"].startswith(setting)]
    whole.sort(key=lambda record: bool(record["setting"] != SETTING))
    write_lines(path, [json.dumps(whole, indent=1, allow_nan=False)])


def collect(runs: list[Run]) -> list[Run]:
    """One record per method and metric; differences are paired by seed."""
    found: dict[str, dict[int, Run]] = {method: {} for method in METHODS}
    for run in runs:
        found[run["method"]][run["record"]["seed"]] = run["record"]
    return [
        _record(method, metric, {name: dict(sorted(seeds.items())) for name, seeds in found.items()})
        for method in METHODS
        if found[method]
        for metric in METRICS
    ]


def _record(method: str, metric: str, found: dict[str, dict[int, Run]]) -> Run:
    runs = found[method]
    values = {seed: _value(run, metric) for seed, run in runs.items()}
    defined = [value for value in values.values() if value is not None]
    mean, sd = mean_sd(defined) if defined else (math.nan, math.nan)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    differences = {}
    for rival in RIVALS:
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


def tables(records: list[Run]) -> str:
    """The tables of the page, from the records alone: all methods, the best mean first, and what the term adds."""
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
        cells = [METHODS[method][0], mean_cell(accuracy), " / ".join(f"{value:.3f}" for value in accuracy["seeds"])]
        cells += [difference_cell(accuracy, rival) for rival in ("erm", "random_mask")]
        cells += [
            mean_cell(found[method, metric])
            for metric in ("all_correct_ood", "agreement_ood", "lcs_ratio_ood", "acc_cue_random")
        ]
        ratio = found[method, "seconds"]["mean"] / found["erm", "seconds"]["mean"]
        # The runs of whole sets are of another day with another load.
        cells.append("-" if METHODS[method][2] else f"{ratio:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| with the term | against | accuracy, unseen surfaces, better by | all correct | agreement | LCS ratio |",
    ]
    lines.append("| --- | --- | ---: | ---: | ---: | ---: |")
    for method, rivals in TERMS.items():
        for rival in rivals:
            if {(method, "acc_ood"), (rival, "acc_ood")} <= found.keys():
                metrics = ("acc_ood", "all_correct_ood", "agreement_ood", "lcs_ratio_ood")
                cells = [METHODS[method][0], METHODS[rival][0]]
                cells += [difference_cell(found[method, metric], rival) for metric in metrics]
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
