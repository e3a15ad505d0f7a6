"""VCRD on code: do its weights fall at statements that are known to be wrong?

    python studies/vcrd_code.py --data FOLDER

The traces are MBPP's own programs. In each one operator, number or name of one statement is exchanged, such that a unit
test fails: there the teacher's step is known to be wrong, and what it replaced is known to be right. At the same prefix
SmolLM2-135M proposes its own statement, and a scorer says how valid the three are: rollouts of the untrained student to
the unit tests, as in examples/vcrd_code.yaml with twice as many, or the likelihood under ``teacher: self``.

A finished seed, with problems of its own, is a line of docs/results/vcrd-code-runs.jsonl and is not run again;
docs/results/vcrd-code.json and a table of docs/results/vcrd.md are made from these. ``--runs 0`` only writes them.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import time
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from cells import difference_cell, mean_cell
from vcrd import RESULTS, auroc

from isodistill.data.encode import encode_prompt
from isodistill.data.files import append_log, read_log, write_between_marks, write_lines
from isodistill.data.rows import Row
from isodistill.data.tasks import load_task
from isodistill.evaluation import mean_sd
from isodistill.evaluation.generate import generate
from isodistill.evaluation.programs import try_program
from isodistill.evaluation.statistics import MIN_SEEDS, paired_interval
from isodistill.models.load import Student, load_student
from isodistill.objectives import validity_weight
from isodistill.validity import Action, Scorer, make_scorer, segment

BEGIN, END = "<!-- code: begin, made by studies/vcrd_code.py from vcrd-code.json -->", "<!-- code: end -->"
SEEDS, PROBLEMS, LONGEST, TRIES = (0, 1, 2), 40, 256, 8
SCORERS: dict[str, tuple[str, dict[str, Any]]] = {
    "rollout": ("rollouts to the unit tests", {"name": "rollout", "by": "base", "n": 4, "max_tokens": 64}),
    "likelihood": ("likelihood under the base model", {"name": "likelihood"}),
}
"""Scorer -> label, ``steps.scorer``."""
SWAPS = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "+": "-", "-": "+", "*": "+", "and": "or",
    "or": "and", "min": "max", "max": "min", "True": "False", "False": "True",
}  # fmt: skip
"""Token -> what is planted in its place; a whole number becomes the next one."""

Run = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """A statement of a program, after ``prefix``: the right one, and the planted one."""

    row: Row
    prefix: str
    right: str
    planted: str


def main() -> None:
    """Run what is missing, then write the records and the table."""
    parser = argparse.ArgumentParser(description="Relative validity of statements with planted errors.")
    parser.add_argument("--data", type=Path, default=None, help="folder of the data sets; needed to run")
    parser.add_argument("--runs", type=int, default=None, help="run at most so many; 0 only writes the results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    log = RESULTS / "vcrd-code-runs.jsonl"
    done = {run["seed"] for run in read_log(log)}
    for seed in [seed for seed in SEEDS if seed not in done][: given.runs]:
        if given.data is None:
            raise SystemExit("Name the folder that holds mbpp/train.jsonl.gz with --data.")
        append_log(log, one_run(seed, load_task("mbpp", given.data)))
        print(f"seed {seed}: {summary(read_log(log)[-1])}", flush=True)
    report(read_log(log))


# ---- one seed ----


def one_run(seed: int, rows: list[Row]) -> Run:
    """Plant, propose, score; the line of the record."""
    began = time.process_time()
    student = load_student("smollm2-135m")
    places = planted_places([row for row in rows if row.split == "train"], seed, student)
    proposed = proposals(places, seed, student)
    scored = {name: validities(name, places, proposed, student) for name in SCORERS}
    return {
        "seed": seed,
        "rows": [place.row.id for place in places],
        "planted": [[place.right.strip(), place.planted.strip()] for place in places],
        "proposed": [text.strip() for text, _ in proposed],
        "validities": scored,
        "cpu_seconds": round(time.process_time() - began, 1),
    }


def planted_places(rows: list[Row], seed: int, student: Student) -> list[Place]:
    """One place in each of PROBLEMS programs, drawn by the seed."""
    rng = random.Random(seed)
    places: list[Place] = []
    for row in rng.sample(rows, len(rows)):
        if len(student.tokenizer(str(row.completion))["input_ids"]) <= LONGEST and (place := plant(row, rng)):
            places.append(place)
        if len(places) == PROBLEMS:
            break
    return places


def plant(row: Row, rng: random.Random) -> Place | None:
    """A change of one token that a unit test notices; None where none of TRIES is one."""
    text = str(row.completion)
    found = list(changes(text))
    for at, old, new in rng.sample(found, min(TRIES, len(found))):
        trial = try_program(text[:at] + new + text[at + len(old) :], str(row.answer))
        if trial is not None and trial.passed < trial.tests:
            starts = [*segment(text, "statements"), len(text)]
            j = max(j for j, start in enumerate(starts) if start <= at)
            right = text[starts[j] : starts[j + 1]]
            here = at - starts[j]
            return Place(row, text[: starts[j]], right, right[:here] + new + right[here + len(old) :])
    return None


def changes(text: str) -> Iterator[tuple[int, str, str]]:
    """Place, token and new token of every change that SWAPS allows in a fenced program."""
    head, _, program = text.partition("\n")
    program = program.rpartition("\n```")[0]
    lines = list(accumulate((len(line) for line in program.splitlines(keepends=True)), initial=len(head) + 1))
    for token in tokenize.generate_tokens(io.StringIO(program).readline):
        new = str(int(token.string) + 1) if token.string.isdecimal() else SWAPS.get(token.string)
        if new is not None and token.type != tokenize.STRING:
            yield lines[token.start[0] - 1] + token.start[1], token.string, new


def proposals(places: list[Place], seed: int, student: Student) -> list[tuple[str, bool]]:
    """The student's own next statement at each place, and whether its program ends there."""
    tokenizer = student.tokenizer
    prompts = [
        encode_prompt(place.row, tokenizer, 2**31) + tokenizer(place.prefix, add_special_tokens=False)["input_ids"]
        for place in places
    ]
    seeds = [1000 * seed + i for i in range(len(places))]
    drawn = generate(student.model, tokenizer, prompts, max_new_tokens=32, temperature=0.7, seeds=seeds)
    starts = [[*segment(one.text, "statements"), len(one.text)] for one in drawn]
    return [(one.text[: own[1]], one.finish == "eos" and len(own) == 2) for one, own in zip(drawn, starts, strict=True)]


