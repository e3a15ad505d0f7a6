"""A few traces with the weight of every token, for the report: where the teacher pulls hard, and where it lets go."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from isodistill.data.collate import collate
from isodistill.data.encode import IGNORE_INDEX, Encoded
from isodistill.data.files import write_lines
from isodistill.objectives import VCRD, StudentOutput, TeacherOutput, TrainedTokens
from isodistill.training.forward import trained_tokens
from isodistill.validity import text_ends, token_steps

__all__ = ["write_weighted_traces"]

_N_TRACES = 8
_N_TOKEN_MODE = 32  # traces from which the report makes its table by step, where no steps were compared


@torch.no_grad()
def write_weighted_traces(trainer: Any) -> None:
    """``validity/traces.jsonl``: pieces of text with their delta, weight w and signal w D, by the student as it is now.

    In step mode the traces are drawn from those whose steps were compared, and what was proposed stands beside them; in
    token mode they are cut into sentences. What a control or a norm makes of the weights of a whole optimizer step, it
    makes of the tokens of these traces together.
    """
    objective = trainer.objective
    if not isinstance(objective, VCRD) or trainer.args.process_index or not trainer.processing_class.is_fast:
        return
    measured = trainer.preparation.measured
    rows = [row for row in trainer.train_dataset if not measured or row.row_id in measured]
    rows = sorted(rows, key=lambda row: hashlib.sha256(row.row_id.encode()).digest())
    rows = rows[: _N_TRACES if measured else _N_TOKEN_MODE]
    training, _ = trainer.model.training, trainer.model.eval()
    batches = [_batch(trainer, row) for row in rows]
    if objective.needs_whole_step:
        _add_strengths(trainer, batches)
    lines = [json.dumps(_weighted(trainer, row, batch)) for row, batch in zip(rows, batches, strict=True)]
    trainer.model.train(training)
    objective.take_metrics()
    write_lines(Path(trainer.args.output_dir) / "validity" / "traces.jsonl", lines)


def _batch(trainer: Any, row: Encoded) -> dict[str, Tensor]:
    """The row alone, with what was measured about its steps."""
    batch = collate([row], trainer.domains, trainer.processing_class.pad_token_id)
    known = trainer.preparation.measured.get(row.row_id)
    n = sum(label != IGNORE_INDEX for label in row.labels)
    if known is not None:
        batch["deltas"] = torch.tensor([[0.0] * (len(row.labels) - n) + known.per_token(n)])
    inputs: dict[str, Tensor] = trainer._prepare_inputs(batch)
    return inputs


def _outputs(trainer: Any, batch: dict[str, Tensor]) -> tuple[StudentOutput, TrainedTokens, TeacherOutput | None]:
    tokens, positions = trained_tokens(batch)
    teacher = None if trainer.teacher is None else trainer.teacher(batch, positions)
    return trainer.student(batch, positions), tokens, teacher


def _add_strengths(trainer: Any, batches: list[dict[str, Tensor]]) -> None:
    """The column ``strengths``: w of all tokens of all batches, as those of one optimizer step."""
    deltas = []
    for batch in batches:
        with trainer._autocast():
            deltas.append(trainer.objective.deltas(*_outputs(trainer, batch)))
    w = trainer.objective.settled(trainer.objective.weight(torch.cat(deltas)), trainer.args.seed)
    for batch, delta, own in zip(batches, deltas, w.split([len(delta) for delta in deltas]), strict=True):
        for name, values in (("deltas", delta), ("strengths", own)):
            batch[name] = torch.zeros(batch["labels"].shape, device=values.device)
            batch[name][0, -len(values) :] = values.float()


def _weighted(trainer: Any, row: Encoded, batch: dict[str, Tensor]) -> dict[str, Any]:
    with trainer._autocast():
        student, tokens, teacher = _outputs(trainer, batch)
        trainer.objective.token_losses(student, tokens, teacher)
    known, seen = trainer.preparation.measured.get(row.row_id), trainer.objective.seen
    w = seen.get("weight", torch.ones(len(tokens.targets)))
    delta = tokens.deltas if tokens.deltas is not None else seen.get("delta", torch.zeros(len(w)))
    text = str(trainer.rows[row.row_id].completion)
    ends = text_ends(text, trainer.processing_class)
    return {
        "row": row.row_id,
        "control": trainer.objective.control,
        "pieces": [text[a:b] for a, b in pairwise([0, *ends])],  # the end-of-text token is not shown
        "delta": _rounded(delta[: len(ends)]),
        "weight": _rounded(w[: len(ends)]),
        "signal": _rounded((w * seen["kd"])[: len(ends)]),
        "firsts": list(token_steps(text, "sentences", ends)[0] if known is None else known.firsts),
        "proposals": {} if known is None else dict(zip(map(str, known.drawn), known.proposals, strict=True)),
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(float(value), 4) for value in values]
