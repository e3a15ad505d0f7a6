"""Rows into a training: loaded, kept to its domains, told as the objective wants them, encoded, and put in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, cast

from transformers import PreTrainedTokenizerBase

from isodistill.data.encode import Encoded, encode_rows
from isodistill.data.files import Refusal
from isodistill.data.load import load_rows
from isodistill.data.rows import Row
from isodistill.data.sampler import IsomerSetSampler
from isodistill.errors import UserError
from isodistill.objectives import LabelMultitask, Objective
from isodistill.training.config import DistillConfig

__all__ = ["AnyRows", "encode_dataset", "open_sampler", "plain_rows"]

AnyRows: TypeAlias = Iterable[Row | Mapping[str, Any]]
"""Rows as users hand them in."""


def plain_rows(rows: AnyRows, max_refused: float, refused_to: Path | None) -> tuple[list[Row], list[Refusal]]:
    """``Row`` objects of whatever was handed in, and what was refused among plain dicts.

    Raises:
        UserError: too many rows are refused.
    """
    listed = list(rows)
    if listed and isinstance(listed[0], Row):
        return cast("list[Row]", listed), []
    loaded = load_rows(cast(Any, listed), max_refused=max_refused, refused_to=refused_to)
    return loaded.rows, loaded.refused


def encode_dataset(
    rows: AnyRows,
    args: DistillConfig,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    prompted: Callable[[list[Encoded]], list[Encoded]],
    split: str,
) -> tuple[list[Encoded], dict[str, Row], list[Refusal]]:
    """The encoded rows, all rows by their id, and those that are not used, each with its reason.

    Args:
        rows: to encode.
        args: domains, longest row, share that may be refused.
        tokenizer: of the student.
        objective: may tell a row in several ways.
        prompted: puts before encoded rows what stands before every text.
        split: names the file of refused rows.

    Raises:
        UserError: too many rows are refused, or none is left.
    """
    refused_to = Path(args.output_dir) / "refused" / f"{split}.jsonl" if args.process_index == 0 else None
    typed, refused = plain_rows(rows, args.max_refused, refused_to)
    if args.domains is not None:
        typed = [row for row in typed if row.domain in args.domains]
    if isinstance(objective, LabelMultitask):
        typed = objective.expand(typed)
    encoded, left_out = encode_rows(typed, tokenizer, args.max_length, args.max_refused, refused_to)
    return prompted(encoded), {row.id: row for row in typed}, refused + left_out


def open_sampler(encoded: Sequence[Encoded], domains: Sequence[str], args: DistillConfig) -> IsomerSetSampler:
    """The order of the sets in training.

    Raises:
        UserError: there are fewer batches than processes.
    """
    sampler = IsomerSetSampler(
        [e.set_id for e in encoded],
        [e.domain for e in encoded],
        domains=domains,
        sets_per_batch=args.sets_per_batch,
        seed=args.data_seed if args.data_seed is not None else args.seed,
        missing_domain=cast(Any, args.missing_domain),
        domain_groups=args.world_size if args.split_ranks_by == "domains" else 1,
    )
    if len(sampler) < args.world_size:
        raise UserError(
            f"{args.world_size} processes need a batch each, but the training rows make {len(sampler)} "
            f"batches of {args.sets_per_batch} sets. Start fewer processes, or lower sets_per_batch."
        )
    return sampler
