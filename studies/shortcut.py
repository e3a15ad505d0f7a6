"""A pretrained student and a shortcut: what ERM, IGA, its controls and plain augmentation make of a planted cue.

    python studies/shortcut.py --seeds 0 1 2 3 4

The logic: a place is open when a count is above a threshold; eight surfaces tell it for training, three are never
trained on. The shortcut: a colour at the end, which in training tells the answer with probability rho, in half of the
surfaces the other way round. The student first learns the logic a little with a random colour (``warm``), the same
start for all methods of a seed; then every method trains on the rows with the cue. Tests: unseen problems with the
colour random, on the trained surfaces (``cue_random``) and on the others (``ood``).

Every finished run adds its line to docs/results/shortcut-runs.jsonl, and what has a line is not run again. The records
in docs/results/iga.json and the tables in docs/results/iga.md are made from these lines alone; ``--seeds`` with no
number runs nothing and only writes them.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cells import difference_cell, mean_cell
from peft import PeftModel

from isodistill.data.files import append_log, read_log, write_between_marks, write_lines
from isodistill.data.load import write_rows
from isodistill.data.rows import Row
from isodistill.evaluation import PredictionLog, mean_sd
from isodistill.evaluation.generate import merged_copy
from isodistill.models.load import load_student
from isodistill.pipeline import run_recipe, train_run
from isodistill.recipe import parse_recipe

RESULTS = Path("docs/results")
RUNS = RESULTS / "shortcut-runs.jsonl"
BEGIN, END = "<!-- shortcut: begin, made by studies/shortcut.py from iga.json -->", "<!-- shortcut: end -->"

TRAIN = {
    "medicine": ("The clinic", "patients"),
    "law": ("The court", "cases"),
    "science": ("The laboratory", "samples"),
    "mathematics": ("The seminar", "students"),
    "cooking": ("The kitchen", "orders"),
    "sports": ("The stadium", "fans"),
    "finance": ("The bank", "clients"),
    "travel": ("The harbour", "ships"),
}
HELD_OUT = {
    "farming": ("The barn", "cows"),
    "music": ("The theatre", "listeners"),
    "astronomy": ("The dome", "visitors"),
}
THRESHOLDS, COUNTS = (30, 50, 70), range(10, 100)
COLOURS = ("red", "green")
N_TRAIN, N_TEST = 128, 80
WARM_STEPS, WARM_LOSS = 250, 0.13
"""A warm start by loss is the first checkpoint, of one every 5 steps, whose loss is below this."""


@dataclass(frozen=True)
class Method:
    """What one contender changes in the recipe.

    Attributes:
        redrawn: share of its training rows with a random colour.
        at_loss_of: it is ERM, stopped where the loss is first as low as the last one of this method, which needs a
            line; where ``erm`` has no folder here, it is trained all the way first.
    """

    preset: str = "erm"
    alignment: Mapping[str, Any] | None = None
    learning_rate: float = 1e-3
    redrawn: float = 0.0
    at_loss_of: str | None = None


METHODS = {
    "erm": Method(),
    "erm_low_rate": Method(learning_rate=3e-4),
    "iga": Method("iga"),
    "random_mask": Method("iga", {"control": "random"}),
    "iga_tier_t": Method("iga", {"preset": "default"}),
    "random_mask_tier_t": Method("iga", {"preset": "default", "control": "random"}),
    "uniform_mask": Method("iga", {"control": "uniform"}),
    "and_mask": Method("and_mask"),
    "augmentation": Method(redrawn=0.5),
    "erm_at_iga_loss": Method(at_loss_of="iga"),
}


def main() -> None:
    """Run what is missing, then write the records and the tables."""
    parser = argparse.ArgumentParser(description="A pretrained student and a planted shortcut.")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="training seeds")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--rho", type=float, default=1.0, help="share of training rows whose colour tells the answer")
    parser.add_argument("--steps", type=int, default=100, help="steps after the warm start")
    parser.add_argument(
        "--warm",
        type=int,
        default=None,
        help=f"steps of the warm start; without it, as many as a loss of {WARM_LOSS} takes",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/shortcut"), help="folder of the runs")
    given = parser.parse_args()
    for seed in given.seeds:
        for method in given.methods:
            key = {"method": method, "seed": seed, "rho": given.rho, "steps": given.steps, "warm": given.warm}
            if not any(key.items() <= line.items() for line in read_log(RUNS)):
                append_log(RUNS, key | run(key, given.out))
    write_page()


def run(key: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train one contender of one seed; the numbers of its line."""
    method, seed, rho, steps, warm = (key[name] for name in ("method", "seed", "rho", "steps", "warm"))
    chosen = METHODS[method]
    student = _warm_student(seed, warm, out)
    setting = f"{student.name}-rho{rho:g}-{steps}-seed{seed}"
    folder = out / f"{method}-{setting}"
    if chosen.at_loss_of:
        (other,) = (o for o in read_log(RUNS) if (key | {"method": chosen.at_loss_of}).items() <= o.items())
        whole = out / f"erm-{setting}"
        if not (whole / "results.json").exists():
            run(key | {"method": "erm"}, out)
        steps = next((step for step, loss in _losses(whole) if loss <= other["loss"]), steps)
    file = out / f"rows-rho{rho:g}-redrawn{chosen.redrawn:g}-seed{seed}.jsonl"
    write_rows(file, list(rows(seed, rho, chosen.redrawn)))
    tree = _recipe(str(student), file, steps, seed, chosen.learning_rate)
    tree |= {"method": chosen.preset, "alignment": dict(chosen.alignment) if chosen.alignment else None}
    run_recipe(parse_recipe(tree), folder, command="python studies/shortcut.py")
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    correct: dict[str, dict[str, list[int]]] = {}
    for record in PredictionLog(folder / "predictions.jsonl").read():
        sets = correct.setdefault(record.split, {})
        sets.setdefault(str(record.set_id), []).append(int(record.outcome == "correct"))
    return {
        "student": "SmolLM2-135M-Instruct, dequantised from Q4_1",
        "trained_steps": steps,
        "loss": _losses(folder)[-1][1],
        "seconds": results["train"]["seconds"],
        "splits": {
            name: {
                key: numbers[key] for key in ("acc_macro", "acc_worst", "all_correct", "agreement", "lcs", "lcs_ratio")
            }
            for name, numbers in results["splits"].items()
        },
        # Answers right in each set, in the order of the set names: what the paired interval resamples.
        "right": {name: [sum(sets[s]) / len(sets[s]) for s in sorted(sets)] for name, sets in correct.items()},
    }


