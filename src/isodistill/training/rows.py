"""Rows as users hand them in, as token ids to train on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from transformers import PreTrainedTokenizerBase

from isodistill.data.encode import Encoded, encode_rows
from isodistill.data.files import Refusal
from isodistill.data.load import load_rows
from isodistill.data.rows import Row
from isodistill.training.config import DistillConfig

__all__ = ["AnyRows", "encoded", "plain_rows"]

AnyRows = Iterable[Row | Mapping[str, Any]]


def plain_rows(rows: AnyRows, max_refused: float, refused_to: Path | None) -> tuple[list[Row], list[Refusal]]:
    """``Row`` objects of whatever was handed in, and what was refused among plain dicts."""
    listed = list(rows)
    if listed and isinstance(listed[0], Row):
        return cast("list[Row]", listed), []
    loaded = load_rows(cast(Any, listed), max_refused=max_refused, refused_to=refused_to)
    return loaded.rows, loaded.refused


def encoded(
    rows: AnyRows, args: DistillConfig, tokenizer: PreTrainedTokenizerBase, split: str
) -> tuple[list[Encoded], list[Refusal]]:
    """The rows of the training domains as ids, and all that were refused, listed in ``refused/SPLIT.jsonl``."""
    refused_to = Path(args.output_dir) / "refused" / f"{split}.jsonl" if args.process_index == 0 else None
    typed, refused = plain_rows(rows, args.max_refused, refused_to)
    if args.domains is not None:
        typed = [row for row in typed if row.domain in args.domains]
    done, more = encode_rows(typed, tokenizer, args.max_length, args.max_refused, refused_to)
    return done, refused + more
