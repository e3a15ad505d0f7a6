"""How far the features of training domains lie from those of unseen ones and of the target, around training."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from isodistill.data.encode import encode_prompt
from isodistill.data.files import write_lines
from isodistill.data.rows import Row, RowError
from isodistill.evaluation.backends import Backend, LocalBackend
from isodistill.evaluation.domain_probe import FOLDS, feature_map, probe_accuracy
from isodistill.evaluation.records import Stage

__all__ = ["DOMAINS", "TARGET", "write_domains"]

DOMAINS = "domains"
"""The folder of a run that holds what is written here, a file per stage."""
TARGET = "target"
"""The side that stands for the questions of ``recipe.target``."""
_OTHERS = ("ood", TARGET)
_MOST, _LEAST = 100, 2 * FOLDS


def write_domains(
    folder: Path, stage: Stage, backend: Backend, tokenizer: PreTrainedTokenizerBase, rows: Mapping[str, Sequence[Row]]
) -> None:
    """``domains/STAGE.json``: accuracy of fresh probes on q, ``id`` against ``ood`` and ``target``, and a map of all.

    Equally many questions of every side, up to 100, chosen by a hash of their ids. A side that has fewer than 10 that
    can be asked is left out; nothing is written without ``id`` and another one, or where the student's hidden states
    are behind a server.
    """
    if not isinstance(backend, LocalBackend):
        return
    asked = {side: _askable(rows.get(side, []), tokenizer, backend.context) for side in ("id", *_OTHERS)}
    asked = {side: prompts for side, prompts in asked.items() if len(prompts) >= _LEAST}
    if "id" not in asked or len(asked) < 2:
        return
    n = min(_MOST, *map(len, asked.values()))
    q = backend.question_states([prompt for prompts in asked.values() for prompt in prompts[:n]])
    of_side = dict(zip(asked, np.split(q, len(asked)), strict=True))
    points = np.split(np.round(feature_map(q), 2), len(asked))
    found = {
        "n": n,
        "probes": {
            side: round(probe_accuracy(np.concatenate([of_side["id"], of_side[side]]), [0] * n + [1] * n), 6)
            for side in _OTHERS
            if side in of_side
        },
        "points": {side: mapped.tolist() for side, mapped in zip(asked, points, strict=True)},
    }
    write_lines(folder / DOMAINS / f"{stage}.json", [json.dumps(found)])


def _askable(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, context: int) -> list[list[int]]:
    """Token ids of the problems in the order of a hash; those that cannot be asked are listed by the evaluation."""
    prompts = []
    for row in sorted(rows, key=lambda row: sha256(row.id.encode()).digest()):
        with contextlib.suppress(RowError):
            prompts.append(encode_prompt(row, tokenizer, context))
    return prompts