def rows(seed: int, rho: float, redrawn: float) -> Iterator[Row]:
    """Training sets with the cue and test sets without; no pair of threshold and count is on both sides."""
    rng = random.Random(f"problems {seed}")
    pairs = [(t, n) for t in THRESHOLDS for n in COUNTS if n != t]
    rng.shuffle(pairs)
    for number, (t, n) in enumerate(pairs[: N_TRAIN + N_TEST]):
        train = number < N_TRAIN
        for k, (domain, (place, things)) in enumerate((TRAIN if train else TRAIN | HELD_OUT).items()):
            answer = n > t
            colour = COLOURS[answer ^ (k % 2)]
            if not train or rng.random() > rho or rng.random() < redrawn:
                colour = rng.choice(COLOURS)
            split = "train" if train else "ood" if domain in HELD_OUT else "cue_random"
            yield _row(
                f"{t}-{n}", domain, f"{place} is open if there are more than {t} {things}.", n, things, colour, split
            )


def _row(pair: str, domain: str, rule: str, n: int, things: str, colour: str, split: str) -> Row:
    threshold = int(pair.partition("-")[0])
    answer = "yes" if n > threshold else "no"
    return Row(
        id=f"{pair}/{domain}",
        prompt=f"{rule} There are {n} {things}. Code {colour}. Is it open?",
        completion=f"Answer: {answer}",
        answer=answer,
        answer_type="yesno",
        set_id=pair,
        domain=domain,
        structure_id=pair,
        split=split,
    )


