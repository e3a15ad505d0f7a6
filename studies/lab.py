"""The laboratory of IGA: methods, forms and controls on the conflicting-cue task.

    python studies/lab.py

Goes through `GRID`, the most telling runs first. Each run is one `python -m isodistill.lab`; its record is appended to
docs/results/lab-runs.jsonl, and what stands there is not run again. Then writes the lab's records in
docs/results/iga.json and from them the tables of docs/results/iga.md. `--runs 0` only writes these.
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

from isodistill.data.files import append_log, read_log, write_between_marks, write_lines
from isodistill.evaluation import mean_sd
from isodistill.evaluation.statistics import MIN_SEEDS, paired_interval
from isodistill.lab import LabSettings, run_lab
from isodistill.recipe import parse_settings

RESULTS = Path("docs/results")
BEGIN, END = "<!-- lab: begin, made by studies/lab.py from iga.json -->", "<!-- lab: end -->"

EXP = ["alignment.form=exp", "alignment.tau=1"]
METHODS: dict[str, tuple[str, str, list[str]]] = {
    "erm": ("ERM", "erm", []),
    "iga": ("IGA, `ratio`, tau 3, EMA .95, on the update", "iga", []),
    "random_mask": ("random mask, density and step ratio of IGA", "iga", ["alignment.control=random"]),
    "erm_lr_1e-3": ("ERM, learning rate 1e-3", "erm", ["train.lr=0.001"]),
    "uniform_mask": ("uniform mask, step ratio of IGA", "iga", ["alignment.control=uniform"]),
    "and_mask": ("AND-mask, t 1, EMA .95, on the update", "and_mask", []),
    "iga_exp_tensor_mean": ("IGA, `exp` with tensor_mean, tau 1", "iga", EXP),
    "iga_exp_relative": ("IGA, `exp` with relative, tau 1", "iga", [*EXP, "alignment.norm=relative"]),
    "iga_no_ema": ("IGA without EMA", "iga", ["alignment.grad_ema=0"]),
    "iga_gradient": ("IGA, mask on the gradient", "iga", ["alignment.apply_to=gradient"]),
    "iga_tau_1": ("IGA, tau 1", "iga", ["alignment.tau=1"]),
    "iga_tau_10": ("IGA, tau 10", "iga", ["alignment.tau=10"]),
    # What might pay the steps back that a mask costs: a step as long as ERM's (IGA's is about .3 of it), or a mask that
    # comes late.
    "iga_lr_1e-2": ("IGA, learning rate 1e-2", "iga", ["train.lr=0.01"]),
    "random_mask_lr_1e-2": ("random mask, learning rate 1e-2", "iga", ["alignment.control=random", "train.lr=0.01"]),
    "erm_lr_1e-2": ("ERM, learning rate 1e-2", "erm", ["train.lr=0.01"]),
    "iga_late": ("IGA, tau rising over half of the steps", "iga", ["alignment.tau_warmup=0.5"]),
    "iga_t": ("IGA, tier T", "iga", ["alignment.space=tangent"]),
    "random_mask_t": ("random mask in tier T", "iga", ["alignment.space=tangent", "alignment.control=random"]),
    "iga_ts": ("IGA, tier TS", "iga", ["alignment.space=tangent_separable"]),
    "iga_w": ("IGA, tier W", "iga", ["alignment.space=weight"]),
}
"""Method -> label, preset, options."""

SETTINGS: dict[str, tuple[str, list[str]]] = {
    "k8": ("conflicting cues, K = 8, rho 1", []),
    "k4": ("conflicting cues, K = 4, rho 1", ["task.domains=4"]),
    "k2": ("conflicting cues, K = 2, rho 1", ["task.domains=2"]),
    "k16": ("conflicting cues, K = 16, rho 1", ["task.domains=16"]),
    "k2_total": ("conflicting cues, K = 2, rho 1, 64 rows a step as with K = 8", ["task.domains=2", "train.rows=32"]),
    "k4_total": ("conflicting cues, K = 4, rho 1, 64 rows a step as with K = 8", ["task.domains=4", "train.rows=16"]),
    "k16_total": ("conflicting cues, K = 16, rho 1, 64 rows a step as with K = 8", ["task.domains=16", "train.rows=4"]),
    "hard": (
        "conflicting cues, K = 8, rho 1, two kinds of the second operation, 800 steps",
        ["task.operations=2", "train.steps=800"],
    ),
    "hard_words": (
        "conflicting cues, K = 8, rho 1, two kinds of the second operation, 120 words, 1,500 steps",
        ["task.operations=2", "task.words=120", "train.steps=1500"],
    ),
    "rho95": ("conflicting cues, K = 8, rho .95", ["task.rho=0.95"]),
    "private": ("private cues, K = 8, rho 1", ["task.cue=private"]),
    "sgd": ("conflicting cues, K = 8, rho 1, SGD with momentum", ["train.optimizer=sgd", "train.lr=0.3"]),
    "batch4": ("conflicting cues, K = 8, rho 1, 4 rows of a domain per step", ["train.rows=4"]),
    "data200": ("conflicting cues, K = 8, rho 1, 200 training problems", ["task.train_problems=200"]),
    "long": ("conflicting cues, K = 8, rho 1, 1,500 steps", ["train.steps=1500"]),
    "lora": (
        "conflicting cues, K = 8, rho 1, LoRA of rank 32 on a random student, 1,000 steps",
        ["train.lora=32", "train.steps=1000"],
    ),
}
"""Setting -> label, options."""

CORE = ("erm", "iga", "random_mask")
FORMS = ("and_mask", "erm_lr_1e-3", "iga_exp_tensor_mean", "iga_exp_relative", "uniform_mask")
ABLATIONS = ("iga_no_ema", "iga_gradient")
PAY_BACK = ("iga_lr_1e-2", "random_mask_lr_1e-2", "erm_lr_1e-2", "iga_late")
TIERS = ("iga_t", "random_mask_t", "iga_ts", "iga_w", "and_mask")
CONFIRM = range(12, 32)
GRID: list[tuple[str, tuple[str, ...], range]] = [
    ("k8", CORE, range(5)),
    ("k8", FORMS, range(3)),
    ("hard_words", (*CORE, "erm_lr_1e-3"), range(3)),
    ("k4", (*CORE, "erm_lr_1e-3"), range(3)),
    ("k4_total", CORE, range(3)),
    ("k16_total", CORE, range(3)),
    ("k2_total", CORE, range(3)),
    ("hard", (*CORE, "erm_lr_1e-3"), range(3)),
    ("lora", (*CORE, *TIERS), range(3)),
    ("k8", FORMS, range(3, 5)),
    ("k8", ABLATIONS, range(5)),
    ("k16", CORE, range(3)),
    ("rho95", CORE, range(3)),
    ("k8", ("iga_tau_1", "iga_tau_10"), range(3)),
    ("k2", CORE, range(3)),
    ("private", CORE, range(3)),
    ("sgd", CORE, range(3)),
    ("data200", CORE, range(3)),
    ("batch4", CORE, range(3)),
    ("lora", (*CORE, *TIERS), range(3, 5)),
    ("data200", PAY_BACK, range(3)),
    ("k8", PAY_BACK, range(3)),
    # More seeds where the first ones left most open.
    ("lora", ("erm", "iga_t", "random_mask_t"), range(5, 12)),
    ("lora", ("iga", "random_mask"), range(5, 12)),
    ("batch4", CORE, range(3, 10)),
    ("hard_words", (*CORE, "erm_lr_1e-3"), range(3, 10)),
    # On seeds 0 to 11 tier T under LoRA was .2 above ERM and above its random mask; these seeds confirm that or do not.
    # They, their number and the two differences were written down before the first of them was run.
    ("lora", ("erm", "iga_t", "random_mask_t"), CONFIRM),
    ("lora", ("erm_lr_1e-3",), range(12)),
    ("lora", ("erm_lr_1e-3",), CONFIRM),
    ("batch4", ("erm_lr_1e-3",), range(10)),
    # How fast is learned what all learn.
    ("long", (*CORE, "erm_lr_1e-3", "and_mask"), range(5)),
    # Five seeds of what had three.
    ("k8", ("iga_tau_1", "iga_tau_10"), range(3, 5)),
    ("rho95", CORE, range(3, 5)),
    ("sgd", CORE, range(3, 5)),
    ("data200", CORE, range(3, 5)),
    ("private", CORE, range(3, 5)),
    *((setting, CORE, range(3, 5)) for setting in ("k4", "k2", "k16", "k4_total", "k2_total", "k16_total")),
]
"""Setting, methods and seeds, in the order in which they are run."""

METRICS = {
    "acc_ood": ("ood", "acc_macro"),
    "all_correct_ood": ("ood", "all_correct"),
    "agreement_ood": ("ood", "agreement"),
    "acc_first_ood": ("ood", "acc_first"),
    "lcs_ood": ("ood", "lcs"),
    "lcs_ratio_ood": ("ood", "lcs_ratio"),
    "acc_cue_random": ("cue_random", "acc_macro"),
    "acc_id": ("id", "acc_macro"),
}
"""Metric -> split and name in a run's record."""
STEPS_TO_LEARN = "steps_to_learn"
LEARNED = 0.1
"""A student has learned from where on the training loss, in means over 2 % of the steps, stays below this."""
LOWER_IS_BETTER = ("lcs_ood", "lcs_ratio_ood", STEPS_TO_LEARN)
RIVALS = ("erm", "random_mask", "uniform_mask", "and_mask")
OWN_RANDOM_MASK = {"iga_t": "random_mask_t", "iga_lr_1e-2": "random_mask_lr_1e-2"}
"""Method -> its own random mask, where that is not the one of tier F at the common learning rate."""

