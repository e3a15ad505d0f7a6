"""PRADA from a labelled source to an unlabelled target, on traces of large models, with a small student.

    python studies/prada.py --data FOLDER

The student is a Llama of 2 layers, trained first on other people's reasoning (GSM8K and StrategyQA rationales); then
each method trains it on the traces of the source beside the target's questions. A finished run is a line of
docs/results/prada-runs.jsonl and is not done again; docs/results/prada.json and the table of docs/results/prada.md are
made from these lines.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from isodistill import DistillConfig, DistillTrainer
from isodistill.data.collate import collate
from isodistill.data.encode import Encoded, encode_rows
from isodistill.data.files import append_log, read_log, write_between_marks, write_lines
from isodistill.data.rows import NO_DOMAIN, Row
from isodistill.evaluation.statistics import mean_sd, paired_interval
from isodistill.models.tiny import make_tiny_student
from isodistill.training.forward import Student, trained_tokens

RESULTS = Path("docs/results")
LOG = RESULTS / "prada-runs.jsonl"
BEGIN, END = "<!-- tables: begin, made by studies/prada.py from prada-runs.jsonl -->", "<!-- tables: end -->"
COMMAND = "python studies/prada.py --data FOLDER"
PAIRS = [("gpt35_arithmetic", "palm_commonsenseqa"), ("palm_commonsenseqa", "gpt35_arithmetic")]
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"adapt": "lora", "lam": 0.0},
    "prada": {},
    "prompt_lora": {"lam": 0.0},
    "dann": {"adapt": "lora"},
    "frozen": {"control": "frozen"},
    "shuffled": {"control": "shuffled"},
    "p_tuning": {"adapt": "prompt", "lam": 0.0},
}
N_TRAIN, N_TEST, STEPS = 400, 200, 60


def main() -> None:
    """Run what is missing, then write the records and the table."""
    parser = argparse.ArgumentParser(description="PRADA from source to target.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="of rows, adapters and batches")
    given = parser.parse_args()
    torch.set_num_threads(1)
    done = {(run["source"], run["target"], run["method"], run["seed"]) for run in read_log(LOG)}
    start: tuple[LlamaForCausalLM, PreTrainedTokenizerBase] | None = None
    for pair in PAIRS:
        for seed in given.seeds:
            for method in METHODS:
                if (*pair, method, seed) not in done:
                    start = start or trained_base(given.data)
                    append_log(LOG, one_run(start, given.data, pair, method, seed))
                    report(read_log(LOG))
    report(read_log(LOG))


def trained_base(data: Path) -> tuple[LlamaForCausalLM, PreTrainedTokenizerBase]:
    """A language model of short reasoning in words and numbers, in neither the source's nor the target's rows."""
    rows = read_rows(data / "gsm8k" / "train.jsonl.gz") + read_rows(data / "strategyqa" / "train.jsonl.gz")
    random.Random(0).shuffle(rows)
    tokenizer = make_tiny_student([f"{row.prompt}\n{row.completion}" for row in rows[:2000]], 0).tokenizer
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=512, bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip
    encoded = encode_rows(rows[:4000], tokenizer, 200, max_refused=1.0)[0]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for start in range(0, 300 * 8, 8):
        batch = collate(encoded[start : start + 8], [NO_DOMAIN], tokenizer.pad_token_id)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, tokenizer


def one_run(start: Any, data: Path, pair: tuple[str, str], method: str, seed: int) -> dict[str, Any]:
    """Train one method; what is reported of it."""
    model, tokenizer = start
    rows = {}
    for name in pair:
        every = read_rows(data / "traces" / name / "all.jsonl.gz")
        fitting = [row for row in every if len(tokenizer(f"{row.prompt}\n{row.completion}")["input_ids"]) < 190]
        rows[name] = random.Random(f"{name} {seed}").sample(fitting, N_TRAIN + N_TEST)
    source, target = (rows[name] for name in pair)
    with TemporaryDirectory() as folder:
        trainer = DistillTrainer(
            copy.deepcopy(model),
            args=DistillConfig(
                output_dir=folder, method="prada", term=METHODS[method], max_steps=STEPS,
                sets_per_batch=8, learning_rate=2e-3, save_steps=1000, bf16=False, use_cpu=True, disable_tqdm=True,
                seed=seed, max_length=200,
            ),
            train_dataset=source[:N_TRAIN],
            processing_class=tokenizer,
            peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
            target_dataset=target[:N_TRAIN],
        )  # fmt: skip
        trainer.train()
    judged = [judge(trainer, part[N_TRAIN:], tokenizer) for part in (source, target)]
    domains = torch.tensor([0] * len(judged[0][1]) + [1] * len(judged[1][1]))
    return {
        "source": pair[0], "target": pair[1], "method": method, "seed": seed,
        "log_likelihood_source": round(judged[0][0], 6), "log_likelihood_target": round(judged[1][0], 6),
        "probe": round(probe(torch.cat([judged[0][1], judged[1][1]]), domains, seed), 6),
    }  # fmt: skip


@torch.no_grad()
def judge(trainer: DistillTrainer, rows: list[Row], tokenizer: PreTrainedTokenizerBase) -> tuple[float, Tensor]:
    """Mean log-likelihood of a token of the trace and its answer, and q (N, d), the mean state over each question."""
    encoded: list[Encoded] = trainer.term.prompted(encode_rows(rows, tokenizer, 200)[0])
    trainer.model.eval()
    student, n_vocab = Student(trainer.model, torch.float32), len(tokenizer)
    total, n, features = 0.0, 0, []
    for start in range(0, len(encoded), 16):
        batch = collate(encoded[start : start + 16], [NO_DOMAIN], tokenizer.pad_token_id)
        tokens, positions = trained_tokens(batch)
        out = student(batch, positions)
        total -= float(F.cross_entropy(out.head(out.hidden), tokens.targets, reduction="sum"))
        n += len(positions)
        asked = batch["attention_mask"].bool() & (batch["labels"] == -100) & (batch["input_ids"] < n_vocab)
        flat = asked.flatten().nonzero().squeeze(1)
        rows_of = flat // asked.shape[1]
        sums = torch.zeros(len(asked), out.hidden.shape[1]).index_add_(0, rows_of, student(batch, flat).hidden)
        features.append(sums / asked.sum(1, keepdim=True))
    return total / n, torch.cat(features)


def probe(q: Tensor, domains: Tensor, seed: int) -> float:
    """Accuracy of a fresh logistic regression on q, by five-fold cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(model, q.numpy(), domains.numpy(), cv=folds).mean())