def validities(name: str, places: list[Place], proposed: list[tuple[str, bool]], student: Student) -> list[list[float]]:
    """v of the right step, of the planted one, and of the student's beside each of them."""
    reader = (student.model, student.tokenizer)
    scorer: Scorer = make_scorer(SCORERS[name][1], lambda: reader, lambda: reader)
    actions = [
        action
        for place, (text, ends) in zip(places, proposed, strict=True)
        for step in (place.right, place.planted)
        for action in (
            Action(place.row, place.prefix, step, step, ends=False),
            Action(place.row, place.prefix, text or step, step, ends=ends),
        )
    ]
    v = [round(score, 6) for score in scorer.score(actions)]
    return [[v[i], v[i + 2], v[i + 1], v[i + 3]] for i in range(0, len(v), 4)]


# ---- records and table ----


def summary(run: Run) -> dict[str, dict[str, float]]:
    """Scorer -> AUROC of delta, mean validities, mean weights at beta 2."""
    found = {}
    for name in SCORERS:
        right, planted = deltas(run, name)
        v = torch.tensor(run["validities"][name])
        values: dict[str, float] = {"auroc": auroc(planted, right) or 0.0}
        for j, (kind, delta) in enumerate((("right", right), ("planted", planted))):
            values[f"v_{kind}"] = round(float(v[:, j].mean()), 6)
            values[f"w_{kind}"] = round(float(validity_weight(torch.tensor(delta), 2.0).mean()), 6)
        values["tied"] = round(sum(a == b for a, b in zip(right, planted, strict=True)) / len(right), 6)
        found[name] = values
    return found


def deltas(run: Run, name: str) -> tuple[list[float], list[float]]:
    """delta at the right and at the planted steps; as in training 0 where the student proposes the same, or nothing."""
    right, planted = [], []
    steps = zip(run["planted"], run["proposed"], run["validities"][name], strict=True)
    for (true, wrong), own, (v_true, v_wrong, v_own, v_own_beside_wrong) in steps:
        right.append(0.0 if own in ("", true) else v_true - v_own)
        planted.append(0.0 if own in ("", wrong) else v_wrong - v_own_beside_wrong)
    return right, planted


def report(runs: list[Run]) -> None:
    """``vcrd-code.json`` and the table of the page."""
    records = [_record(name, metric, runs) for name in SCORERS for metric in summary(runs[0])[name]] if runs else []
    write_lines(RESULTS / "vcrd-code.json", [json.dumps(records, indent=1, allow_nan=False)])
    write_between_marks(RESULTS / "vcrd.md", BEGIN, END, table(records))


def _record(name: str, metric: str, runs: list[Run]) -> Run:
    values = [summary(run)[name][metric] for run in runs]
    mean, sd = mean_sd(values)
    above = metric == "auroc" and len(values) >= MIN_SEEDS
    return {
        "setting": f"one planted error in each of {PROBLEMS} programs of MBPP",
        "student": "SmolLM2-135M",
        "method": f"vcrd_{name}",
        "metric": metric,
        "mean": round(mean, 6),
        "sd": round(sd, 6) if len(values) > 1 else None,
        "seeds": values,
        "diff_to": {"chance": paired_interval([value - 0.5 for value in values])} if above else {},
        "command": "python studies/vcrd_code.py --data FOLDER",
    }


def table(records: list[Run]) -> str:
    """One line per scorer."""
    found = {(record["method"], record["metric"]): record for record in records}
    columns = {
        "v_right": "v, right step", "v_planted": "v, planted step", "w_right": "w, right step",
        "w_planted": "w, planted step", "tied": "delta the same",
    }  # fmt: skip
    lines = [f"| scorer | seeds | AUROC of delta | above chance by | {' | '.join(columns.values())} |"]
    lines.append(f"| --- |{' ---: |' * (3 + len(columns))}")
    for name, (words, _) in SCORERS.items():
        if record := found.get((f"vcrd_{name}", "auroc")):
            cells = [words, str(len(record["seeds"])), mean_cell(record), difference_cell(record, "chance")]
            cells += [mean_cell(found[f"vcrd_{name}", metric]) for metric in columns]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
