"""A few traces with the weight of every token, for the report: where the teacher pulls hard, and where it lets go."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from isodistill.data.collate import collate
from isodistill.data.encode import IGNORE_INDEX, Encoded
from isodistill.data.files import write_lines
from isodistill.objectives import VCRD
from isodistill.training.forward import trained_tokens
from isodistill.validity import text_ends

__all__ = ["write_weighted_traces"]

_N_TRACES = 8


@torch.no_grad()
def write_weighted_traces(trainer: Any) -> None:
    """``validity/traces.jsonl``: pieces of text with their delta, weight w and signal w D, by the student as it is now.

    In step mode the traces are drawn from those whose steps were compared, and what was proposed stands beside them.
    """
    objective = trainer.objective
    if not isinstance(objective, VCRD) or trainer.args.process_index or not trainer.processing_class.is_fast:
        return
    measured = trainer.preparation.measured
    rows = [row for row in trainer.train_dataset if not measured or row.row_id in measured]
    rows = sorted(rows, key=lambda row: hashlib.sha256(row.row_id.encode()).digest())[:_N_TRACES]
    training, _ = trainer.model.training, trainer.model.eval()
    lines = [json.dumps(_weighted(trainer, row)) for row in rows]
    trainer.model.train(training)
    objective.take_metrics()
    write_lines(Path(trainer.args.output_dir) / "validity" / "traces.jsonl", lines)


def _weighted(trainer: Any, row: Encoded) -> dict[str, Any]:
    batch = collate([row], trainer.domains, trainer.processing_class.pad_token_id)
    known = trainer.preparation.measured.get(row.row_id)
    n = sum(label != IGNORE_INDEX for label in row.labels)
    if known is not None:
        batch["deltas"] = torch.tensor([[0.0] * (len(row.labels) - n) + known.per_token(n)])
    inputs = trainer._prepare_inputs(batch)
    tokens, positions = trained_tokens(inputs)
    with trainer._autocast():
        teacher = None if trainer.teacher is None else trainer.teacher(inputs, positions)
        trainer.objective.token_losses(trainer.student(inputs, positions), tokens, teacher)
    seen = trainer.objective.seen
    w = seen.get("weight", torch.ones(n))
    delta = tokens.deltas if tokens.deltas is not None else seen.get("delta", torch.zeros(n))
    text = str(trainer.rows[row.row_id].completion)
    borders = [0, *text_ends(text, trainer.processing_class)]
    shown = len(borders) - 1  # the end-of-text token is not
    return {
        "row": row.row_id,
        "pieces": [text[a:b] for a, b in pairwise(borders)],
        "delta": _rounded(delta[:shown]),
        "weight": _rounded(w[:shown]),
        "signal": _rounded((w * seen["kd"])[:shown]),
        "firsts": [] if known is None else list(known.firsts),
        "proposals": {} if known is None else dict(zip(map(str, known.drawn), known.proposals, strict=True)),
    }


def _rounded(values: torch.Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]
