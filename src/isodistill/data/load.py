"""Rows from files, folders and ``datasets``, with every refused row named.

Rows are read by our column names (``prompt``, ``completion``, ...) unless a mapping says what they are called there.
Data that have ``question`` and no ``prompt`` are read with ``QUESTION_COLUMNS``; ``Loaded.notes`` says so.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from isodistill.data.files import (
    SUFFIXES,
    Record,
    Refusal,
    check_refused,
    read_records,
    write_lines,
    write_refusals,
)
from isodistill.data.rows import ANSWER_SENTENCE, COLUMNS, Row, RowError, row_from_dict, row_to_dict
from isodistill.errors import UserError

__all__ = [
    "QUESTION_COLUMNS",
    "TEMPLATE_COLUMNS",
    "Loaded",
    "Refusal",
    "load_rows",
    "write_refusals",
    "write_rows",
]

QUESTION_COLUMNS: dict[str, str] = {
    "prompt": "question",
    "completion": "rationale",
    "set_id": "group",
    "structure_id": "meta.template",
    "teacher": "rationale_source",
    "valid": "meta.correct",
}
"""Our column -> theirs for question/rationale/answer data whose ``group`` is an isomer set; a dot looks inside a dict.

With a mapping that reads the prompt from ``question``, the choices are listed below the question and a rationale that
does not end in its answer gets ``ANSWER_SENTENCE``, for there the rationale comes without it.
"""

TEMPLATE_COLUMNS: dict[str, str] = {
    "prompt": "question",
    "completion": "rationale",
    "structure_id": "group",
    "teacher": "rationale_source",
    "valid": "meta.correct",
}
"""The same for data whose ``group`` shares a template, not the values: it keeps a split clean but is no isomer set."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read.

    Attributes:
        rows: the usable rows, in the order of the source.
        refused: the others.
        notes: what a reader of the run should know: how columns were read, which were not used.
    """

    rows: list[Row]
    refused: list[Refusal]
    notes: tuple[str, ...] = ()


def load_rows(
    source: str | Path | Iterable[Mapping[str, Any]],
    columns: Mapping[str, str] | None = None,
    *,
    max_refused: float = 0.01,
    refused_to: Path | None = None,
) -> Loaded:
    """Reads rows.

    Args:
        source: a file (.jsonl, .jsonl.gz, .json, .parquet, .csv), a folder of such files or one that ``datasets``
            knows, the name of a data set on the hub, "folder-or-name:split", a ``datasets.Dataset``, or any iterable of
            dicts.
        columns: our column -> theirs, where the names differ; columns left out keep our name.
        max_refused: share of rows that may be refused before the run stops.
        refused_to: file for the list of refused rows; None writes none.

    Returns:
        The rows. A row without ``id`` gets its folder, file and line as id; a repeated id is refused.

    Raises:
        UserError: the source is missing, empty, damaged or lacks a named column, or too many rows are refused.
    """
    name, items = _open(source)
    items = list(items)
    records = [item for item in items if isinstance(item, Record)]
    if not items:
        raise UserError(f"{name} holds no rows.")
    present = {key for record in records for key in record.fields}
    mapping, notes = _mapping(name, columns, present)
    rows: dict[str, Row] = {}
    refused: list[Refusal] = []
    for item in items:
        if isinstance(item, Refusal):
            refused.append(item)
            continue
        try:
            row = _row(item, mapping)
            if row.id in rows:
                raise RowError("id", f"repeats {row.id!r}, which stands further up", item.source)
            rows[row.id] = row
        except RowError as error:
            refused.append(Refusal(item.source, item.line, mapping.get(error.column, error.column), error.reason))
    check_refused(refused, len(items), max_refused, refused_to)
    if not rows:
        raise UserError(f"{name}: all {len(items)} rows are refused, the first one because: {refused[0]}.")
    return Loaded(list(rows.values()), refused, notes)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes rows as JSON lines, whole or not at all; ``load_rows`` reads them back as they were.

    Raises:
        UserError: no space is left, or the place cannot be written.
    """
    write_lines(path, (json.dumps(row_to_dict(row), ensure_ascii=False) for row in rows))


