"""Rows into a training: loaded, kept to its domains, told as the objective wants them, and encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from isodistill.data.encode import Encoded, encode_rows
from isodistill.data.files import Refusal
from isodistill.data.load import load_rows
from isodistill.data.rows import Row
from isodistill.objectives import LabelMultitask, Objective
from isodistill.training.config import DistillConfig

__all__ = ["encode_dataset"]


def encode_dataset(
    rows: Iterable[Row | Mapping[str, Any]],
    args: DistillConfig,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    split: str,
) -> tuple[list[Encoded], dict[str, Row], list[Refusal]]:
    """The encoded rows, all rows by their id, and those that are not used, each with its reason.

    Raises:
        UserError: too many rows are refused, or none is left.
    """
    refused_to = Path(args.output_dir) / "refused" / f"{split}.jsonl" if args.process_index == 0 else None
    listed, refused = list(rows), list[Refusal]()
    if not listed or not isinstance(listed[0], Row):
        loaded = load_rows(cast(Any, listed), max_refused=args.max_refused, refused_to=refused_to)
        listed, refused = cast("list[Row | Mapping[str, Any]]", loaded.rows), loaded.refused
    typed = cast("list[Row]", listed)
    if args.domains is not None:
        typed = [row for row in typed if row.domain in args.domains]
    if isinstance(objective, LabelMultitask):
        typed = objective.expand(typed)
    encoded, left_out = encode_rows(typed, tokenizer, args.max_length, args.max_refused, refused_to)
    return encoded, {row.id: row for row in typed}, refused + left_out
