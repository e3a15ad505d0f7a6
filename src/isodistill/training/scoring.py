"""The scoring pass of Flex-KD over the training rows, its result kept on disk under a hash of teacher and data."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from isodistill.data.encode import Encoded
from isodistill.terms import FlexKD
from isodistill.terms.scoring import (
    DimensionScores,
    fingerprint,
    head_gradient,
    hidden_gradient,
    load_scores,
    save_scores,
)
from isodistill.training.agreement import over_processes
from isodistill.training.forward import trained_tokens

__all__ = ["score_rows", "scored"]

_ROWS = 8


def scored(
    term: FlexKD,
    widths: list[tuple[int, int]],
    teacher: nn.Module,
    rows: Sequence[Any],
    described: Callable[[Any], Any],
    add: Callable[[Sequence[Any], list[DimensionScores], int], None],
    args: TrainingArguments,
    dtype: str,
) -> list[DimensionScores]:
    """Scores of every pair's teacher layer on the next ``examples`` rows; read from disk where they were made before.

    Args:
        term: says how; ``term.refreshed`` counts the blocks of rows that were scored before.
        widths: d_S and d_T of every pair.
        teacher: whose weights are a part of the file's key.
        rows: those of the training.
        described: what of a row decides its scores, in JSON.
        add: puts some rows into the scores, as of one half of the examples.
        args: of the training.
        dtype: that the teacher computes in.
    """
    scores = [DimensionScores(term.score, d_T) for _, d_T in widths]
    chosen = _next(rows, term, args.seed)
    layers = [teacher_layer for teacher_layer, _ in term.layers]
    texts = sha256(json.dumps([described(row) for row in chosen]).encode()).hexdigest()
    key = fingerprint(teacher, json.dumps([term.score, layers, dtype, texts]))
    path = Path(args.output_dir or ".") / "flexkd" / f"scores-{key[:16]}.safetensors"
    if _everywhere(load_scores(path, key, scores), args):
        return scores
    scores = [DimensionScores(term.score, d_T) for _, d_T in widths]
    began = time.perf_counter()
    for half, mine in enumerate((chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :])):
        shard = mine[args.process_index :: args.world_size]
        for start in range(0, len(shard), _ROWS):
            add(shard[start : start + _ROWS], scores, half)
    for one in scores:
        one.halves, one.moments = (over_processes(sums, args).cpu() for sums in (one.halves, one.moments))
    if args.process_index == 0:
        save_scores(path, key, scores)
        print(
            f"teacher scored on {len(chosen)} rows in {time.perf_counter() - began:.1f} s; kept in {path}", flush=True
        )
    return scores


def score_rows(
    trainer: Any, layers: Sequence[int], rows: Sequence[Encoded], scores: list[DimensionScores], half: int
) -> None:
    """Add encoded rows under the teacher of a ``DistillTrainer``."""
    batch: dict[str, Tensor] = trainer._prepare_inputs(trainer.data_collator(rows))
    tokens, positions = trained_tokens(batch)
    with trainer._autocast():
        out = trainer.teacher(batch, positions)
        for layer, one in zip(layers, scores, strict=True):
            if layer == -1:
                one.add(head_gradient(out, tokens.targets), out.hidden, half)
                continue
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
            with trainer.teacher.as_teacher():
                g, h = hidden_gradient(trainer.teacher.model, inputs, layer)
            one.add(g.flatten(0, 1)[positions], h.flatten(0, 1)[positions], half)


def _next(rows: Sequence[Any], term: FlexKD, seed: int) -> list[Any]:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    n = min(term.examples, len(rows))
    return [rows[order[(term.refreshed * n + i) % len(rows)]] for i in range(n)]


def _everywhere(found: bool, args: TrainingArguments) -> bool:
    """Whether all processes have it: one that scores alone would wait for the others for ever."""
    return bool(over_processes(torch.tensor(int(found)), args) == args.world_size)
