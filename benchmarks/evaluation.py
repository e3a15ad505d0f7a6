"""Seconds to answer, verify and score isomer problems with every consistency metric, on the CPU.

``python -m benchmarks.evaluation [--adapter RUN/student] [--problems 1000]``: SmolLM2-135M in bf16, greedy, at most 64
new tokens; the time runs from the loaded model to the numbers with their intervals.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from peft import PeftModel

from isodistill.evaluation.answer import Provenance, answer_rows, read_representations
from isodistill.evaluation.backends import LocalBackend
from isodistill.evaluation.generate import merged_copy
from isodistill.evaluation.records import PredictionLog
from isodistill.evaluation.results import split_results
from isodistill.isomers.generate import generate_sets
from isodistill.models.load import load_student


def run(problems: int, adapter: Path | None) -> None:
    """Print the seconds of both parts and what was measured."""
    student = load_student("smollm2-135m")
    model = student.model
    if adapter is not None:
        model = merged_copy(PeftModel.from_pretrained(model, adapter), torch.bfloat16)
    backend = LocalBackend(model.to(torch.bfloat16).eval())
    rows = generate_sets(n_sets=-(-problems // 10), seed=5)[:problems]
    with tempfile.TemporaryDirectory() as folder:
        log = PredictionLog(Path(folder) / "predictions.jsonl")
        provenance = Provenance("benchmark", "erm", None, 0, 0, 0, "after")
        start = time.perf_counter()
        answer_rows(backend, student.tokenizer, rows, log, provenance, split="id", max_new_tokens=64, batch_size=64)
        answered = time.perf_counter()
        records = log.read()
        results = split_results(records, read_representations(Path(folder), "after"))
        scored = time.perf_counter()
    tokens = sum(record.n_new_tokens for record in records)
    print(f"{len(records)} problems, {tokens} new tokens: answered in {answered - start:.1f} s, scored in", end=" ")
    print(f"{scored - answered:.1f} s; acc_macro {results['acc_macro']:.3f}, lcs_ratio {results['lcs_ratio']:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--problems", type=int, default=1000)
    parser.add_argument("--adapter", type=Path)
    arguments = parser.parse_args()
    run(arguments.problems, arguments.adapter)