def _warm_student(seed: int, warm: int | None, out: Path) -> Path:
    """A folder with the student that has begun to take the logic, by ERM on rows with a random colour; one a seed."""
    steps = warm or WARM_STEPS
    folder = out / f"warm-{steps}-seed{seed}"
    if not (folder / "checkpoints" / f"checkpoint-{steps}").exists():
        file = out / f"rows-warm-seed{seed}.jsonl"
        write_rows(file, list(rows(seed, 0.0, 0.0)))
        tree = _recipe(str(_plain_student(out)), file, steps, seed, 1e-3)
        tree["train"] |= {"save_steps": 5, "save_total_limit": None}
        train_run(parse_recipe(tree | {"method": "erm"}), folder)
    step = warm or next((step for step, loss in _losses(folder) if loss < WARM_LOSS), None)
    if step is None:
        raise SystemExit(f"Seed {seed} did not begin to take the logic in {WARM_STEPS} steps; see {folder}.")
    target = folder / f"warm{step}"
    if not target.exists():
        student = load_student(str(_plain_student(out)))
        adapter = PeftModel.from_pretrained(student.model, folder / "checkpoints" / f"checkpoint-{step}")
        merged = merged_copy(adapter, student.model.dtype)
        unfinished = folder / "unfinished"
        merged.save_pretrained(unfinished)
        student.tokenizer.save_pretrained(unfinished)
        unfinished.replace(target)
    return target


def _plain_student(out: Path) -> Path:
    """SmolLM2-135M that reads plain prompts: without its chat template a problem is half as long."""
    folder = out / "plain"
    if not folder.exists():
        student = load_student("smollm2-135m")
        student.tokenizer.chat_template = None
        student.model.save_pretrained(folder)
        student.tokenizer.save_pretrained(folder)
    return folder


def _recipe(student: str, file: Path, steps: int, seed: int, learning_rate: float) -> dict[str, Any]:
    return {
        "student": student,
        "problems": str(file),
        "baseline": None,
        "seed": seed,
        "split": {"held_out_domains": list(HELD_OUT), "valid": 0.0, "test": 0.0},
        "lora": {"r": 8, "lora_alpha": 16},
        "train": {"steps": steps, "sets_per_batch": 2, "learning_rate": learning_rate, "lr_scheduler_type": "constant"},
        "evaluate": {"max_new_tokens": 5, "before": False},
    }


