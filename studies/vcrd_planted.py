"""Beside the study of VCRD: does token mode see the planted errors, and what brings a reward model that can judge?

    python studies/vcrd_planted.py

Token mode compares single tokens: its delta at every token of a teacher's trace is measured with the student as it is
before training, and each sum gets the mean over its tokens, or over the digits of its result. The reward model is that
of ``vcrd_scorers``, trained as a whole; it then scores steps as in the study, with ``beta`` 2 and 8.

A finished run is a line of docs/results/vcrd-planted-runs.jsonl; docs/results/vcrd-planted.json and the last tables of
docs/results/vcrd.md are made from these, and from the runs of forward KL in vcrd-runs.jsonl. ``--runs 0`` only writes.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import vcrd
from cells import difference_cell, mean_cell
from vcrd_scorers import SUM, reward_model

from isodistill.data.encode import encode_rows
from isodistill.data.files import append_log, read_log, write_between_marks, write_lines
from isodistill.evaluation import mean_sd
from isodistill.evaluation.statistics import MIN_SEEDS, paired_interval
from isodistill.objectives import token_delta
from isodistill.validity import Scorer, make_scorer, text_ends

BEGIN = "<!-- planted: begin, made by studies/vcrd_planted.py from vcrd-planted.json -->"
END = "<!-- planted: end -->"
LEARNED_STEPS = 2000
TOKEN = {"token_sum": "token mode, mean over the sum's tokens", "token_result": "token mode, digits of the result"}
TRAINED = {
    "vcrd_reward_learned": ("VCRD, steps by a reward model that learned its task", {}),
    "vcrd_reward_learned_sharp": ("the same, beta 8", {"beta": 8.0}),
}
"""Method -> label, options beside those of every method that is given a scorer."""

Run = dict[str, Any]


def main() -> None:
    """Run what is missing, then write the records and the tables."""
    parser = argparse.ArgumentParser(description="Token mode and a learned reward model on planted errors.")
    parser.add_argument("--runs", type=int, default=None, help="run at most so many; 0 only writes the results")
    parser.add_argument("--work", type=Path, default=vcrd.WORK, help="folder of the models and runs of the study")
    given = parser.parse_args()
    torch.set_num_threads(1)
    log = vcrd.RESULTS / "vcrd-planted-runs.jsonl"
    done = {(run["steps"], run["method"], run["seed"]) for run in read_log(log)}
    grid = [(0, "token", seed) for seed in vcrd.SEEDS]
    grid += [(steps, method, seed) for steps in vcrd.SETTINGS for seed in vcrd.SEEDS for method in TRAINED]
    for steps, method, seed in [one for one in grid if one not in done][: given.runs]:
        run = token_run(seed, given.work) if method == "token" else trained_run(steps, method, seed, given.work)
        append_log(log, {"steps": steps, "method": method, "seed": seed, **run})
        report(read_log(log))
        print(f"{steps} steps, {method}, seed {seed}: {run}", flush=True)
    report(read_log(log))


# ---- runs ----


@torch.no_grad()
def token_run(seed: int, work: Path) -> Run:
    """AUROC of the delta of token mode against the planted sums, before training."""
    teacher, student = vcrd.brought_up(work, 0, teacher=True), vcrd.brought_up(work, seed, teacher=False)
    rows = vcrd.problems(vcrd.N_TRAIN, seed, flawed=True, prefix="train")
    encoded, _ = encode_rows(rows, student.tokenizer, 192)
    found: dict[str, dict[bool, list[float]]] = {kind: {True: [], False: []} for kind in TOKEN}
    for row, one in zip(rows, encoded, strict=True):
        z, z_T = (
            each.model.eval()(input_ids=torch.tensor([one.input_ids])).logits[0, :-1] for each in (student, teacher)
        )
        delta = token_delta(z, z_T)[one.labels.count(-100) - 1 :]
        ends = text_ends(str(row.completion), student.tokenizer)
        for match in SUM.finditer(str(row.completion)):
            wrong = vcrd.planted(match[2], int(match[3]))
            for kind, group in (("token_sum", 0), ("token_result", 4)):
                inside = [t for t, end in enumerate(ends) if match.start(group) < end <= match.end(group)]
                found[kind][wrong].append(float(delta[inside].mean()))
    return {"auroc": {kind: vcrd.auroc(lists[True], lists[False]) for kind, lists in found.items()}}


def trained_run(steps: int, method: str, seed: int, work: Path) -> Run:
    """A run of the study, scored by the reward model that learned its task."""
    objective = {"name": "vcrd", **vcrd.GIVEN, **TRAINED[method][1]}
    return vcrd.distilled(objective, learned(work), steps, seed, work, work / f"{method}-{steps}-{seed}")


def learned(work: Path) -> Scorer:
    """The scorer."""
    body, folder = vcrd.brought_up(work, 0, teacher=True), work / "vcrd_reward_learned"
    rows = vcrd.problems(20_000, 0, flawed=False, prefix="reward")
    reward_model(folder, body, rows, LEARNED_STEPS, whole=True)
    options = {"name": "reward", "source": str(folder), "kind": "token", "positive": 0}
    return make_scorer(options, lambda: None, lambda: body)


# ---- records and tables ----


def report(runs: list[Run]) -> None:
    """``vcrd-planted.json`` and the tables of the page."""
    plain = [run for run in read_log(vcrd.RESULTS / "vcrd-runs.jsonl") if run["method"] == "fkl"]
    records = [_token_record(kind, runs) for kind in TOKEN]
    for steps in vcrd.SETTINGS:
        for method in TRAINED:
            own = {run["seed"]: run for run in runs if (run["steps"], run["method"]) == (steps, method)}
            rivals = {run["seed"]: run for run in plain if run["steps"] == steps}
            records += [_record(steps, method, metric, own, rivals) for metric in (*vcrd.METRICS, "auroc") if own]
    write_lines(vcrd.RESULTS / "vcrd-planted.json", [json.dumps(records, indent=1, allow_nan=False)])
    write_between_marks(vcrd.RESULTS / "vcrd.md", BEGIN, END, tables(records))


def _token_record(kind: str, runs: list[Run]) -> Run:
    values = [run["auroc"][kind] for run in runs if run["method"] == "token"]
    return _summary("before training", kind, "auroc", values, {})


def _record(steps: int, method: str, metric: str, own: dict[int, Run], rivals: dict[int, Run]) -> Run:
    values = {seed: run["auroc"] if metric == "auroc" else run["scores"][metric] for seed, run in own.items()}
    apart = [v - rivals[s]["scores"][metric] for s, v in values.items() if metric != "auroc" and s in rivals]
    differences = {"fkl": paired_interval(apart)} if len(apart) >= MIN_SEEDS else {}
    return _summary(vcrd.SETTINGS[steps], method, metric, list(values.values()), differences)


def _summary(setting: str, method: str, metric: str, values: list[float], differences: Run) -> Run:
    mean, sd = mean_sd(values)
    return {
        "setting": setting,
        "student": "lab Llama of studies/vcrd.py",
        "method": method,
        "metric": metric,
        "mean": round(mean, 6),
        "sd": round(sd, 6) if len(values) > 1 else None,
        "seeds": values,
        "diff_to": differences,
        "command": "python studies/vcrd_planted.py",
    }


def tables(records: list[Run]) -> str:
    """AUROC of token mode, then the trained methods."""
    found = {(record["setting"], record["method"], record["metric"]): record for record in records}
    lines = ["| delta of | seeds | AUROC |", "| --- | ---: | ---: |"]
    for kind, words in TOKEN.items():
        record = found["before training", kind, "auroc"]
        lines.append(f"| {words} | {len(record['seeds'])} | {mean_cell(record)} |")
    lines += ["", f"| method | steps | seeds | {' | '.join(f'{m} | more by' for m in vcrd.METRICS.values())} | AUROC |"]
    lines.append(f"| --- |{' ---: |' * (3 + 2 * len(vcrd.METRICS))}")
    for steps, label in vcrd.SETTINGS.items():
        for method, (words, _) in TRAINED.items():
            if (label, method, "acc") in found:
                cells = [words, str(steps), str(len(found[label, method, "acc"]["seeds"]))]
                for metric in vcrd.METRICS:
                    record = found[label, method, metric]
                    cells += [mean_cell(record), difference_cell(record, "fkl")]
                lines.append(f"| {' | '.join([*cells, mean_cell(found[label, method, 'auroc'])])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
