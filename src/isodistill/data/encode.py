"""From a row to token ids, with the border between prompt and completion known by construction.

Prompt and completion are tokenised apart and their ids joined, so no token straddles the border and no assistant mask
has to be guessed from a chat template. Nothing is cut: what does not fit is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from isodistill.data.files import Refusal, check_refused
from isodistill.data.rows import NO_DOMAIN, Row, RowError
from isodistill.errors import UserError

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase

__all__ = ["IGNORE_INDEX", "Encoded", "encode_prompt", "encode_row", "encode_rows"]

IGNORE_INDEX = -100
"""The label of a token that is not trained on."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A row as token ids.

    Attributes:
        row_id: id of the row.
        domain: its domain; ``NO_DOMAIN`` for a row without one.
        set_id: its isomer set, or None.
        input_ids: prompt, completion and the end-of-sequence token.
        labels: the same ids, ``IGNORE_INDEX`` on the prompt; not shifted.
        weight: factor on the row's token losses.
        answer_at: where the answer lies in ``input_ids``, first token and one behind the last; None where the
            completion does not have it word for word.
        place: its number among the encoded rows.
    """

    row_id: str
    domain: str
    set_id: str | None
    input_ids: list[int]
    labels: list[int]
    weight: float
    answer_at: tuple[int, int] | None = None
    place: int = 0


def encode_row(row: Row, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Encoded:
    """The row as ids to train on.

    Raises:
        RowError: the row has no completion, no trained token, a prompt that the chat template does not take, or more
            than ``max_length`` tokens.
    """
    if row.completion is None:
        raise RowError("completion", "is missing, so there is nothing to train on", f"row {row.id}")
    tokens = _tokenize([_render(row, tokenizer), row.completion], tokenizer)
    prompt_ids, completion_ids = tokens["input_ids"]
    return _join(row, prompt_ids, completion_ids, _answer_at(row, tokens, 1), tokenizer, max_length)


def encode_prompt(row: Row, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[int]:
    """The ids after which the student answers; the same ids that ``encode_row`` puts before the completion.

    Raises:
        RowError: a prompt that the chat template does not take, or one longer than ``max_length`` tokens.
    """
    prompt_ids: list[int] = _tokenize([_render(row, tokenizer)], tokenizer)["input_ids"][0]
    prompt_ids = _start(tokenizer) + prompt_ids
    if len(prompt_ids) > max_length:
        raise RowError("prompt", f"has {len(prompt_ids)} tokens, more than max_length {max_length}", f"row {row.id}")
    return prompt_ids


def encode_rows(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    max_refused: float = 0.01,
    refused_to: Path | None = None,
) -> tuple[list[Encoded], list[Refusal]]:
    """All rows as ids to train on, tokenised in one call.

    Rows without a completion and rows whose trace is known to be wrong are not meant for training: they are listed
    among the refused, but do not count towards ``max_refused``.

    Args:
        rows: rows of the train split.
        tokenizer: a fast tokenizer; its chat template is used where it has one.
        max_length: most tokens of a row, prompt, completion and end together.
        max_refused: share of the rows meant for training that may be refused.
        refused_to: file for the list of refused rows; None writes none.

    Returns:
        The encoded rows in order, and the rows left out with their reason.

    Raises:
        UserError: too many rows are refused, or none is left.
    """
    skipped: list[Refusal] = []
    refused: list[Refusal] = []
    usable: list[tuple[Row, str, str]] = []
    for row in rows:
        if row.completion is None:
            skipped.append(Refusal(row.id, None, "completion", "is missing, so there is nothing to train on"))
        elif row.valid is False:
            skipped.append(Refusal(row.id, None, "valid", "is false: the trace is known to be wrong"))
        else:
            try:
                usable.append((row, _render(row, tokenizer), row.completion))
            except RowError as error:
                refused.append(Refusal(row.id, None, error.column, error.reason))
    n = len(usable)
    encoded: list[Encoded] = []
    if usable:
        texts = [prompt for _, prompt, _ in usable] + [completion for _, _, completion in usable]
        tokens = _tokenize(texts, tokenizer)
        ids = tokens["input_ids"]
    for i, (row, _, _) in enumerate(usable):
        try:
            at = _answer_at(row, tokens, n + i)
            joined = _join(row, ids[i], ids[n + i], at, tokenizer, max_length)
            encoded.append(replace(joined, place=len(encoded)))
        except RowError as error:
            refused.append(Refusal(row.id, None, error.column, error.reason))
    check_refused(refused, len(encoded) + len(refused), max_refused, refused_to)
    if not encoded:
        first = "".join(f" The first one: {refusal}." for refusal in (skipped + refused)[:1])
        raise UserError(f"No row is left to train on; {len(skipped) + len(refused)} were left out.{first}")
    return encoded, skipped + refused


def _render(row: Row, tokenizer: PreTrainedTokenizerBase) -> str:
    """The prompt as text, up to where the assistant begins."""
    if tokenizer.chat_template is None:
        if isinstance(row.prompt, str):
            return row.prompt + "\n"
        raise RowError("prompt", "holds messages, but the tokenizer has no chat template", f"row {row.id}")
    messages = [{"role": "user", "content": row.prompt}] if isinstance(row.prompt, str) else list(row.prompt)
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        raise RowError("prompt", f"is not taken by the chat template: {error}", f"row {row.id}") from error


def _tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> BatchEncoding:
    # verbose=False: transformers would warn of long rows that we refuse by name.
    return tokenizer(list(texts), add_special_tokens=False, verbose=False)


def _answer_at(row: Row, tokens: BatchEncoding, index: int) -> tuple[int, int] | None:
    """Tokens of the completion, the text ``index``, that hold its last mention of the answer as a word."""
    if row.answer is None or row.completion is None or not tokens.is_fast:
        return None
    mentions = [*re.finditer(rf"(?<!\w)(?<!\d[.,]){re.escape(row.answer)}(?!\w|[.,]\d)", row.completion)]
    if not mentions:
        return None
    first, last = (tokens.char_to_token(index, at) for at in (mentions[-1].start(), mentions[-1].end() - 1))
    return None if first is None or last is None else (first, last + 1)


def _start(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer puts before plain text; a chat template writes its own start."""
    if tokenizer.chat_template is not None or tokenizer.bos_token_id is None:
        return []
    first = tokenizer("a")["input_ids"][0]
    return [first] if first == tokenizer.bos_token_id else []


def _join(
    row: Row,
    prompt_ids: list[int],
    completion_ids: list[int],
    answer_at: tuple[int, int] | None,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
) -> Encoded:
    if tokenizer.eos_token_id is None:
        raise UserError("The tokenizer has no end-of-sequence token, so no trace could end. Set tokenizer.eos_token.")
    if not completion_ids:
        raise RowError("completion", "has no token to train on", f"row {row.id}")
    prompt_ids = _start(tokenizer) + prompt_ids
    input_ids = [*prompt_ids, *completion_ids, tokenizer.eos_token_id]
    if len(input_ids) > max_length:
        column = "prompt" if len(prompt_ids) >= max_length else "completion"
        raise RowError(
            column,
            f"is too long: {len(prompt_ids)} prompt + {len(input_ids) - len(prompt_ids)} completion tokens are more "
            f"than max_length {max_length}",
            f"row {row.id}",
        )
    labels = [IGNORE_INDEX] * len(prompt_ids) + input_ids[len(prompt_ids) :]
    at = None if answer_at is None else (answer_at[0] + len(prompt_ids), answer_at[1] + len(prompt_ids))
    return Encoded(row.id, row.domain or NO_DOMAIN, row.set_id, input_ids, labels, row.weight, at)
