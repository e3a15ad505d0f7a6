"""Let a student answer test problems: generate, verify, and put every answer on disk as it comes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isodistill.data.encode import encode_prompt
from isodistill.data.files import Refusal
from isodistill.data.rows import Row, RowError
from isodistill.evaluation.generate import Generation, generate
from isodistill.evaluation.parse import PARSER_VERSION, canon, parse_answer
from isodistill.evaluation.records import PredictionLog, Record, Stage
from isodistill.evaluation.verify import verify

__all__ = ["Provenance", "answer_rows", "read_representations"]

_SHARD = 64


@dataclass(frozen=True)
class Provenance:
    """Whose answers these are: the part of a record that is the same for a whole evaluation."""

    run_id: str
    method: str
    tier: str | None
    seed_train: int
    seed_data: int
    step: int
    stage: Stage


def answer_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    log: PredictionLog,
    provenance: Provenance,
    *,
    split: str,
    max_new_tokens: int,
    batch_size: int,
) -> list[Refusal]:
    """Answer greedily every row of a split that the log does not hold yet; an interrupt loses no finished answer.

    Beside the log, ``representations/STAGE/SPLIT-NNNN.safetensors`` gets the hidden state of every last prompt token.

    Args:
        model: a plain model, the adapter merged.
        tokenizer: its tokenizer.
        rows: the problems, with an answer and its type.
        log: where the records go.
        provenance: what the records say about the run.
        split: name of the test split.
        max_new_tokens: longest answer.
        batch_size: prompts decoded side by side.

    Returns:
        Rows that cannot be asked: no answer to check against, or a prompt that leaves no room in the context.
    """
    context = getattr(model.config, "max_position_embeddings", None) or 2**31
    done = log.done(provenance.stage, split)
    asked: list[tuple[Row, list[int]]] = []
    refused: list[Refusal] = []
    for row in rows:
        if row.id in done:
            continue
        try:
            if row.answer is None or row.answer_type is None:
                raise RowError("answer", "is missing, so an answer could not be verified", f"row {row.id}")
            asked.append((row, encode_prompt(row, tokenizer, context - max_new_tokens)))
        except RowError as error:
            refused.append(Refusal(row.id, None, error.column, error.reason))
    if asked:
        folder = log.path.parent / "representations" / provenance.stage
        with _Shelf(log, folder, split) as shelf, tqdm(total=len(asked), desc=f"{provenance.stage}, {split}") as bar:

            def on_done(index: int, generation: Generation) -> None:
                row, prompt_ids = asked[index]
                record = _record(row, prompt_ids, generation, provenance, split, max_new_tokens)
                shelf.put(record, generation.hidden)
                bar.update()

            generate(
                model,
                tokenizer,
                [prompt_ids for _, prompt_ids in asked],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                on_done=on_done,
            )
    return refused


def read_representations(folder: Path, stage: Stage, split: str | None = None) -> dict[str, np.ndarray]:
    """Item id -> hidden state (d,) of a run's evaluation, of one split or of all; empty where none were kept."""
    states: dict[str, np.ndarray] = {}
    for path in sorted((folder / "representations" / stage).glob(f"{split or '*'}-*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            states |= dict(zip(json.loads(file.metadata()["items"]), file.get_tensor("hidden"), strict=True))
    return states


class _Shelf:
    """Finished answers on their way to disk: a shard of hidden states first, then its records, so that every record
    in the log has its state. A killed run loses at most the shard that it was filling."""

    def __init__(self, log: PredictionLog, folder: Path, split: str) -> None:
        self.log, self.folder, self.split = log, folder, split
        self.waiting: list[tuple[Record, np.ndarray | None]] = []
        self.shards = len(list(folder.glob(f"{split}-*.safetensors")))

    def __enter__(self) -> _Shelf:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.flush()

    def put(self, record: Record, hidden: np.ndarray | None) -> None:
        self.waiting.append((record, hidden))
        if len(self.waiting) >= _SHARD:
            self.flush()

    def flush(self) -> None:
        known = [(record.item_id, hidden) for record, hidden in self.waiting if hidden is not None]
        if known:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"{self.split}-{self.shards:04d}.safetensors"
            items = json.dumps([item for item, _ in known])
            unfinished = path.with_suffix(".part")
            save_file({"hidden": np.stack([h for _, h in known])}, unfinished, metadata={"items": items})
            unfinished.replace(path)
            self.shards += 1
        for record, _ in self.waiting:
            self.log.append(record)
        self.waiting = []


def _record(
    row: Row, prompt_ids: list[int], generation: Generation, provenance: Provenance, split: str, max_new_tokens: int
) -> Record:
    assert row.answer is not None
    assert row.answer_type is not None
    parsed = parse_answer(generation.text, row.answer_type, row.choices)
    return Record(
        run_id=provenance.run_id,
        method=provenance.method,
        tier=provenance.tier,
        stage=provenance.stage,
        split=split,
        item_id=row.id,
        set_id=row.set_id,
        structure_id=row.structure_id,
        domain=row.domain,
        answer_type=row.answer_type,
        seed_train=provenance.seed_train,
        seed_data=provenance.seed_data,
        seed_hparam=None,
        step=provenance.step,
        prompt_hash=hashlib.sha256(json.dumps(prompt_ids).encode()).hexdigest(),
        output=generation.text,
        n_new_tokens=len(generation.tokens),
        finish=generation.finish,
        parsed=parsed,
        gold=row.answer,
        canon_parsed=canon(parsed, row.answer_type, row.choices),
        canon_gold=canon(row.answer, row.answer_type, row.choices),
        outcome=verify(generation.text, row.answer, row.answer_type, row.choices, finish=generation.finish),
        parser_version=PARSER_VERSION,
        sampling={"temperature": 0.0, "max_new_tokens": max_new_tokens},
    )
