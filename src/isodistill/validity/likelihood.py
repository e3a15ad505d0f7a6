"""Validity by the teacher's own likelihood of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from isodistill.data.encode import encode_prompt
from isodistill.data.rows import Row
from isodistill.models.hidden import body_states, logits_of
from isodistill.validity.base import Action
from isodistill.validity.identity import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["TeacherLikelihood"]


class TeacherLikelihood:
    """v = exp(mean log p_T(a_i)) over the tokens of a step, divided by that of the teacher's own step, at most 1.

    The teacher never loses: its own step has v = 1. Any tokenizer will do, for the steps are read as text.

    Args:
        model: the teacher.
        tokenizer: its tokenizer.
        batch_size: texts read side by side.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> None:
        self._model, self._tokenizer, self._batch_size = model, tokenizer, batch_size
        self.name = f"likelihood/{fingerprint(model)}"

    def score(self, actions: Sequence[Action]) -> list[float]:
        """See ``Scorer``."""
        texts = {(a.row.id, a.prefix, step): a.row for a in actions for step in (a.step, a.reference)}
        keys, means = list(texts), dict[tuple[str, str, str], float]()
        for start in range(0, len(keys), self._batch_size):
            some = keys[start : start + self._batch_size]
            means |= zip(some, self._means([(texts[key], key[1], key[2]) for key in some]), strict=True)
        own = [means[a.row.id, a.prefix, a.step] for a in actions]
        references = [means[a.row.id, a.prefix, a.reference] for a in actions]
        return [math.exp(min(0.0, mine - best)) for mine, best in zip(own, references, strict=True)]

    @torch.no_grad()
    def _means(self, texts: Sequence[tuple[Row, str, str]]) -> list[float]:
        """Mean log p of the tokens of each step."""
        ids = [self._encoded(*text) for text in texts]
        width = max(len(before) + len(step) for before, step in ids)
        padded = torch.zeros(len(ids), width, dtype=torch.long)
        mask = torch.zeros_like(padded)
        for row, (before, step) in enumerate(ids):
            padded[row, : len(before) + len(step)] = torch.tensor(before + step)
            mask[row, : len(before) + len(step)] = 1
        device = next(self._model.parameters()).device
        states = body_states(self._model, padded.to(device), mask.to(device))
        asked = torch.cat([own[len(b) - 1 : len(b) + len(s) - 1] for own, (b, s) in zip(states, ids, strict=True)])
        targets = torch.tensor([token for _, step in ids for token in step], device=device)
        losses, start = [], 0
        for logits in logits_of(self._model, asked):
            losses.append(F.cross_entropy(logits.float(), targets[start : start + len(logits)], reduction="none"))
            start += len(logits)
        return [-float(own.mean()) for own in torch.cat(losses).split([len(step) for _, step in ids])]

    def _encoded(self, row: Row, prefix: str, step: str) -> tuple[list[int], list[int]]:
        """Ids before the step, and those of the step."""
        before = encode_prompt(row, self._tokenizer, _context(self._model))
        after: list[int] = self._tokenizer(prefix + step, add_special_tokens=False, verbose=False)["input_ids"]
        n = len(self._tokenizer(prefix, add_special_tokens=False, verbose=False)["input_ids"]) if prefix else 0
        n = min(n, len(after) - 1)  # a step that melts into the token before it still has one
        if len(before) + len(after) > _context(self._model):
            raise ValueError(f"a text of {len(before) + len(after)} tokens is longer than the teacher reads")
        return before + after[:n], after[n:]


def _context(model: PreTrainedModel) -> int:
    return int(getattr(model.config, "max_position_embeddings", None) or 2**31)