Run = dict[str, Any]


def main() -> None:
    """Run what is missing, then write the records and the tables."""
    parser = argparse.ArgumentParser(description="The laboratory of IGA.")
    parser.add_argument("--runs", type=int, default=None, help="run at most so many; 0 only writes the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of lab-runs.jsonl, iga.json and iga.md")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", help="key=value for every run; the results are of these"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    log = given.results / "lab-runs.jsonl"
    done = {run["command"] for run in read_log(log)}
    missing = [run for run in planned(given.overrides) if run["command"] not in done]
    for number, run in enumerate(missing[: given.runs], start=1):
        append(log, run | {"record": train_and_test(run)})
        print(f"{number} of {len(missing)}: {run['command']}", flush=True)
    write_results(given.results, recorded(log, given.overrides))


def planned(overrides: list[str]) -> Iterator[Run]:
    """Every run of the grid: what it is and the command that makes it."""
    for setting, methods, seeds in GRID:
        for seed in seeds:
            for method in methods:
                _, preset, options = METHODS[method]
                given = [*options, *SETTINGS[setting][1], *overrides]
                command = f"python -m isodistill.lab --method {preset} --seed {seed}"
                command += "".join(f" --set {option}" for option in given)
                tree = {"method": preset, "seed": seed}
                yield {"setting": setting, "method": method, "command": command, "tree": tree, "overrides": given}


