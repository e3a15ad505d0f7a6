"""Tokens per second of ``isodistill.evaluation.generate`` beside transformers' ``model.generate``, on the CPU.

Both answer the same isomer prompts greedily in one process, in turns; figures are medians, and only ratios should be
compared between machines. Run ``python benchmarks/generate.py [--quick]``.

    plain   answers as the untrained student gives them; nearly all are cut at the length limit
    mixed   answers also end at their first full stop, so that lengths differ within a batch, as a trained student's do
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from isodistill.evaluation.generate import generate
from isodistill.isomers.generate import generate_sets
from isodistill.models.load import Student, load_student

MAX_NEW_TOKENS = 64
DTYPES = (("bf16", torch.bfloat16), ("fp32", torch.float32))
BATCHES = ((32, 64), (1, 1), (16, 16), (32, 32), (64, 64))
"""Rows at a time in transformers and in ours; the first pair is the headline."""


def run(quick: bool) -> dict[str, float]:
    """Print the table of tokens per second; return the ratios ours / transformers.

    ``generate_vs_hf`` is plain, bf16, ours with its default batch of 64 against ``model.generate`` with 32;
    ``_mixed`` and ``_fp32`` are the same with the other answers and dtype. Quick: bf16 and the first batches.
    """
    student = load_student("smollm2-135m")
    prompts = isomer_prompts(student, 64 if quick else 128)
    eos = student.tokenizer.eos_token_id
    stops = {"plain": [eos], "mixed": [eos, *student.tokenizer.encode(".")]}
    results: dict[str, float] = {}
    print(f"{'answers':8} {'dtype':6} {'batch':>9} {'transformers':>13} {'ours':>8} {'ratio':>6} {'equal':>7}")
    for name, dtype in DTYPES[:1] if quick else DTYPES:
        model = student.model.to(dtype).eval()
        for answers in stops:
            for hf_batch, batch in BATCHES[:1] if quick or answers == "mixed" else BATCHES:
                some = prompts if batch > 1 else prompts[:8]
                repeats = 3 if quick else 5
                ours, hf, equal = side_by_side(model, student, some, stops[answers], hf_batch, batch, repeats)
                print(
                    f"{answers:8} {name:6} {hf_batch:4}/{batch:4} {hf:13.0f} {ours:8.0f} {ours / hf:6.2f} {equal:7.1%}"
                )
                if (hf_batch, batch) == BATCHES[0]:
                    key = "generate_vs_hf" + "_mixed" * (answers == "mixed") + "_fp32" * (name == "fp32")
                    results[key] = ours / hf
    return results


def isomer_prompts(student: Student, n: int) -> list[list[int]]:
    """Token ids of isomer questions in the chat template."""
    rows = generate_sets(n_sets=-(-n // 10), seed=5, families=["rates"])[:n]
    chats = [[{"role": "user", "content": row.prompt}] for row in rows]
    return [student.tokenizer.apply_chat_template(c, add_generation_prompt=True, return_dict=False) for c in chats]


def side_by_side(
    model: PreTrainedModel,
    student: Student,
    prompts: list[list[int]],
    stops: list[int],
    hf_batch: int,
    batch: int,
    repeats: int,
) -> tuple[float, float, float]:
    """Tokens per second of ours and of transformers, and the share of equal answers."""

    def ours() -> list[list[int]]:
        settings = {"max_new_tokens": MAX_NEW_TOKENS, "batch_size": batch, "stop_ids": stops}
        return [answer.tokens for answer in generate(model, student.tokenizer, prompts, **settings)]

    def theirs() -> list[list[int]]:
        groups = [prompts[i : i + hf_batch] for i in range(0, len(prompts), hf_batch)]
        return [answer for group in groups for answer in by_transformers(model, group, stops)]

    seconds: dict[Callable[[], list[list[int]]], list[float]] = {ours: [], theirs: []}
    answers = {}
    for _ in range(repeats):
        for way, taken in seconds.items():
            start = time.perf_counter()
            answers[way] = way()
            taken.append(time.perf_counter() - start)
    n_tokens = sum(len(answer) for answer in answers[ours])
    equal = sum(a == b for a, b in zip(answers[ours], answers[theirs], strict=True)) / len(prompts)
    return n_tokens / statistics.median(seconds[ours]), n_tokens / statistics.median(seconds[theirs]), equal


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


if __name__ == "__main__":
    print(run(quick="--quick" in sys.argv))
