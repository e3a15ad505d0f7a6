"""Let a student answer test problems: generate, verify, and put the answers on disk block by block."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from isodistill.data.encode import encode_prompt
from isodistill.data.files import Refusal
from isodistill.data.rows import Row, RowError
from isodistill.evaluation.backends import Backend
from isodistill.evaluation.generate import Generation
from isodistill.evaluation.interrupt import StopAfterBlock
from isodistill.evaluation.options import Options, distributions, option_tokens, watched_tokens, words_behind
from isodistill.evaluation.parse import PARSER_VERSION, canon, parse_answer
from isodistill.evaluation.programs import need_sandbox
from isodistill.evaluation.records import PredictionLog, Record, Stage
from isodistill.evaluation.verify import why_unreadable, with_reason

__all__ = ["Provenance", "answer_rows", "read_representations", "why_unverifiable"]

_BATCHES_PER_BLOCK = 4


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
    seed_hparam: int | None = None


@dataclass(frozen=True)
class _Question:
    """One answer to be given: the row, its token ids, the tokens of its options, and which of its samples it is."""

    row: Row
    prompt: list[int]
    options: Options | None
    sample: int


def answer_rows(
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    log: PredictionLog,
    provenance: Provenance,
    *,
    split: str,
    max_new_tokens: int,
    batch_size: int,
    temperature: float = 0.0,
    n_samples: int = 1,
) -> list[Refusal]:
    """Answer every row of a split that the log does not hold yet: greedily, or ``n_samples`` times at a temperature.

    A drawn answer depends on the training seed, the item and the number of the sample, so methods that are compared
    draw from the same random streams.

    The questions are cut into fixed blocks of four batches, and a block that was killed is answered again as a whole:
    the last bits of a hidden state depend on what is decoded beside it, and so would the results on when a run was
    killed. Ctrl-C finishes its block first, so that it loses no finished answer (``StopAfterBlock``). Beside the log,
    ``representations/STAGE/SPLIT-NNNN.safetensors`` gets the hidden state of every last prompt token of block NNNN.

    Args:
        backend: who answers, such as a ``LocalBackend`` of a model with the adapter merged.
        tokenizer: its tokenizer.
        rows: the problems, with an answer and its type.
        log: where the records go.
        provenance: what the records say about the run.
        split: name of the test split.
        max_new_tokens: longest answer.
        batch_size: prompts decoded side by side.
        temperature: 0 takes the likeliest token; above 0 samples.
        n_samples: answers per row.

    Returns:
        Rows that cannot be asked: no answer that could be verified, or a prompt that leaves no room in the context.

    Raises:
        UserError: as `need_sandbox`.
    """
    asked, refused = _questions(rows, backend, tokenizer, max_new_tokens, n_samples)
    done = log.done(provenance.stage, split)
    sampling = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    size = _BATCHES_PER_BLOCK * batch_size
    with tqdm(total=len(asked), desc=f"{provenance.stage}, {split}") as bar, StopAfterBlock() as stop:
        for number, start in enumerate(range(0, len(asked), size)):
            stop.between_blocks()
            block = asked[start : start + size]
            if done.issuperset((q.row.id, q.sample) for q in block):
                bar.update(len(block))
                continue
            generations, pis = _answered(backend, tokenizer, block, provenance.seed_train, batch_size, sampling, bar)
            # The states first, so that every record in the log has its state.
            folder = log.path.parent / "representations" / provenance.stage
            _keep_hidden(folder, f"{split}-{number:04d}", block, generations)
            for question, generation, pi in zip(block, generations, pis, strict=True):
                if (question.row.id, question.sample) not in done:
                    log.append(_record(question, generation, pi, provenance, split, sampling))
    return refused


def _answered(
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
    block: Sequence[_Question],
    seed_train: int,
    batch_size: int,
    sampling: dict[str, Any],
    bar: tqdm[Any],
) -> tuple[list[Generation], list[list[float] | None]]:
    """The answers to a block of questions, and pi of each."""

    def advance(index: int, generation: Generation) -> None:
        bar.update()

    questions = [q.row for q in block], [q.prompt for q in block], [q.options for q in block]
    generations = backend.generate(
        tokenizer,
        questions[1],
        batch_size=batch_size,
        seeds=[_seed(seed_train, q) for q in block],
        watch=watched_tokens(questions[2]),
        follow=words_behind(*questions, tokenizer, backend.context),
        on_done=advance,
        **sampling,
    )
    return generations, distributions(backend, tokenizer, *questions, generations, batch_size=batch_size)


def _questions(
    rows: Sequence[Row],
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    n_samples: int,
) -> tuple[list[_Question], list[Refusal]]:
    """What can be asked of the rows, and the rows that cannot."""
    need_sandbox(rows)
    asked: list[_Question] = []
    refused: list[Refusal] = []
    for row in rows:
        unverifiable = why_unverifiable(row)
        if unverifiable is not None:
            refused.append(unverifiable)
            continue
        try:
            prompt = encode_prompt(row, tokenizer, backend.context - max_new_tokens)
        except RowError as error:
            refused.append(Refusal(row.id, None, error.column, error.reason))
            continue
        options = option_tokens(row, tokenizer) if backend.gives_logits else None
        asked += [_Question(row, prompt, options, sample) for sample in range(n_samples)]
    return asked, refused


def why_unverifiable(row: Row) -> Refusal | None:
    """Why an answer to this problem could not be verified; None when it can."""
    if row.answer is None or row.answer_type is None:
        return Refusal(row.id, None, "answer", "is missing, so an answer could not be verified")
    if row.answer_type in ("code", "instructions"):  # the others were read when the row was loaded
        unreadable = why_unreadable(row.answer, row.answer_type)
        return None if unreadable is None else Refusal(row.id, None, "answer", unreadable)
    return None


def read_representations(folder: Path, stage: Stage, split: str | None = None) -> dict[str, np.ndarray]:
    """Item id -> hidden state (d,) of a run's evaluation, of one split or of all; empty where none were kept."""
    states: dict[str, np.ndarray] = {}
    for path in sorted((folder / "representations" / stage).glob(f"{split or '*'}-*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            states |= dict(zip(json.loads(file.metadata()["items"]), file.get_tensor("hidden"), strict=True))
    return states


def _seed(seed_train: int, question: _Question) -> int:
    key = f"{seed_train}/{question.row.id}/{question.sample}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])


def _keep_hidden(folder: Path, name: str, block: Sequence[_Question], generations: Sequence[Generation]) -> None:
    """One file of hidden states, there whole or not at all; the samples of an item have one state."""
    first = [(q.row.id, g.hidden) for q, g in zip(block, generations, strict=True) if q.sample == 0]
    known = [(item, hidden) for item, hidden in first if hidden is not None]
    if not known:
        return
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / f"{name}.part"
    items = json.dumps([item for item, _ in known])
    save_file({"hidden": np.stack([hidden for _, hidden in known])}, unfinished, metadata={"items": items})
    unfinished.replace(folder / f"{name}.safetensors")


def _record(
    question: _Question,
    generation: Generation,
    pi: list[float] | None,
    provenance: Provenance,
    split: str,
    sampling: dict[str, Any],
) -> Record:
    row = question.row
    assert row.answer is not None
    assert row.answer_type is not None
    parsed = parse_answer(generation.text, row.answer_type, row.choices)
    outcome, reason = with_reason(generation.text, row.answer, row.answer_type, row.choices, finish=generation.finish)
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
        prompt_hash=hashlib.sha256(json.dumps(question.prompt).encode()).hexdigest(),
        output=generation.text,
        n_new_tokens=len(generation.tokens),
        finish=generation.finish,
        parsed=parsed,
        gold=row.answer,
        canon_parsed=canon(parsed, row.answer_type, row.choices),
        canon_gold=canon(row.answer, row.answer_type, row.choices),
        outcome=outcome,
        parser_version=PARSER_VERSION,
        sampling=sampling,
        sample=question.sample,
        pi=pi,
        reason=reason,
    )