def train_and_test(run: Run) -> Run:
    """The record of one run."""
    return run_lab(parse_settings(LabSettings, run["tree"], run["overrides"], run["command"]))


def append(log: Path, run: Run) -> None:
    """One line more, on disk before it returns."""
    append_log(log, {key: run[key] for key in ("setting", "method", "command", "record")})


def recorded(log: Path, overrides: list[str]) -> list[Run]:
    """The runs on record that belong to the grid with these overrides."""
    commands = {run["command"] for run in planned(overrides)}
    return [run for run in read_log(log) if run["command"] in commands]


def write_results(folder: Path, runs: list[Run]) -> None:
    """iga.json, in which records of other students stay, and the tables of iga.md."""
    path, page = folder / "iga.json", folder / "iga.md"
    others = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    records = collect(runs)
    kept = [record for record in others if not record["student"].startswith("lab")]
    write_lines(path, [json.dumps(records + kept, indent=1, allow_nan=False)])
    write_between_marks(page, BEGIN, END, tables(records))
    print(f"results: {page}")


def collect(runs: list[Run]) -> list[Run]:
    """One record per setting, method and metric; differences are paired by seed."""
    found: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        found.setdefault((run["setting"], run["method"]), {})[run["record"]["seed"]] = run["record"]
    records = []
    for setting in SETTINGS:
        for method in METHODS:
            seeds = found.get((setting, method), {})
            for metric in _metrics(setting) if seeds else ():
                rivals = {rival: found.get((setting, rival), {}) for rival in RIVALS if rival != method}
                if method in OWN_RANDOM_MASK:
                    rivals["random_mask"] = found.get((setting, OWN_RANDOM_MASK[method]), {})
                records.append(_record(setting, method, metric, seeds, rivals))
    return records


def _metrics(setting: str) -> tuple[str, ...]:
    return (*METRICS, STEPS_TO_LEARN) if setting == "long" else (*METRICS,)


