"""Tokens per second of ``isodistill.evaluation.generate`` beside transformers' ``model.generate``, on the CPU.

Both answer the same isomer prompts of all families greedily in one process, in turns; figures are medians, and only
ratios should be compared between machines. Run ``python -m benchmarks.generate [--quick] [--adapter RUN/student]``.

    plain    answers as the untrained student gives them; most are cut at the length limit
    trained  answers of the student with the adapter, which end by themselves
    mixed    without an adapter: plain answers that also end at their first full stop, so that lengths differ in a batch
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from isodistill.data.encode import encode_prompt
from isodistill.evaluation.generate import generate, merged_copy
from isodistill.isomers.generate import generate_sets
from isodistill.models.load import Student, load_student

MAX_NEW_TOKENS = 64
DTYPES = (("bf16", torch.bfloat16), ("fp32", torch.float32))
BATCHES = ((32, 64), (1, 1), (16, 16), (64, 64))
"""Rows at a time in transformers and in ours; the first pair is the headline."""
PROMPTS = {1: 8, 16: 64, 64: 128}
"""How many prompts a batch answers; only the headline in bf16 answers all, so that a run ends within the hour."""


class Measured(NamedTuple):
    """Tokens per second and peak memory above that of the model (MB) of ours and theirs; share of equal answers."""

    ours: float
    theirs: float
    ours_mb: float
    theirs_mb: float
    equal: float


def run(quick: bool, adapter: Path | None = None) -> dict[str, float]:
    """Print the table of tokens per second; return the ratios ours / transformers.

    ``generate_vs_hf`` is plain, bf16, ours with its default batch of 64 against ``model.generate`` with 32;
    ``_trained``, ``_mixed`` and ``_fp32`` are the same with the other answers and dtype, ``_bN`` with a batch of N on
    both sides. Quick: 64 prompts, 3 turns, no fp32.
    """
    student = load_student("smollm2-135m")
    prompts = isomer_prompts(student, 64 if quick else 512)
    eos = student.tokenizer.eos_token_id
    results: dict[str, float] = {}
    print("answers  dtype       batch  transformers     ours  ratio   equal  MB: transformers     ours")
    for name, dtype in DTYPES[:1] if quick else DTYPES:
        plain = student.model.to(dtype).eval()
        other = ("mixed", plain, [eos, *student.tokenizer.encode(".")])
        if adapter is not None:
            fp32 = load_student("smollm2-135m").model
            other = ("trained", merged_copy(PeftModel.from_pretrained(fp32, adapter), dtype), [eos])
        for answers, model, stops in (("plain", plain, [eos]), other):
            for hf_batch, batch in BATCHES if answers != "mixed" else BATCHES[:1]:
                headline = (hf_batch, batch) == BATCHES[0]
                some = prompts if headline and name == "bf16" else prompts[: PROMPTS[batch] // (2 if quick else 1)]
                m = side_by_side(model, student, some, stops, hf_batch, batch, 3 if quick or name == "fp32" else 5)
                ratio = m.ours / m.theirs
                print(
                    f"{answers:8} {name:6} {hf_batch:5}/{batch:4} {m.theirs:13.0f} {m.ours:8.0f} {ratio:6.2f} "
                    f"{m.equal:7.1%} {m.theirs_mb:17.0f} {m.ours_mb:8.0f}",
                    flush=True,
                )
                headline = (hf_batch, batch) == BATCHES[0]
                key = f"_{answers}" * (answers != "plain") + f"_{name}" * (name != "bf16")
                results["generate_vs_hf" + key + f"_b{batch}" * (not headline)] = ratio
    return results


def isomer_prompts(student: Student, n: int) -> list[list[int]]:
    """Token ids of isomer questions of all families in the chat template, in an order that mixes their lengths."""
    rows = generate_sets(n_sets=-(-n // 10), seed=5)[:n]
    prompts = [encode_prompt(row, student.tokenizer, 2**31) for row in rows]
    return [prompts[i] for i in torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()]


def side_by_side(
    model: PreTrainedModel,
    student: Student,
    prompts: list[list[int]],
    stops: list[int],
    hf_batch: int,
    batch: int,
    repeats: int,
) -> Measured:
    """Both answer all prompts, in turns, ``repeats`` times."""

    def ours() -> list[list[int]]:
        settings: dict[str, Any] = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": batch, "stop_ids": stops}
        return [answer.tokens for answer in generate(model, student.tokenizer, prompts, **settings)]

    def theirs() -> list[list[int]]:
        groups = [prompts[i : i + hf_batch] for i in range(0, len(prompts), hf_batch)]
        return [answer for group in groups for answer in by_transformers(model, group, stops)]

    seconds: dict[Callable[[], list[list[int]]], list[float]] = {ours: [], theirs: []}
    answers, peaks = {}, {}
    for _ in range(repeats):
        for way, taken in seconds.items():
            before = _memory("VmRSS", reset_peak=True)
            start = time.perf_counter()
            answers[way] = way()
            taken.append(time.perf_counter() - start)
            peaks.setdefault(way, _memory("VmHWM") - before)
    counted = {way: sum(map(len, found)) / statistics.median(seconds[way]) for way, found in answers.items()}
    equal = sum(a == b for a, b in zip(answers[ours], answers[theirs], strict=True)) / len(prompts)
    return Measured(counted[ours], counted[theirs], peaks[ours], peaks[theirs], equal)


def by_transformers(model: PreTrainedModel, prompts: list[list[int]], stops: list[int]) -> list[list[int]]:
    """Greedy answers of ``model.generate`` to one left-padded batch, up to the first stop token."""
    width = max(map(len, prompts))
    out = model.generate(
        input_ids=torch.tensor([[0] * (width - len(p)) + p for p in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts]),
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=0,
    )
    answers = out[:, width:].tolist()
    ends = [next((i for i, token in enumerate(a) if token in stops), len(a)) for a in answers]
    return [answer[:end] for answer, end in zip(answers, ends, strict=True)]


def _memory(field: str, reset_peak: bool = False) -> float:
    """Memory of this process in MB, now (VmRSS) or at its peak (VmHWM); NaN where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    if reset_peak:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--adapter", type=Path)
    arguments = parser.parse_args()
    print(run(arguments.quick, arguments.adapter))