def _open(source: str | Path | Iterable[Mapping[str, Any]]) -> tuple[str, Iterable[Record | Refusal]]:
    """The name of a source for messages, and its records."""
    if isinstance(source, Mapping):
        raise UserError(f"The data have the splits {', '.join(map(repr, source))}; pass one of them.")
    if not isinstance(source, str | Path):
        return "the given rows", _number("rows", source)
    path = Path(source)
    if path.exists():
        return str(source), _folder(path, None) if path.is_dir() else read_records(path)
    head, colon, split = str(source).rpartition(":")
    if colon and Path(head).is_file():
        raise UserError(f"{head} is a file and has no split {split!r}; name the file alone.")
    if colon and Path(head).is_dir():
        return str(source), _folder(Path(head), split)
    if isinstance(source, Path) or path.name.endswith(SUFFIXES) or path.is_absolute():
        siblings = [sibling.name for sibling in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{path} does not exist.{_meant(path.name, siblings)}")
    return source, _dataset(head or source, split if colon else None)


def _folder(folder: Path, split: str | None) -> Iterable[Record | Refusal]:
    files = sorted(p for p in folder.iterdir() if p.name.endswith(SUFFIXES) and not p.name.startswith("."))
    # Folders of `Dataset.save_to_disk` keep JSON files about the data beside the data.
    if not files or (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return _dataset(str(folder), split)
    chosen = [p for p in files if split is None or p.name.split(".")[0] == split]
    if not chosen:
        raise UserError(f"{folder} has no file for the split {split!r}; its files: {', '.join(p.name for p in files)}.")
    return (item for path in chosen for item in read_records(path))


def _dataset(name: str, split: str | None) -> Iterable[Record | Refusal]:
    """A saved folder or a data set of the hub, through ``datasets``."""
    import datasets
    from datasets.exceptions import DatasetsError

    saved = any((Path(name) / mark).exists() for mark in ("state.json", "dataset_dict.json"))
    try:
        data = datasets.load_from_disk(name) if saved else datasets.load_dataset(name)
    except (DatasetsError, OSError, ValueError) as error:
        raise UserError(f"{name!r} is neither a file, nor a folder, nor a data set that loads: {error}") from error
    if not isinstance(data, Mapping):
        return _number(name, data)
    if split is None and len(data) == 1:
        split = next(iter(data))
    if split not in data:
        raise UserError(f"{name} has the splits {', '.join(data)}; name one of them as {name}:SPLIT.")
    return _number(f"{name}:{split}", data[split])


def _number(name: str, items: Iterable[Any]) -> Iterator[Record | Refusal]:
    for number, item in enumerate(items, start=1):
        if isinstance(item, Mapping):
            yield Record(name, number, f"{name}:{number}", item)
        else:
            yield Refusal(name, number, None, f"is a {type(item).__name__}; expected a dict with named columns")


def _mapping(name: str, columns: Mapping[str, str] | None, present: set[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Their name of each of our columns, and notes on what was decided."""
    notes = []
    if columns is None:
        columns = {}
        if "question" in present and not present & {"prompt", "messages"}:
            columns = {ours: theirs for ours, theirs in QUESTION_COLUMNS.items() if theirs.split(".")[0] in present}
            pairs = ", ".join(f"{theirs} as {ours}" for ours, theirs in columns.items())
            notes.append(f"{name} has a column question and no prompt, so it is read as question data: {pairs}.")
    else:
        for ours, theirs in columns.items():
            if ours not in COLUMNS:
                raise UserError(f"columns maps {ours!r}, which is no column of ours.{_meant(ours, COLUMNS)}")
            if not present & {theirs, theirs.split(".")[0]}:
                raise UserError(f"{name} has no column {theirs!r} for {ours}.{_meant(theirs, present)}")
    mapping = {ours: columns.get(ours, ours) for ours in COLUMNS}
    if present and not present & {mapping["prompt"], mapping["prompt"].split(".")[0], "messages"}:
        raise UserError(
            f"{name} has no column {mapping['prompt']!r}; it has {', '.join(sorted(present))}. "
            "Say which one holds the prompt, for example columns={'prompt': 'text'}."
        )
    used = {theirs.split(".")[0] for theirs in mapping.values()} | {"messages", *mapping.values()}
    if unused := sorted(present - used):
        notes.append(f"Columns of {name} that are not used: {', '.join(unused)}.")
    return mapping, tuple(notes)


def _row(record: Record, mapping: Mapping[str, str]) -> Row:
    fields = {ours: _look_up(record.fields, theirs) for ours, theirs in mapping.items()}
    _take_messages(fields, record.fields.get("messages"))
    row = row_from_dict(fields, record.where)
    return _close(row) if mapping["prompt"] == "question" else row


def _look_up(fields: Mapping[str, Any], name: str) -> Any:
    if name in fields or "." not in name:
        return fields.get(name)
    head, _, tail = name.partition(".")
    inside = fields.get(head)
    return _look_up(inside, tail) if isinstance(inside, Mapping) else None


def _take_messages(fields: dict[str, Any], messages: Any) -> None:
    """Chat data: a whole conversation is prompt and last assistant turn; a completion may be one assistant turn."""
    if fields["prompt"] is None and isinstance(messages, list):
        replied = bool(messages) and isinstance(messages[-1], Mapping) and messages[-1].get("role") == "assistant"
        fields["prompt"], fields["completion"] = (messages[:-1], messages[-1:]) if replied else (messages, None)
    match fields["completion"]:
        case [{"role": "assistant", "content": content}]:
            fields["completion"] = content


def _close(row: Row) -> Row:
    """A question with its choices below it, and a trace that ends in its answer."""
    prompt, completion = row.prompt, row.completion
    if row.choices is not None and isinstance(prompt, str):
        options = (f"{chr(ord('A') + i)}) {text}" for i, text in enumerate(row.choices))
        prompt = "\n".join([prompt, *options])
    # Programs and free texts name no answer, and the gold answer below a wrong trace would contradict it.
    named = row.answer is not None and row.answer_type not in ("code", "instructions") and row.valid is not False
    if completion is not None and named:
        sentence = ANSWER_SENTENCE.format(answer=row.answer)
        completion = completion.rstrip()
        if not completion.endswith(sentence):
            stop = "" if completion.endswith((".", "!", "?")) else "."
            completion = f"{completion}{stop} {sentence}"
    return replace(row, prompt=prompt, completion=completion)


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
