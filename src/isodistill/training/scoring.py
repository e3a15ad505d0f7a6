"""The scoring pass of Flex-KD over the training rows, its result kept on disk under a hash of teacher and data."""

from __future__ import annotations

import json
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

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
from isodistill.training.forward import trained_tokens

__all__ = ["scored"]

_ROWS = 8


def scored(trainer: Any, term: FlexKD, widths: list[tuple[int, int]]) -> list[DimensionScores]:
    """Scores of every pair's teacher layer on the next ``examples`` rows; read from disk where they were made before.

    Args:
        trainer: the ``DistillTrainer``, its teacher in place.
        term: says how; ``term.refreshed`` counts the blocks of rows that were scored before.
        widths: d_S and d_T of every pair.
    """
    scores = [DimensionScores(term.score, d_T) for _, d_T in widths]
    rows = _rows(trainer.train_dataset, term, trainer.args.seed)
    layers = [teacher for teacher, _ in term.layers]
    texts = sha256(json.dumps([[row.input_ids, row.labels] for row in rows]).encode()).hexdigest()
    key = fingerprint(trainer.teacher.model, json.dumps([term.score, layers, str(trainer.args.compute_dtype), texts]))
    path = Path(trainer.args.output_dir) / "flexkd" / f"scores-{key[:16]}.safetensors"
    if _everywhere(load_scores(path, key, scores), trainer.args):
        return scores
    scores = [DimensionScores(term.score, d_T) for _, d_T in widths]
    began = time.perf_counter()
    for half, mine in enumerate((rows[: len(rows) // 2], rows[len(rows) // 2 :])):
        shard = mine[trainer.args.process_index :: trainer.args.world_size]
        for start in range(0, len(shard), _ROWS):
            batch = trainer._prepare_inputs(trainer.data_collator(shard[start : start + _ROWS]))
            _add(trainer, layers, batch, scores, half)
    if trainer.args.world_size > 1:
        for one in scores:
            for sums in (one.halves, one.moments):
                dist.all_reduce(sums)
    if trainer.args.process_index == 0:
        save_scores(path, key, scores)
        print(f"teacher scored on {len(rows)} rows in {time.perf_counter() - began:.1f} s; kept in {path}", flush=True)
    return scores


def _rows(encoded: list[Encoded], term: FlexKD, seed: int) -> list[Encoded]:
    order = torch.randperm(len(encoded), generator=torch.Generator().manual_seed(seed)).tolist()
    n = min(term.examples, len(encoded))
    return [encoded[order[(term.refreshed * n + i) % len(encoded)]] for i in range(n)]


def _everywhere(found: bool, args: Any) -> bool:
    """Whether all processes have it: one that scores alone would wait for the others for ever."""
    agreed = torch.tensor(int(found))
    if args.world_size > 1:
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
    return bool(agreed)


def _add(trainer: Any, layers: list[int], batch: dict[str, Tensor], scores: list[DimensionScores], half: int) -> None:
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
