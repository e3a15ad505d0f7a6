"""Let a student answer test problems: generate, verify, and put the answers on disk block by block."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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

_BATCHES_PER_BLOCK = 4


@dataclass(frozen=True)
class Provenance:
    """Whose answers these are: the part of a record that is the same for a whole evaluation."""

    run_id: str
    method: str
    tier: str | None
    seed_train: int
    seed_data: int
    seed_hparam: int | None
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
    """Answer greedily every row of a split that the log does not hold yet.

    The rows are cut into fixed blocks of four batches, and a block that was interrupted is answered again as a whole:
    the last bits of a hidden state depend on what is decoded beside it, and so would the results on when a run was
    killed. Beside the log, ``representations/STAGE/SPLIT-NNNN.safetensors`` gets the hidden state of every last prompt
    token of block NNNN.

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
    asked: list[tuple[Row, list[int]]] = []
    refused: list[Refusal] = []
    for row in rows:
        try:
            if row.answer is None or row.answer_type is None:
                raise RowError("answer", "is missing, so an answer could not be verified", f"row {row.id}")
            asked.append((row, encode_prompt(row, tokenizer, context - max_new_tokens)))
        except RowError as error:
            refused.append(Refusal(row.id, None, error.column, error.reason))
    done = log.done(provenance.stage, split)
    folder = log.path.parent / "representations" / provenance.stage
    size = _BATCHES_PER_BLOCK * batch_size
    with tqdm(total=len(asked), desc=f"{provenance.stage}, {split}") as bar:

        def advance(index: int, generation: Generation) -> None:
            bar.update()

        for number, start in enumerate(range(0, len(asked), size)):
            block = asked[start : start + size]
            if done.issuperset(row.id for row, _ in block):
                bar.update(len(block))
                continue
            generations = generate(
                model,
                tokenizer,
                [prompt_ids for _, prompt_ids in block],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                on_done=advance,
            )
            # The states first, so that every record in the log has its state.
            _keep_hidden(folder, f"{split}-{number:04d}", [row for row, _ in block], generations)
            for (row, prompt_ids), generation in zip(block, generations, strict=True):
                if row.id not in done:
                    log.append(_record(row, prompt_ids, generation, provenance, split, max_new_tokens))
    return refused


def read_representations(folder: Path, stage: Stage, split: str | None = None) -> dict[str, np.ndarray]:
    """Item id -> hidden state (d,) of a run's evaluation, of one split or of all; empty where none were kept."""
    states: dict[str, np.ndarray] = {}
    for path in sorted((folder / "representations" / stage).glob(f"{split or '*'}-*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            states |= dict(zip(json.loads(file.metadata()["items"]), file.get_tensor("hidden"), strict=True))
    return states


def _keep_hidden(folder: Path, name: str, rows: Sequence[Row], generations: Sequence[Generation]) -> None:
    """One file of hidden states, there whole or not at all."""
    known = [(row.id, g.hidden) for row, g in zip(rows, generations, strict=True) if g.hidden is not None]
    if not known:
        return
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{name}.part"
    items = json.dumps([item for item, _ in known])
    save_file({"hidden": np.stack([hidden for _, hidden in known])}, unfinished, metadata={"items": items})
    unfinished.replace(folder / f"{name}.safetensors")


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
        seed_hparam=provenance.seed_hparam,
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
