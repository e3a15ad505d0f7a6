"""The scorers that the study of VCRD makes itself: a reward model trained on steps, and judges of known quality.

A reward model is a token classifier on the body of a small language model, as process reward models are made: its
layers, two more, and a head that tells right sums from wrong ones at their end. With the body frozen it learns
nothing; trained as a whole and told at every digit of a result whether it is still the true one, it does. The errors
that it is trained on are drawn at random and know nothing of the teacher's. A judge is asked in words, as any teacher
is, and gives a mark.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForTokenClassification, PreTrainedTokenizerBase

from isodistill.data.rows import Row
from isodistill.models.load import Student
from isodistill.teachers.base import Answer, Sampling
from isodistill.validity import text_ends

__all__ = ["SUM", "Judge", "reward_model", "true_sum"]

SUM = re.compile(r"(\d+) ([+-]) (\d+) = (\d+)")
_STEP = re.compile(r"Proposed next step:\n(.*?)\n\nIs the proposed", re.DOTALL)
_OFF_BY = (-10, -2, -1, 1, 2, 10)
_BATCH, _LR = 32, 3e-3


def true_sum(a: str, sign: str, b: str) -> int:
    """The right result."""
    return int(a) + int(b) if sign == "+" else int(a) - int(b)


class Judge:
    """A ``Teacher`` that marks a step 10 where its sum is right and 0 where it is wrong, 5 where it finds none.

    Args:
        name: of the judge.
        careless: share of the sums that it gets the wrong way round, by a hash of what it is asked.
        bias: added to every result of a subtraction of one of ``biased``, before it compares.
        biased: see ``bias``; empty is a judge who computes rightly.
    """

    def __init__(self, name: str, careless: float = 0.0, bias: int = 0, biased: Sequence[int] = ()) -> None:
        self.name, self.careless, self.bias, self.biased = name, careless, bias, biased

    def answer(self, messages: Sequence[Any], sampling: Sampling) -> Answer:
        """See ``Teacher``."""
        asked = messages[-1]["content"]
        found = _STEP.search(asked)
        sums = SUM.findall(found[1]) if found else []
        if not sums:
            return Answer(("5",), ("stop",))
        right = all(int(c) == self._computed(a, sign, b) for a, sign, b, c in sums)
        draw = int.from_bytes(hashlib.sha256(asked.encode()).digest()[:8]) / 2**64
        return Answer(("10" if right != (draw < self.careless) else "0",), ("stop",))

    def _computed(self, a: str, sign: str, b: str) -> int:
        return true_sum(a, sign, b) + (self.bias if sign == "-" and int(b) in self.biased else 0)


def reward_model(folder: Path, body: Student, rows: list[Row], steps: int, *, whole: bool = False) -> None:
    """Train a classifier of steps on the body of a language model and save it with its tokenizer; once.

    The body stays as it is; or the ``whole`` is trained, the body with a third of the learning rate, and digits are
    marked, too.
    """
    if (folder / "config.json").exists():
        return
    torch.manual_seed(0)
    settings = {"num_hidden_layers": body.model.config.num_hidden_layers + 2, "num_labels": 1}
    model = LlamaForTokenClassification(LlamaConfig(**body.model.config.to_dict() | settings))
    model.model.load_state_dict(body.model.model.state_dict(), strict=False)  # the last two layers are new
    new = [*model.model.layers[-2:].parameters(), *model.model.norm.parameters(), *model.score.parameters()]
    model.requires_grad_(whole)
    for p in new:
        p.requires_grad_(True)
    mine = {id(p) for p in new}
    groups = [{"params": new, "most": 1e-3 if whole else _LR}]
    if whole:
        groups.append({"params": [p for p in model.parameters() if id(p) not in mine], "most": 3e-4})
    optimizer = torch.optim.AdamW(groups, lr=_LR, weight_decay=0.01)
    rng, right = random.Random(0), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["most"] * min(1, (step + 1) / 20) * min(1, 3 * (steps - step) / steps)
        told = [_told(rng, rng.choice(rows)) for _ in range(_BATCH)]
        logits, wanted = _marks(model, body.tokenizer, told)
        loss = F.binary_cross_entropy_with_logits(logits[wanted.closing], wanted.marks)
        if whole:
            loss = loss + F.binary_cross_entropy_with_logits(logits[wanted.digits], wanted.agree)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        right.append(float(((logits[wanted.closing] > 0) == wanted.marks.bool()).float().mean()))
        if step % 50 == 49:
            print(f"  reward model after {step + 1} steps: {sum(right[-50:]) / 50:.3f} of the marks right", flush=True)
    model.save_pretrained(folder)
    body.tokenizer.save_pretrained(folder)


def _told(rng: random.Random, row: Row) -> tuple[str, list[float]]:
    """A problem and sums for it, as a reward model reads them, and which are right; a wrong one is gone on from."""
    value, told, right = int(str(row.prompt).split()[0]), [], []
    for sign, b in re.findall(r"([+-]) (\d+)", str(row.prompt)):
        off = rng.choice(_OFF_BY) if rng.random() < 0.4 else 0
        result = true_sum(str(value), sign, b) + off
        told.append(f"{value} {sign} {b} = {result}.")
        right.append(float(not off))
        value = result
    return f"{row.prompt}\n{' '.join(told)}", right


class Wanted(NamedTuple):
    """Where marks stand in a batch (B, T), and which: at the points that close sums, and at the digits of results."""

    closing: torch.Tensor
    marks: torch.Tensor
    digits: torch.Tensor
    agree: torch.Tensor


def _marks(
    model: LlamaForTokenClassification, tokenizer: PreTrainedTokenizerBase, told: Sequence[tuple[str, list[float]]]
) -> tuple[torch.Tensor, Wanted]:
    """Logits (B, T) of a batch, and the marks wanted."""
    ids = [tokenizer(text, verbose=False)["input_ids"] for text, _ in told]
    width = max(map(len, ids))
    padded = torch.tensor([own + [tokenizer.pad_token_id] * (width - len(own)) for own in ids])
    logits = model(input_ids=padded, attention_mask=(padded != tokenizer.pad_token_id).long()).logits[..., 0]
    agree = torch.full(padded.shape, -1.0)
    for n, (text, _) in enumerate(told):
        ends = text_ends(text, tokenizer)
        for found in SUM.finditer(text):
            true = str(true_sum(*found.group(1, 2, 3)))
            for t, end in enumerate(ends):
                if found.start(4) < end <= found.end(4):
                    agree[n, t] = float(true.startswith(found[4][: end - found.start(4)]))
    marks = torch.tensor([mark for _, own in told for mark in own])
    closing, digits = padded == tokenizer.convert_tokens_to_ids("."), agree >= 0
    return logits, Wanted(closing, marks, digits, agree[digits])