def read_rows(path: Path) -> list[Row]:
    """Questions with rationales that end in the gold answer; of traces, the correct ones alone."""
    rows = []
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for item in map(json.loads, file):
            if item["rationale"] and (item["meta"] or {}).get("correct") in (True, None):
                options = [f"{chr(ord('A') + i)}) {text}" for i, text in enumerate(item["choices"] or [])]
                prompt = "\n".join([item["question"], *options])
                completion = f"{item['rationale'].strip()} The answer is {item['answer']}."
                rows.append(Row(id=item["id"], prompt=prompt, completion=completion))
    return rows


def report(runs: list[dict[str, Any]]) -> None:
    """``prada.json`` and the table of the page."""
    records, lines = [], []
    for pair in PAIRS:
        found = {(r["method"], r["seed"]): r for r in runs if (r["source"], r["target"]) == pair}
        for method in [m for m in METHODS if any(m == name for name, _ in found)]:
            seeds = sorted(seed for name, seed in found if name == method)
            cells = []
            for metric in ("log_likelihood_target", "log_likelihood_source", "probe"):
                values = [found[method, seed][metric] for seed in seeds]
                mean, sd = mean_sd(values)
                both = [seed for seed in seeds if ("sft", seed) in found]
                apart = [found[method, seed][metric] - found["sft", seed][metric] for seed in both]
                difference = paired_interval(apart) if method != "sft" and len(both) > 1 else None
                record = {
                    "setting": f"{pair[0]} to {pair[1]}", "student": "lab, Llama of 2 layers", "method": method,
                    "metric": metric, "mean": round(mean, 6), "sd": round(sd, 6) if len(values) > 1 else None,
                    "seeds": values, "diff_to": {} if difference is None else {"sft": difference}, "command": COMMAND,
                }  # fmt: skip
                records.append(record)
                against = "" if difference is None else " ({:+.3f}, {:+.3f} to {:+.3f})".format(*difference)
                cells.append(f"{mean:.3f}{against}")
            lines.append(f"| {pair[0]} | {pair[1]} | {method} | {len(seeds)} | {' | '.join(cells)} |")
    write_lines(RESULTS / "prada.json", [json.dumps(records, indent=1, allow_nan=False)])
    head = "| source | target | method | seeds | target, log-likelihood | source, log-likelihood | domain probe |"
    text = "\n".join([head, "| --- | --- | --- | ---: | ---: | ---: | ---: |", *lines])
    write_between_marks(RESULTS / "prada.md", BEGIN, END, text)


if __name__ == "__main__":
    main()
