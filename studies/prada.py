"""PRADA from a labelled source to an unlabelled target, on ten sets of the chain-of-thought suite.

    python studies/prada.py --data FOLDER [--student smollm2-135m] [--seeds 0 1 2] [--runs N]

The student is a small Llama that is first trained here on other people's reasoning, or one that is named. Each run is a
recipe of the product: a method learns the source's traces, perhaps beside the target's questions, and answers test
problems of both. A finished run is a line of docs/results/prada-runs.jsonl and is not done again; the records, the
page's tables and its figures are made from these lines (``--runs 0`` does only that).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from prada_report import PAIRS, report
from torch.nn import functional as F

from isodistill.data.encode import IGNORE_INDEX, encode_row
from isodistill.data.files import append_log, read_log, write_lines
from isodistill.data.load import load_rows
from isodistill.data.rows import Row
from isodistill.evaluation import PredictionLog
from isodistill.evaluation.generate import merged_copy
from isodistill.models.load import load_student
from isodistill.models.prompt import PROMPT, with_prompt
from isodistill.models.tiny import make_tiny_student
from isodistill.pipeline import evaluate_run, train_run, write_results
from isodistill.recipe import Recipe, parse_recipe

RESULTS = Path("docs/results")
LOG = "prada-runs.jsonl"
LAB = "lab"
SETS = {
    "svamp": ("traces/palm_svamp/all", "svamp/test"),
    "gsm8k": ("gsm8k/train", "gsm8k/test"),
    "singleeq": ("singleeq/train", "singleeq/test"),
    "addsub": ("addsub/train", "addsub/test"),
    "aqua": ("aqua/dev", "aqua/test"),
    "commonsenseqa": ("traces/palm_commonsenseqa/all", "commonsenseqa/test"),
    "strategyqa": ("strategyqa/train", "strategyqa/dev"),
    "last_letters": ("last_letters/train", "last_letters/train"),
    "coin_flip": ("coin_flip/train", "coin_flip/train"),
    "tracking_shuffled_objects": ("tracking_shuffled_objects/train", "tracking_shuffled_objects/test"),
}
"""Set -> files to learn from and to be judged on; where these are one file, its test problems are not learned."""
SLOTS: dict[str, dict[str, Any]] = {
    "sft": {"method": "erm_pooled"},
    "prada": {"method": "prada"},
    "prompt_lora": {"method": "prada", "term": {"lam": 0.0}},
    "dann": {"method": "prada", "term": {"adapt": "lora"}},
    "p_tuning": {"method": "prada", "term": {"adapt": "prompt", "lam": 0.0}},
    "prada_prompt": {"method": "prada", "term": {"adapt": "prompt"}},
    "frozen": {"method": "prada", "term": {"control": "frozen"}},
    "shuffled": {"method": "prada", "term": {"control": "shuffled"}},
    "step_by_step": {"method": "label_multitask"},
}
READ_BEFORE = ("gsm8k/train", "commonsenseqa/train", "prontoqa_isomers/train")
"""What the student of the laboratory is trained on before: no set that is a target."""
READ_STEPS = 500
LAB_NAME = "lab, Llama of 2 layers and width 128"
N_TRAIN, N_VALID, N_TEST = 240, 16, 50
MOST_WORDS = 100
"""Longer problems, their traces counted in, are left out: the runs are to fit a small machine."""


def main() -> None:
    """Run what is missing, then write the records, the tables and the figures."""
    parser = argparse.ArgumentParser(description="PRADA from source to target.")
    parser.add_argument("--data", type=Path, help="folder of the real data sets")
    parser.add_argument("--student", default=LAB, help="lab, or whatever a recipe takes")
    parser.add_argument("--pairs", type=int, nargs="*", default=[*range(len(PAIRS))], help="numbers in PAIRS")
    parser.add_argument("--methods", nargs="*", default=[*SLOTS], help="some methods alone")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of rows, adapters and batches")
    parser.add_argument("--runs", type=int, default=None, help="run at most so many; 0 only writes the results")
    parser.add_argument("--out", type=Path, default=Path("runs/prada"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the lines and what they give")
    given = parser.parse_args()
    if given.data is None and given.runs != 0:
        parser.error("--data names the folder of the data sets; only --runs 0 does without")
    torch.set_num_threads(1)
    log = given.results / LOG
    for source, target, method, seed in islice(missing(given, log), given.runs):
        append_log(log, one_run(given, source, target, method, seed))
        report(read_log(log), given.results)
        print(f"{source} to {target}, {method}, seed {seed}", flush=True)
    report(read_log(log), given.results)


def missing(given: argparse.Namespace, log: Path) -> Iterator[tuple[str, str, str, int]]:
    """Source, target, method and seed of every run without a line, seeds outermost."""
    done = {(run["lab"], run["source"], run["target"], run["method"], run["seed"]) for run in read_log(log)}
    for seed in given.seeds:
        for pair in (PAIRS[number] for number in given.pairs):
            for method in given.methods:
                if (given.student == LAB, *pair, method, seed) not in done:
                    yield *pair, method, seed


def one_run(given: argparse.Namespace, source: str, target: str, method: str, seed: int) -> dict[str, Any]:
    """Train and answer; the line of the run, and of the untrained student where the method is sft."""
    folder = given.out / given.student / f"{source}-{target}-{method}-{seed}"
    recipe = recipe_of(given, source, target, method, seed)
    start = time.process_time()
    train_run(recipe, folder)
    seconds = time.process_time() - start
    evaluate_run(recipe, folder)
    results = write_results(recipe, folder)
    told = Path(recipe.problems).with_name("gold.jsonl")
    gold = load_rows(told).rows if told.stat().st_size else []  # none of tracking shuffled objects
    line = {
        "lab": given.student == LAB, "source": source, "target": target, "method": method, "seed": seed,
        "student": LAB_NAME if given.student == LAB else results["student"], "named": given.student,
        "steps": results["train"]["steps"], "cpu_seconds": round(seconds, 1), "curve": curve(folder),
        "loss_target": target_loss(recipe, gold, folder / "student"),
    } | stage(folder, "after")  # fmt: skip
    if recipe.evaluate.before:
        line["before"] = stage(folder, "before") | {"loss_target": target_loss(recipe, gold, None)}
    for left in ("checkpoints", "student", "representations"):
        shutil.rmtree(folder / left, ignore_errors=True)
    return line


def recipe_of(given: argparse.Namespace, source: str, target: str, method: str, seed: int) -> Recipe:
    """The recipe of a run, its rows written; only sft asks the untrained student, too."""
    data = given.out / "data" / f"{source}-{target}-{seed}"
    if not (data / "target.jsonl").is_file():
        write_data(given.data, data, source, target, seed)
    slots = {name: dict(value) if isinstance(value, dict) else value for name, value in SLOTS[method].items()}
    steps, rate = (40, 4e-3) if given.student == LAB else (20, 1e-3)
    train = {"steps": steps, "sets_per_batch": 8, "learning_rate": rate, "save_steps": 1000, "use_cpu": True,
             "eval_strategy": "steps", "eval_steps": 5, "eval_on_start": True}  # fmt: skip
    tree = {
        "student": str(lab_student(given)) if given.student == LAB else given.student, "baseline": None, "seed": seed,
        "problems": str(data / "problems.jsonl"), "target": str(data / "target.jsonl"), "train": train,
        "evaluate": {"max_new_tokens": 64, "before": method == "sft"},
    }  # fmt: skip
    return parse_recipe(tree | slots)


def lab_student(given: argparse.Namespace) -> Path:
    """The folder of a language model of 2 layers, trained on problems with their rationales, made once."""
    folder: Path = given.out / "student"
    if folder.exists():
        return folder
    items = [item for name in READ_BEFORE for item in fitting(given.data / f"{name}.jsonl.gz")]
    random.Random(0).shuffle(items)
    texts = [f"{problem(item, '')['prompt']}\n{traced(item)}" for item in items]
    student = make_tiny_student(texts[:2000], 0)
    optimizer = torch.optim.AdamW(student.model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, READ_STEPS)
    for start in range(0, 16 * READ_STEPS, 16):
        batch = student.tokenizer([text + student.tokenizer.eos_token for text in texts[start : start + 16]],
                                  return_tensors="pt", padding=True)  # fmt: skip
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        student.model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    student.model.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    return folder


def write_data(data: Path, folder: Path, source: str, target: str, seed: int) -> None:
    """Traces of the source and test problems of both in one file, training questions of the target in another.

    The test problems are the same for every seed.
    """
    learned = {}
    rows: list[dict[str, Any]] = []
    for name, split in ((source, "id"), (target, "ood")):
        many, tested = (fitting(data / f"{file}.jsonl.gz") for file in SETS[name])
        picked = sorted(tested, key=lambda item: hashlib.sha256(item["id"].encode()).digest())[:N_TEST]
        rows += [problem(item, name) | {"split": split} for item in picked]
        asked = {item["question"] for item in picked}
        learned[name] = [item for item in many if item["question"] not in asked]
    rng = random.Random(f"{source} {target} {seed}")
    usable = [item for item in learned[source] if item["rationale"] and (item["meta"] or {}).get("correct", True)]
    for i, item in enumerate(rng.sample(usable, min(len(usable), N_TRAIN + N_VALID))):
        split = "valid" if i < N_VALID else "train"
        rows.append(problem(item, source) | {"completion": traced(item), "split": split})
    known = known_traces(data)
    told = [(item, item["rationale"] or known.get(letters(item["question"]))) for item in picked]
    gold = [problem(item, target) | {"completion": traced(item | {"rationale": text})} for item, text in told if text]
    write_lines(folder / "gold.jsonl", [json.dumps(row) for row in gold])
    questions = rng.sample(learned[target], min(len(learned[target]), N_TRAIN))
    write_lines(folder / "problems.jsonl", [json.dumps(row) for row in rows])
    write_lines(folder / "target.jsonl", [json.dumps(problem(item, target)) for item in questions])


@torch.no_grad()
def target_loss(recipe: Recipe, rows: list[Row], trained: Path | None) -> float | None:
    """Mean cross-entropy of a token of the target's gold traces under a student, or the untrained one."""
    if not rows:
        return None
    student = load_student(recipe.student)
    model, before = student.model, list[int]()
    if trained is not None:
        model = merged_copy(PeftModel.from_pretrained(model, trained), torch.float32)
        before = with_prompt(model, trained / PROMPT) if (trained / PROMPT).exists() else []
    total, n = 0.0, 0
    for row in rows:
        encoded = encode_row(row, student.tokenizer, max_length=512)
        logits = model.eval()(torch.tensor([before + encoded.input_ids])).logits[0, len(before) : -1]
        labels = torch.tensor(encoded.labels[1:])
        total += float(F.cross_entropy(logits, labels, reduction="sum"))
        n += int((labels != IGNORE_INDEX).sum())
    return round(total / n, 6)