def _record(setting: str, method: str, metric: str, runs: dict[int, Run], rivals: dict[str, dict[int, Run]]) -> Run:
    values = {seed: _value(run, metric) for seed, run in sorted(runs.items())}
    defined = [value for value in values.values() if value is not None]
    mean, sd = mean_sd(defined) if defined else (math.nan, math.nan)
    sign = -1 if metric in LOWER_IS_BETTER else 1
    differences = {}
    for rival, others in rivals.items():
        pairs = [(values[seed], _value(others[seed], metric)) for seed in values if seed in others]
        apart = [sign * (ours - theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
        if len(apart) >= MIN_SEEDS:
            differences[rival] = paired_interval(apart)
    first = next(iter(runs.values()))
    return {
        "setting": SETTINGS[setting][0],
        "student": f"lab transformer, {first['parameters'] / 1e6:.2f} M parameters",
        "method": method,
        "metric": metric,
        "mean": None if math.isnan(mean) else round(mean, 6),
        "sd": None if math.isnan(sd) else round(sd, 6),
        "seeds": list(values.values()),
        "diff_to": differences,
        "command": "python studies/lab.py",
    }


def _value(run: Run, metric: str) -> float | None:
    """None where the number is undefined."""
    if metric == STEPS_TO_LEARN:
        return steps_to_learn(run["curve"], run["train"]["steps"])
    split, name = METRICS[metric]
    value: float | None = run["splits"][split][name]
    return value


def steps_to_learn(curve: list[float], steps: int) -> float | None:
    """The steps after which no part of the curve has a mean loss of ``LEARNED`` or more; None if the last part has."""
    above = [part for part, loss in enumerate(curve, start=1) if not loss < LEARNED]
    parts = above[-1] if above else 0
    return None if parts == len(curve) else parts * steps / len(curve)


def tables(records: list[Run]) -> str:
    """The tables of the page, one for each setting, from the records alone."""
    lines: list[str] = []
    for label, _ in SETTINGS.values():
        found = {(r["method"], r["metric"]): r for r in records if r["setting"] == label}
        if not found:
            continue
        lines += [
            "",
            f"### {label[0].upper()}{label[1:]}",
            "",
            "| method | accuracy, unseen surfaces | seeds | better than ERM by | than random mask by | agreement | LCS "
            "| LCS ratio | trained surfaces, cue random |",
            "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for method, (name, _, _) in METHODS.items():
            if (method, "acc_ood") in found:
                accuracy = found[method, "acc_ood"]
                others = [found[method, m] for m in ("agreement_ood", "lcs_ood", "lcs_ratio_ood", "acc_cue_random")]
                seeds = " / ".join(f"{value:.3f}" for value in accuracy["seeds"])
                cells = [
                    name,
                    mean_cell(accuracy),
                    seeds,
                    *(difference_cell(accuracy, r) for r in ("erm", "random_mask")),
                ]
                lines.append(f"| {' | '.join([*cells, *(mean_cell(other) for other in others)])} |")
    return "\n".join([*lines, *speed_table(records)]).strip()


def speed_table(records: list[Run]) -> list[str]:
    """Steps to learn, of the setting that all learn."""
    found = {record["method"]: record for record in records if record["metric"] == STEPS_TO_LEARN}
    if not found:
        return []
    setting = next(iter(found.values()))["setting"]
    lines = [
        "",
        f"### Steps until the training loss stays below {LEARNED:g}: {setting}",
        "",
        "| method | steps | seeds | fewer than ERM by | than random mask by |",
        "| --- | ---: | --- | ---: | ---: |",
    ]
    for method, record in found.items():
        seeds = " / ".join("never" if value is None else f"{value:.0f}" for value in record["seeds"])
        apart = [_steps_cell(record["diff_to"].get(rival)) for rival in ("erm", "random_mask")]
        mean = "-" if None in record["seeds"] else f"{record['mean']:.0f} ± {record['sd']:.0f}"
        lines.append(f"| {METHODS[method][0]} | {mean} | {seeds} | {' | '.join(apart)} |")
    return lines


def _steps_cell(apart: list[float] | None) -> str:
    return "-" if apart is None else f"{apart[0]:+.0f} ({apart[1]:+.0f} to {apart[2]:+.0f})"


if __name__ == "__main__":
    main()
