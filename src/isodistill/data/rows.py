"""The row: one problem on one surface, with plain columns and nothing nested.

Example of a row as a JSON line::

    {"id": "rates-0007/law", "prompt": "A clerk files 6 briefs ...", "completion": "6 x 4 = 24. ... The answer is 19.",
     "answer": "19", "answer_type": "number", "set_id": "rates-0007", "domain": "law", "structure_id": "rates/mul-sub"}
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, Literal, TypeAlias

from isodistill.errors import UserError

__all__ = [
    "ANSWER_SENTENCE",
    "ANSWER_TYPES",
    "COLUMNS",
    "NO_DOMAIN",
    "AnswerType",
    "Prompt",
    "Row",
    "RowError",
    "row_from_dict",
    "row_to_dict",
]

ANSWER_SENTENCE = "The answer is {answer}."
"""How a trace ends, so that the answer can be found again."""

NO_DOMAIN = "all"
"""The one domain of data that have no domain column."""

Prompt: TypeAlias = str | tuple[Mapping[str, str], ...]
"""A plain string, or chat messages with the keys ``role`` and ``content``."""

AnswerType: TypeAlias = Literal["number", "choice", "yesno", "string", "code", "instructions"]
ANSWER_TYPES: tuple[AnswerType, ...] = ("number", "choice", "yesno", "string", "code", "instructions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One problem told in one domain.

    Attributes:
        id: unique over all rows of a run.
        prompt: what the student reads; a string is put into the chat template as one user turn where there is one.
        completion: the trace to learn, ending in the answer; None for rows that are only evaluated.
        answer: the gold answer; number: a plain decimal; choice: the letter (A = first); yesno: yes or no; code: a
            program of tests; instructions: a JSON list of what the output must follow.
        answer_type: how the answer is verified; None when there is no answer.
        set_id: isomers share it; None for a row that belongs to no set.
        domain: the surface; None when the data have one surface only.
        structure_id: the logical template behind several sets; splits keep it on one side.
        choices: option texts without letters.
        teacher: who wrote the completion.
        valid: the verdict on the trace; False rows are not trained on.
        weight: factor on the row's token losses.
        split: train, valid, or a test split such as id, ood, cue_random; None before splitting.
        licence: under which the row may be used; shown in the report.
    """

    id: str
    prompt: Prompt
    completion: str | None = None
    answer: str | None = None
    answer_type: AnswerType | None = None
    set_id: str | None = None
    domain: str | None = None
    structure_id: str | None = None
    choices: tuple[str, ...] | None = None
    teacher: str | None = None
    valid: bool | None = None
    weight: float = 1.0
    split: str | None = None
    licence: str | None = None


COLUMNS: tuple[str, ...] = tuple(f.name for f in fields(Row))


def row_to_dict(row: Row) -> dict[str, Any]:
    """The row as a JSON-ready dict; columns that are None (or weight 1) are left out."""
    out: dict[str, Any] = {}
    for name in COLUMNS:
        value = getattr(row, name)
        if value is None or (name == "weight" and value == 1.0):
            continue
        out[name] = [dict(m) for m in value] if name == "prompt" and not isinstance(value, str) else value
    if row.choices is not None:
        out["choices"] = list(row.choices)
    return out


class RowError(UserError):
    """A row that cannot be used.

    Attributes:
        column: the column at fault.
        reason: what was found there and what was expected.
    """

    def __init__(self, column: str, reason: str, where: str) -> None:
        super().__init__(f"{where}: column {column!r} {reason}")
        self.column = column
        self.reason = reason