def _losses(folder: Path) -> list[tuple[int, float]]:
    """Step and mean loss of the five steps up to it."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [(entry["step"], entry["loss"]) for entry in map(json.loads, lines) if "loss" in entry]


def write_page() -> None:
    """Our records in iga.json, beside those of the laboratory, and our tables in iga.md, from the lines alone."""
    records = collect(read_log(RUNS))
    path, page = RESULTS / "iga.json", RESULTS / "iga.md"
    kept = [record for record in json.loads(path.read_text(encoding="utf-8")) if record["student"].startswith("lab")]
    write_lines(path, [json.dumps(kept + records, indent=1, allow_nan=False)])
    write_between_marks(page, BEGIN, END, tables(records))


def collect(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record per setting, method and metric, with paired differences to erm and random_mask."""
    groups: dict[tuple[float, int, int | None], dict[str, dict[int, dict[str, Any]]]] = {}
    for line in lines:
        groups.setdefault((line["rho"], line["steps"], line["warm"]), {}).setdefault(line["method"], {})[
            line["seed"]
        ] = line
    records = []
    for (rho, steps, warm), methods in groups.items():
        start = f"to a loss of {WARM_LOSS}" if warm is None else f"of {warm} steps"
        for method, runs in methods.items():
            for metric, split, name in METRICS:
                seeds = sorted(runs)
                values = [runs[s]["loss"] if split is None else runs[s]["splits"][split][name] for s in seeds]
                mean, sd = mean_sd(values)
                rivals = [rival for rival in ("erm", "random_mask") if rival in methods and rival != method]
                paired = name == "acc_macro"
                records.append(
                    {
                        "setting": f"threshold rule, colour cue, rho {rho:g}, {steps} steps after a warm start {start}",
                        "student": "SmolLM2-135M-Instruct, dequantised from Q4_1",
                        "method": method,
                        "metric": metric,
                        "mean": round(mean, 6),
                        "sd": None if np.isnan(sd) else round(sd, 6),
                        "seeds": values,
                        "diff_to": {r: difference(runs, methods[r], str(split)) for r in rivals} if paired else {},
                        "command": f"python studies/shortcut.py --rho {rho:g} --steps {steps}"
                        + (f" --warm {warm}" if warm else ""),
                    }
                )
    return records


METRICS = (
    ("acc_cue_random", "cue_random", "acc_macro"),
    ("acc_ood", "ood", "acc_macro"),
    ("all_correct_cue_random", "cue_random", "all_correct"),
    ("agreement_cue_random", "cue_random", "agreement"),
    ("lcs_ratio_cue_random", "cue_random", "lcs_ratio"),
    ("train_loss", None, "loss"),
)
"""Metric, split, name in the split; the train loss is of the last five steps."""


def difference(runs: Mapping[int, Any], rival: Mapping[int, Any], split: str) -> list[float] | None:
    """Mean accuracy minus the rival's over the common seeds, with the 95 % interval over seeds, then sets."""
    seeds = sorted(runs.keys() & rival.keys())
    if not seeds:
        return None
    gaps = [np.subtract(runs[s]["right"][split], rival[s]["right"][split]) for s in seeds]
    rng = np.random.default_rng(0)
    samples = []
    for _ in range(10_000):
        drawn = rng.integers(len(seeds), size=len(seeds)) if len(seeds) >= 3 else range(len(seeds))
        samples.append(np.mean([gaps[i][rng.integers(len(gaps[i]), size=len(gaps[i]))].mean() for i in drawn]))
    low, high = np.percentile(samples, [2.5, 97.5])
    return [round(float(x), 6) for x in (np.mean([gap.mean() for gap in gaps]), low, high)]


def tables(records: list[dict[str, Any]]) -> str:
    """The tables of the page, one per setting."""
    lines: list[str] = []
    for setting in dict.fromkeys(record["setting"] for record in records):
        here = {(r["method"], r["metric"]): r for r in records if r["setting"] == setting}
        heads = (
            "method",
            "cue random",
            "against ERM",
            "against the random mask",
            "unseen surfaces",
            "all right",
            "LCS ratio",
            "train loss",
        )
        lines += [f"**{setting}**", "", f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
        for method in dict.fromkeys(m for m, _ in here):
            cue = here[method, "acc_cue_random"]
            rest = [
                mean_cell(here[method, m])
                for m in ("acc_ood", "all_correct_cue_random", "lcs_ratio_cue_random", "train_loss")
            ]
            cells = [method, mean_cell(cue), difference_cell(cue, "erm"), difference_cell(cue, "random_mask"), *rest]
            lines.append(f"| {' | '.join(cells)} |")
        lines += ["", "| method | seeds, cue random | seeds, unseen surfaces |", "| --- | --- | --- |"]
        for method in dict.fromkeys(m for m, _ in here):
            cells = [", ".join(f"{v:.3f}" for v in here[method, m]["seeds"]) for m in ("acc_cue_random", "acc_ood")]
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    main()
