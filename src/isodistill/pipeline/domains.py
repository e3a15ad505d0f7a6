"""How far the features of training domains and of the others lie apart, before and after training, for PRADA."""

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

__all__ = ["DOMAINS", "write_domains"]

DOMAINS = "domains"
"""The folder of a run that holds what is written here, a file per stage."""
_SIDES = ("id", "ood")
_MOST, _LEAST = 100, 2 * FOLDS


def write_domains(
    folder: Path, stage: Stage, backend: Backend, tokenizer: PreTrainedTokenizerBase, rows: Mapping[str, Sequence[Row]]
) -> None:
    """``domains/STAGE.json``: accuracy of a fresh probe on q of test problems, ``id`` against ``ood``, and their map.

    Equally many problems of both splits, up to 100, chosen by a hash of their ids. Nothing is written where a split is
    missing or has fewer than 10 that can be asked, or where the student's hidden states are behind a server.
    """
    if not isinstance(backend, LocalBackend):
        return
    asked = [_askable(rows.get(side, []), tokenizer, backend.context) for side in _SIDES]
    n = min(_MOST, *map(len, asked))
    if n < _LEAST:
        return
    q = backend.question_states([prompt for prompts in asked for prompt in prompts[:n]])
    labels = [side for side, _ in enumerate(_SIDES) for _ in range(n)]
    points = np.round(feature_map(q), 2).tolist()
    found = {
        "n": n,
        "probe": round(probe_accuracy(q, labels), 6),
        "points": {side: points[i * n : (i + 1) * n] for i, side in enumerate(_SIDES)},
    }
    write_lines(folder / DOMAINS / f"{stage}.json", [json.dumps(found)])


def _askable(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, context: int) -> list[list[int]]:
    """Token ids of the problems in the order of a hash; those that cannot be asked are listed by the evaluation."""
    prompts = []
    for row in sorted(rows, key=lambda row: sha256(row.id.encode()).digest()):
        with contextlib.suppress(RowError):
            prompts.append(encode_prompt(row, tokenizer, context))
    return prompts