def row_from_dict(record: Mapping[str, Any], where: str) -> Row:
    """The row that a record with our column names describes; the inverse of ``row_to_dict``.

    Values of None count as missing, other columns are ignored. Whole numbers are taken as ids and set ids; an answer of
    type number may be a number or text, and an exponent is written out ("2e-3" becomes "0.002").

    Args:
        record: column name to value.
        where: file and line, for messages; also the id of a row that has none.

    Raises:
        RowError: at the first column that is missing or not of its type.
    """
    values: dict[str, Any] = {"id": where}
    for column, check in _CHECKS.items():
        value = record.get(column)
        if value is None:
            continue
        try:
            values[column] = check(value)
        except ValueError as error:
            raise RowError(column, str(error), where) from None
    if "prompt" not in values:
        raise RowError("prompt", "is missing", where)
    answer, answer_type = record.get("answer"), values.get("answer_type")
    if answer is not None and answer_type is None:
        raise RowError("answer_type", f"is missing beside an answer; expected one of {', '.join(ANSWER_TYPES)}", where)
    if answer is None and answer_type is not None:
        raise RowError("answer", f"is missing beside the answer_type {answer_type!r}", where)
    if answer is not None and answer_type is not None:
        try:
            values["answer"] = _ANSWERS[answer_type](answer, len(values.get("choices", ())))
        except ValueError as error:
            raise RowError("answer", str(error), where) from None
    return Row(**values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"is {_shown(value)}; expected text")
    if not value.strip():
        raise ValueError("is blank")
    return value


def _name(value: Any) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _prompt(value: Any) -> Prompt:
    if isinstance(value, str):
        return _text(value)
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"is {_shown(value)}; expected text or a list of messages")
    messages = tuple(_message(message) for message in value)
    if messages[-1]["role"] != "user":
        raise ValueError(f"ends with a turn of the {messages[-1]['role']}; expected a turn of the user")
    return messages


def _message(value: Any) -> dict[str, str]:
    found = {k: v for k, v in value.items() if v is not None} if isinstance(value, Mapping) else {}
    if set(found) != {"role", "content"} or found["role"] not in ("system", "user", "assistant"):
        raise ValueError(
            f"holds the message {_shown(value)}; expected the keys role (system, user or assistant) and content"
        )
    return {"role": found["role"], "content": _text(found["content"])}


def _answer_type(value: Any) -> str:
    if value not in ANSWER_TYPES:
        raise ValueError(f"is {_shown(value)}; expected one of {', '.join(ANSWER_TYPES)}")
    return str(value)


def _choices(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise ValueError(f"is {_shown(value)}; expected a list of at least two texts")
    return tuple(_text(choice) for choice in value)


def _valid(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"is {_shown(value)}; expected true or false")
    return value


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise ValueError(f"is {_shown(value)}; expected a finite number, zero or more")
    return float(value)


def _number(value: Any, n_choices: int) -> str:
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", text, re.ASCII):
        raise ValueError(f"is {_shown(value)}; expected a plain decimal without commas or units")
    return f"{Decimal(text):f}" if "e" in text.lower() else text


def _choice(value: Any, n_choices: int) -> str:
    text = _text(value).strip()
    if not re.fullmatch("[A-Z]", text):
        raise ValueError(f"is {_shown(value)}; expected the letter of an option (A = first)")
    if n_choices and ord(text) - ord("A") >= n_choices:
        raise ValueError(f"is {text!r}, but there are only {n_choices} choices")
    return text


def _yesno(value: Any, n_choices: int) -> str:
    text = _text(value).strip()
    if text not in ("yes", "no"):
        raise ValueError(f"is {_shown(value)}; expected yes or no")
    return text


def _free(value: Any, n_choices: int) -> str:
    return _text(value)


def _shown(value: Any) -> str:
    """The value as a message shows it, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_CHECKS: dict[str, Callable[[Any], Any]] = {
    "id": _name,
    "prompt": _prompt,
    "completion": _text,
    "answer_type": _answer_type,
    "set_id": _name,
    "domain": _text,
    "structure_id": _name,
    "choices": _choices,
    "teacher": _text,
    "valid": _valid,
    "weight": _weight,
    "split": _text,
    "licence": _text,
}
_ANSWERS: dict[str, Callable[[Any, int], str]] = {
    "number": _number,
    "choice": _choice,
    "yesno": _yesno,
    "string": _free,
    "code": _free,
    "instructions": _free,
}
