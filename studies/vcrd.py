"""VCRD where the teacher is wrong at known places: sums whose right result is known, a teacher that mis-subtracts.

    python studies/vcrd.py

Problems are chains of additions and subtractions; a trace computes one sum per sentence. The teacher was brought up on
traces in which *every subtraction of 7, 8 or 9 comes out one too high*: it is sure of that, and of the rest it is
right. The student was brought up on right traces until it got six sums of ten right. It then learns from the teacher's
traces and logits, by each method of METHODS from the same start on the same rows in the same order.

Step mode is scored by rules, by rollouts, by the teacher's likelihood, by a reward model, and by judges: one careless,
one who shares the teacher's error (``vcrd_scorers``).

A finished run is a line of docs/results/vcrd-runs.jsonl and is not run again; docs/results/vcrd.json and the tables of
docs/results/vcrd.md are made from these. ``--runs 0`` only writes them. Teacher and students are kept in ``--work``.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from cells import difference_cell, mean_cell
from peft import LoraConfig
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel
from vcrd_scorers import SUM, Judge, reward_model, true_sum

from isodistill import DistillConfig, DistillTrainer
from isodistill.data.encode import encode_prompt, encode_rows
from isodistill.data.files import append_log, read_log, write_between_marks, write_lines
from isodistill.data.rows import Row
from isodistill.evaluation import mean_sd, verify
from isodistill.evaluation.generate import generate, merged_copy
from isodistill.evaluation.statistics import MIN_SEEDS, paired_interval
from isodistill.models.load import Student, load_student
from isodistill.models.tiny import make_tiny_student
from isodistill.validity import JudgeScorer, Scorer, make_scorer

RESULTS, WORK = Path("docs/results"), Path("runs/vcrd")
BEGIN, END = "<!-- tables: begin, made by studies/vcrd.py from vcrd.json -->", "<!-- tables: end -->"
SEEDS = (0, 1, 2, 3, 4)
SETTINGS = {
    20: "chains of 3 sums, teacher wrong at every subtraction of 7 to 9, 20 steps (every trace seen 1.3 times)",
    80: "chains of 3 sums, teacher wrong at every subtraction of 7 to 9, 80 steps (every trace seen 5.3 times)",
}
"""Optimizer steps -> what the records call it."""
OPERATIONS, PLANTED = 3, (7, 8, 9)
N_TRAIN, N_TEST, ROWS, LR = 240, 200, 16, 2e-3
STEPWISE = {"n_prefix": OPERATIONS + 1, "max_tokens": 16}
RULE = {"steps": STEPWISE | {"scorer": {"name": "rule"}}}
GIVEN = {"steps": STEPWISE | {"scorer": {"name": "given"}}}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "sft": ("cross-entropy on the teacher's traces", {"name": "ce"}),
    "fkl": ("forward KL (w = 1)", {"name": "fkl"}),
    "rkl": ("reverse KL", {"name": "rkl"}),
    "jsd": ("JSD, beta 0.5", {"name": "jsd"}),
    "skew": ("skew KL, alpha 0.1", {"name": "skew"}),
    "vcrd_token": ("VCRD, token mode", {"name": "vcrd"}),
    "vcrd_likelihood": ("VCRD, steps by likelihood", {"name": "vcrd", "steps": STEPWISE}),
    "vcrd_rule": ("VCRD, steps by rules", {"name": "vcrd", **RULE}),
    "vcrd_rule_sharp": ("VCRD, steps by rules, beta 8", {"name": "vcrd", **RULE, "beta": 8.0}),
    "vcrd_rollout": (
        "VCRD, steps by rollouts",
        {"name": "vcrd", "steps": STEPWISE | {"scorer": {"name": "rollout", "by": "base", "max_tokens": 40}}},
    ),
    "vcrd_reward": ("VCRD, steps by a reward model that learned nothing", {"name": "vcrd", **GIVEN}),
    "vcrd_judge": ("VCRD, steps by a careless judge", {"name": "vcrd", **GIVEN}),
    "vcrd_judge_fooled": ("VCRD, steps by a judge with the teacher's error", {"name": "vcrd", **GIVEN}),
    "vcrd_permuted": ("control: rules, weights permuted", {"name": "vcrd", **RULE, "control": "permuted"}),
    "vcrd_constant": ("control: rules, constant of equal mean", {"name": "vcrd", **RULE, "control": "constant"}),
    "vcrd_reversed": ("control: rules, delta reversed", {"name": "vcrd", **RULE, "control": "reversed"}),
    **{
        f"vcrd_{control}_sharp": (
            f"control of beta 8: {words}",
            {"name": "vcrd", **RULE, "beta": 8, "control": control},
        )
        for control, words in (
            ("permuted", "weights permuted"),
            ("constant", "constant of equal mean"),
            ("reversed", "delta reversed"),
        )
    },
}
"""Method -> label, objective; every one but the first with lam_ce 0 and lam_kd 1, so that the weights act on all."""
HALFWAY = 0.6  # share of right sums at which a student is brought up no further
CONTROLS = {
    "vcrd_rule": ("vcrd_permuted", "vcrd_constant", "vcrd_reversed"),
    "vcrd_rule_sharp": ("vcrd_permuted_sharp", "vcrd_constant_sharp", "vcrd_reversed_sharp"),
}
"""Method -> its controls, at its beta."""
METRICS = {"acc": "right answers", "planted": "planted sums right", "clean": "other sums right"}
CARELESS = 0.25  # share of the marks that the careless judge gets wrong
REWARD_STEPS = 400

Run = dict[str, Any]
_seen: dict[str, dict[str, float]] = {}  # scores of models that no run changes


def main() -> None:
    """Run what is missing, then write the records and the tables."""
    parser = argparse.ArgumentParser(description="VCRD with a teacher that is wrong at known places.")
    parser.add_argument("--runs", type=int, default=None, help="run at most so many; 0 only writes the results")
    parser.add_argument("--work", type=Path, default=WORK, help="folder of the models and runs")
    given = parser.parse_args()
    torch.set_num_threads(1)
    log = RESULTS / "vcrd-runs.jsonl"
    done = {(run["steps"], run["method"], run["seed"]) for run in read_log(log)}
    grid = [(steps, method, seed) for steps in SETTINGS for seed in SEEDS for method in METHODS]
    for steps, method, seed in [one for one in grid if one not in done][: given.runs]:
        append_log(log, one_run(steps, method, seed, given.work))
        report(read_log(log))
        print(f"{steps} steps, {method}, seed {seed}: {read_log(log)[-1]['scores']}", flush=True)
    report(read_log(log))


# ---- problems ----


def problems(n: int, seed: int, *, flawed: bool, prefix: str) -> list[Row]:
    """n chains; the trace of a flawed one has the planted errors and goes on from them, the answer is the right one."""
    rng = random.Random(f"{prefix}/{seed}")
    return [_problem(rng, f"{prefix}-{seed}-{i}", flawed) for i in range(n)]


def _problem(rng: random.Random, row_id: str, flawed: bool) -> Row:
    start = rng.randint(25, 50)
    moves = [(rng.choice("+-"), rng.randint(2, 9)) for _ in range(OPERATIONS)]
    value, told, sums = start, start, []
    for sign, b in moves:
        value = value + b if sign == "+" else value - b
        before = told
        told = before + b if sign == "+" else before - b + (flawed and planted(sign, b))
        sums.append(f"{before} {sign} {b} = {told}.")
    return Row(
        id=row_id,
        prompt=" ".join([str(start), *(f"{sign} {b}" for sign, b in moves)]),
        completion=" ".join([*sums, f"The answer is {told}."]),
        answer=str(value),
        answer_type="number",
    )


def planted(sign: str, b: int) -> bool:
    """Whether the teacher gets this sum wrong."""
    return sign == "-" and b in PLANTED


# ---- teacher and students ----


def brought_up(work: Path, seed: int, *, teacher: bool) -> Student:
    """A model from scratch, trained on traces of its own problems: flawed to the end, or right and stopped halfway."""
    folder = work / ("teacher" if teacher else f"student-{seed}")
    if not (folder / "config.json").exists():
        rows = problems(20_000, seed, flawed=teacher, prefix="teacher" if teacher else "student")
        words = problems(500, 0, flawed=False, prefix="words")  # one tokenizer for all
        tokenizer = make_tiny_student([f"{row.prompt}\n{row.completion}" for row in words], 0).tokenizer
        model = _from_scratch(tokenizer, 128 if teacher else 96, seed)
        _pretrain(model, tokenizer, rows, seed, halfway=not teacher)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return load_student(str(folder))


def _from_scratch(tokenizer: Any, width: int, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=192, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def _pretrain(model: PreTrainedModel, tokenizer: Any, rows: list[Row], seed: int, *, halfway: bool) -> None:
    """All parameters on the traces, 600 steps of 32 rows; ``halfway`` stops at the first check with HALFWAY reached."""
    encoded, _ = encode_rows(rows, tokenizer, 192)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    rng, checks = random.Random(seed), problems(100, seed, flawed=False, prefix="check")
    for step in range(600):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 50) * min(1, (600 - step) / 200)
        some = rng.sample(encoded, 32)
        width = max(len(row.input_ids) for row in some)
        ids = torch.tensor([row.input_ids + [0] * (width - len(row.input_ids)) for row in some])
        labels = torch.tensor([row.labels + [-100] * (width - len(row.labels)) for row in some])
        logits = model(input_ids=ids, use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 20 == 0:
            right = scores(model, tokenizer, checks)["clean"]
            print(f"  brought up for {step} steps: {right:.3f} of the sums right", flush=True)
            if halfway and right >= HALFWAY:
                return


def scorer_of(method: str, work: Path) -> Scorer | None:
    """The scorer that a method is given; None where its settings describe it."""
    if method == "vcrd_judge":
        return JudgeScorer(Judge("careless", careless=CARELESS), workers=1)
    if method == "vcrd_judge_fooled":
        return JudgeScorer(Judge("fooled", bias=1, biased=PLANTED), workers=1)
    if method != "vcrd_reward":
        return None
    body = brought_up(work, 0, teacher=True)
    reward_model(work / method, body, problems(20_000, 0, flawed=False, prefix="reward"), REWARD_STEPS)
    options = {"name": "reward", "source": str(work / method), "kind": "token", "positive": 0}
    return make_scorer(options, lambda: None, lambda: body)


# ---- one run ----


def one_run(steps: int, method: str, seed: int, work: Path) -> Run:
    """Distil, test; the line of the record."""
    objective, scorer = METHODS[method][1], scorer_of(method, work)
    run = distilled(objective, scorer, steps, seed, work, work / f"{method}-{steps}-{seed}")
    return {"steps": steps, "method": method, "seed": seed, **run}


def distilled(
    objective: dict[str, Any], scorer: Scorer | None, steps: int, seed: int, work: Path, folder: Path, lr: float = LR
) -> Run:
    """Distil into a folder of its own, test; the numbers of the record."""
    teacher, student = brought_up(work, 0, teacher=True), brought_up(work, seed, teacher=False)
    rows, tests = problems(N_TRAIN, seed, flawed=True, prefix="train"), problems(N_TEST, 0, flawed=False, prefix="test")
    for name, model in (("teacher", teacher), (f"before-{seed}", student)):
        if name not in _seen:
            _seen[name] = scores(model.model, model.tokenizer, tests)
    if objective["name"] != "ce":
        objective = objective | {"lam_ce": 0.0, "lam_kd": 1.0}
    shutil.rmtree(folder, ignore_errors=True)
    trainer = DistillTrainer(
        student.model,
        args=DistillConfig(
            output_dir=str(folder), method="erm_pooled", objective=objective, max_steps=steps, sets_per_batch=ROWS,
            learning_rate=lr, use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, seed=seed,
        ),
        train_dataset=rows,
        processing_class=student.tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        teacher_model=None if objective["name"] == "ce" else teacher.model,
        teacher_processing_class=teacher.tokenizer,
        scorer=scorer,
    )  # fmt: skip
    began = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - began
    after = scores(merged_copy(trainer.model, torch.float32), student.tokenizer, tests)
    return {
        "parameters": sum(p.numel() for p in student.model.parameters()),
        "before": _seen[f"before-{seed}"],
        "teacher": _seen["teacher"],
        "scores": after,
        "seconds": round(seconds, 1),
        "auroc": auroc_of(folder / "validity" / "steps.jsonl", rows),
    }


def scores(model: PreTrainedModel, tokenizer: Any, tests: list[Row]) -> dict[str, float]:
    """Shares of right answers, and of right sums where the teacher is wrong and elsewhere, in greedy traces."""
    prompts = [encode_prompt(row, tokenizer, 192) for row in tests]
    answers = [g.text for g in generate(model, tokenizer, prompts, max_new_tokens=60)]
    kinds: dict[str, list[bool]] = {"planted": [], "clean": []}
    for text in answers:
        for a, sign, b, c in SUM.findall(text):
            kinds["planted" if planted(sign, int(b)) else "clean"].append(int(c) == true_sum(a, sign, b))
    right = [verify(text, str(row.answer), "number") == "correct" for text, row in zip(answers, tests, strict=True)]
    shares = {name: sum(found) / max(1, len(found)) for name, found in kinds.items()}
    return {"acc": round(sum(right) / len(right), 6), **{name: round(share, 6) for name, share in shares.items()}}


def auroc_of(file: Path, rows: list[Row]) -> float | None:
    """Chance that delta is lower at a planted sum than at another one, ties half; None outside step mode.

    Only sums count, not the closing sentence.
    """
    if not file.exists():
        return None
    traces = {row.id: SUM.findall(str(row.completion)) for row in rows}
    found: dict[bool, list[float]] = {True: [], False: []}
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        for j in record["drawn"]:
            if j < OPERATIONS:
                _, sign, b, _ = traces[record["row"]][j]
                found[planted(sign, int(b))].append(record["deltas"][j])
    return auroc(found[True], found[False])


def auroc(lower: list[float], higher: list[float]) -> float | None:
    """Chance that one of the first lies below one of the second, ties half; None without pairs."""
    pairs = [(d < e) + 0.5 * (d == e) for d in lower for e in higher]
    return round(sum(pairs) / len(pairs), 6) if pairs else None


# ---- records and tables ----


def report(runs: list[Run]) -> None:
    """``vcrd.json`` and the tables of the page."""
    records = [record for steps in SETTINGS for record in _records(steps, [r for r in runs if r["steps"] == steps])]
    write_lines(RESULTS / "vcrd.json", [json.dumps(records, indent=1, allow_nan=False)])
    write_between_marks(RESULTS / "vcrd.md", BEGIN, END, tables(records, runs))


def _records(steps: int, runs: list[Run]) -> list[Run]:
    """Those of one setting."""
    found: dict[str, dict[int, Run]] = {method: {} for method in METHODS}
    for run in runs:
        found[run["method"]][run["seed"]] = run
    return [
        {"setting": SETTINGS[steps], **_record(method, metric, found)}
        for method in METHODS
        for metric in (*METRICS, "auroc")
        if any(_value(run, metric) is not None for run in found[method].values())
    ]


def _value(run: Run, metric: str) -> float | None:
    value: float | None = run[metric] if metric == "auroc" else run["scores"][metric]
    return value


def _record(method: str, metric: str, found: dict[str, dict[int, Run]]) -> Run:
    values = {seed: _value(run, metric) for seed, run in sorted(found[method].items())}
    defined = [value for value in values.values() if value is not None]
    mean, sd = mean_sd(defined)
    differences = {}
    for rival in ("fkl", *CONTROLS.get(method, ())):
        pairs = [(values[seed], _value(run, metric)) for seed, run in found[rival].items() if seed in values]
        apart = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
        if method != rival and len(apart) >= MIN_SEEDS:
            differences[rival] = paired_interval(apart)
    first = next(iter(found[method].values()))
    return {
        "student": f"lab Llama, {first['parameters'] / 1e6:.2f} M parameters",
        "method": method,
        "metric": metric,
        "mean": round(mean, 6),
        "sd": round(sd, 6) if len(defined) > 1 else None,
        "seeds": list(values.values()),
        "diff_to": differences,
        "command": "python studies/vcrd.py",
    }


def tables(records: list[Run], runs: list[Run]) -> str:
    """One table per setting: what stood before them, then the methods in order."""
    head = [METRICS["acc"], "more than forward KL by", METRICS["planted"], "more by", METRICS["clean"], "more by"]
    lines: list[str] = []
    for steps, label in SETTINGS.items():
        found = {(r["method"], r["metric"]): r for r in records if r["setting"] == label}
        if not found:
            continue
        lines += ["", f"### {label.rpartition(', ')[2]}", ""]
        lines.append(f"| method | seeds | {' | '.join(head)} | AUROC of delta |")
        lines.append(f"| --- | ---: |{' ---: |' * (len(head) + 1)}")
        lines += _before([run for run in runs if run["steps"] == steps])
        for method, (words, _) in METHODS.items():
            if (method, "acc") in found:
                cells = [words, str(len(found[method, "acc"]["seeds"]))]
                for metric in METRICS:
                    record = found[method, metric]
                    cells += [mean_cell(record), difference_cell(record, "fkl")]
                cells.append(mean_cell(found.get((method, "auroc"))))
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).strip()


def _before(runs: list[Run]) -> list[str]:
    """The rows of the teacher and of the students before distillation."""
    lines = []
    for name, label in (("teacher", "the teacher"), ("before", "the student before")):
        by_seed = {run["seed"]: run[name] for run in runs}
        cells = []
        for metric in METRICS:
            values = [scores[metric] for scores in by_seed.values()]
            cells += [f"{sum(values) / len(values):.3f}", "-"]
        lines.append(f"| {label} | {len(by_seed)} | {' | '.join(cells)} | - |")
    return lines


if __name__ == "__main__":
    main()
