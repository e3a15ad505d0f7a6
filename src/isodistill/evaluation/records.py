"""Predictions on disk: one JSON line per generated answer, append only; every table is computed from these lines."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from isodistill.data.rows import AnswerType
from isodistill.errors import UserError
from isodistill.evaluation.verify import OUTCOMES, Finish, Outcome

__all__ = ["PredictionLog", "Record", "Stage"]

Stage: TypeAlias = Literal["before", "after"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One generated answer and its verdict.

    Attributes:
        run_id: the run that generated it.
        method: name of the method, such as iga or erm.
        tier: of the method where it has tiers, such as f or ts; else None.
        stage: before or after training.
        split: the test split.
        item_id: the row's id; unique within run, stage, split and sample.
        set_id: the row's set, None for a row without one.
        structure_id: the logical template, if known.
        domain: the surface, None when the data have one surface only.
        answer_type: how the answer was verified.
        seed_train: initialisation, order and dropout.
        seed_data: the split.
        seed_hparam: the search draw, None outside a search.
        step: optimiser steps taken by the student.
        prompt_hash: SHA-256 of the prompt's token ids or text.
        output: the generated text.
        n_new_tokens: generated tokens, without the end token.
        finish: eos, or length when cut off.
        parsed: the answer found in the output, or None.
        gold: the row's answer.
        canon_parsed: ``parsed`` at the level of the structure, or None.
        canon_gold: ``gold`` at the level of the structure; None when isomers have no common form of the answer.
        outcome: correct, wrong, truncated or unparsed.
        parser_version: of the rules that found the answer.
        sampling: decoding settings, such as temperature and max_new_tokens.
        sample: which of the item's drawn answers this is, 0, 1, ...; 0 when decoding greedily.
        pi: probabilities of the canonical answer options in their structural order (see ``options``); None for an item
            without options, and in records of versions that did not measure it.
        reason: why a program or an answer to instructions is not correct, several by "; "; None for other types.
    """

    run_id: str
    method: str
    tier: str | None
    stage: Stage
    split: str
    item_id: str
    set_id: str | None
    structure_id: str | None
    domain: str | None
    answer_type: AnswerType
    seed_train: int
    seed_data: int
    seed_hparam: int | None
    step: int
    prompt_hash: str
    output: str
    n_new_tokens: int
    finish: Finish
    parsed: str | None
    gold: str
    canon_parsed: str | None
    canon_gold: str | None
    outcome: Outcome
    parser_version: str
    sampling: Mapping[str, Any]
    sample: int = 0
    pi: Sequence[float] | None = None
    reason: str | None = None


_FIELDS = frozenset(field.name for field in fields(Record))
_REQUIRED = frozenset(field.name for field in fields(Record) if field.default is MISSING)


class PredictionLog:
    """An append-only file of records that survives an interruption at any byte.

    Every append is on disk before it returns. A partial last line, left by a run that was killed while writing, is cut
    off on opening (a warning says so); its item is simply not `done`.

    Args:
        path: the file; it and its folder are made when missing.

    Raises:
        UserError: the file cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch()
            self._cut_partial_line()
        except OSError as error:
            raise UserError(
                f"Cannot open {self.path}: {error.strerror}. Check the folder and its permissions."
            ) from error

    def append(self, record: Record) -> None:
        """Add one record; it is on disk when this returns.

        Raises:
            UserError: the disk is full or the file cannot be written; records written before are kept.
        """
        line = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False) + "\n"
        try:
            with self.path.open("ab") as file:
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"Cannot write to {self.path}: {error.strerror}. The answers written so far are kept; "
                "make room and start the same command again to go on from there."
            ) from error

    def read(self) -> list[Record]:
        """All records, in the order of writing.

        Raises:
            UserError: a line is damaged; names the file and the line.
        """
        with self.path.open("rb") as file:
            return [_record(line, f"{self.path}, line {number}") for number, line in enumerate(file, start=1)]

    def done(self, stage: Stage, split: str) -> set[tuple[str, int]]:
        """Item and sample of every answer that a split has at a stage."""
        return {(r.item_id, r.sample) for r in self.read() if r.stage == stage and r.split == split}

    def _cut_partial_line(self) -> None:
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            _log.warning("%s ends in a partial line; cut off %d bytes.", self.path, len(content) - whole)
            os.truncate(self.path, whole)


def _record(line: bytes, where: str) -> Record:
    remedy = "Restore the file, or delete this line: its item is then answered again."
    try:
        values = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where} is not a JSON record ({error}). {remedy}") from error
    if not isinstance(values, dict) or not _REQUIRED <= values.keys() <= _FIELDS:
        wrong = sorted(_REQUIRED - values.keys() | values.keys() - _FIELDS) if isinstance(values, dict) else ["all"]
        raise UserError(f"{where} is not a record of this version (missing or unknown: {', '.join(wrong)}). {remedy}")
    if values["outcome"] not in OUTCOMES:
        raise UserError(f"{where}: outcome {values['outcome']!r} is none of {', '.join(OUTCOMES)}. {remedy}")
    return Record(**values)