def fitting(path: Path) -> list[dict[str, Any]]:
    """The short items of a file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        items = [json.loads(line) for line in file]
    return [item for item in items if words(item) <= MOST_WORDS]


def words(item: dict[str, Any]) -> int:
    """Of question, choices and rationale."""
    return len(" ".join([item["question"], *(item["choices"] or []), item["rationale"] or ""]).split())


def known_traces(data: Path) -> dict[str, str]:
    """Question -> correct trace of GPT-3.5, for the sets of arithmetic that have none of their own."""
    found = fitting(data / "traces" / "gpt35_arithmetic" / "all.jsonl.gz")
    return {letters(item["question"]): item["rationale"] for item in found if item["meta"]["correct"]}


def letters(text: str) -> str:
    """A question without spacing and punctuation."""
    return "".join(character for character in text.casefold() if character.isalnum())


def traced(item: dict[str, Any]) -> str:
    """The rationale and the answer."""
    return f"{item['rationale'].strip()} The answer is {item['answer']}."


def problem(item: dict[str, Any], domain: str) -> dict[str, Any]:
    """A row without a trace."""
    options = [f"{chr(ord('A') + i)}) {text}" for i, text in enumerate(item["choices"] or [])]
    row = {
        "id": item["id"], "prompt": "\n".join([item["question"], *options]), "answer": item["answer"],
        "answer_type": item["answer_type"], "choices": item["choices"], "domain": domain,
    }  # fmt: skip
    return {key: value for key, value in row.items() if value is not None}


def curve(folder: Path) -> list[list[float]]:
    """Step and loss on held-out traces of the source."""
    lines = (json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [[line["step"], round(line["eval_loss"], 6)] for line in lines if "eval_loss" in line]


def stage(folder: Path, name: str) -> dict[str, Any]:
    """Verdicts on the test problems of source and target, the fresh probe, and the map of the features."""
    records = [r for r in PredictionLog(folder / "predictions.jsonl").read() if r.stage == name]
    domains = json.loads((folder / "domains" / f"{name}.json").read_text(encoding="utf-8"))
    verdicts: dict[str, dict[str, str]] = {"id": {}, "ood": {}}
    for record in records:
        verdicts[record.split][record.item_id] = record.outcome
    return {
        "outcomes": verdicts,
        "probe": domains["probes"]["ood"],
        "points": {side: domains["points"][side] for side in ("id", "ood")},
    }


if __name__ == "__main__":
    main()
