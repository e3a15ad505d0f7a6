"""Reading records from files and writing files whole.

A record is one row as it stands in a file, before anything is known about its columns. JSON lines are read here, for
only then can a bad line be named by its number; Parquet and CSV go through ``datasets``.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isodistill.errors import UserError

__all__ = [
    "SUFFIXES",
    "Record",
    "Refusal",
    "append_log",
    "between_marks",
    "check_refused",
    "read_log",
    "read_records",
    "write_between_marks",
    "write_lines",
    "write_refusals",
]


@dataclass(frozen=True, slots=True)
class Record:
    """The fields of one row, and where they stood.

    Attributes:
        source: file as the user named it, or data set.
        line: line of a text file, else the number of the row, from 1.
        where: folder, file and line; it does not change with the working directory and names a row that has no id.
        fields: column name to value.
    """

    source: str
    line: int
    where: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was not taken.

    Attributes:
        source: file, data set name, or the id of a row that no longer knows its file.
        line: line of a text file, else the number of the row, from 1; None where ``source`` is a row's id.
        column: the column at fault; None when the whole line is.
        reason: what was found and what was expected.
    """

    source: str
    line: int | None
    column: str | None
    reason: str

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source}, line {self.line}"
        return f"{where}: {self.reason}" if self.column is None else f"{where}, column {self.column}: {self.reason}"


def check_refused(refused: list[Refusal], n_rows: int, max_refused: float, refused_to: Path | None = None) -> None:
    """Writes the list of refused rows and stops the run when they are too many.

    Args:
        refused: the refused rows.
        n_rows: all rows, the refused ones included.
        max_refused: the share of rows that may be refused.
        refused_to: where the list is written when it is not empty; None writes none.

    Raises:
        UserError: more than ``max_refused * n_rows`` are refused; names the first five.
    """
    if refused and refused_to is not None:
        write_refusals(refused_to, refused)
    if len(refused) <= max_refused * n_rows:
        return
    first = "\n".join(f"  {refusal}" for refusal in refused[:5])
    listed = "only the first five are shown" if refused_to is None else f"all are listed in {refused_to}"
    raise UserError(
        f"{len(refused)} of {n_rows} rows cannot be used, more than the share max_refused = {max_refused:g} allows "
        f"({listed}):\n{first}\nMend what these lines name, or raise max_refused to go on without these rows."
    )


def read_records(path: Path) -> Iterator[Record | Refusal]:
    """The records of one file, its format known by its suffix (``SUFFIXES``).

    Raises:
        UserError: the file is missing, unreadable, empty, damaged or of an unknown kind.
    """
    reader = next((reader for suffix, reader in _READERS.items() if path.name.endswith(suffix)), None)
    if reader is None:
        raise UserError(f"{path}: unknown kind of file; expected one of {', '.join(SUFFIXES)}.")
    empty = True
    try:
        for item in reader(path):
            empty = False
            yield item
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if empty:
        raise UserError(f"{path} holds no rows. Was it written to the end?")


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Writes a text file so that it is there whole or not at all: beside itself first, then renamed.

    Raises:
        UserError: no space is left, or the place cannot be written; a file that was there before stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            file.writelines(line + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        advice = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check the folder and its rights"
        raise UserError(f"{path} cannot be written: {error.strerror or error}. {advice} and start again.") from error
    finally:
        if temporary.exists():
            temporary.unlink()


def append_log(path: Path, record: Mapping[str, Any]) -> None:
    """One line of JSON more, on disk before it returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of ``append_log``; a last line that was cut off is removed. No file: none."""
    if not path.is_file():
        return []
    whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
    if rest:
        write_lines(path, whole.splitlines())
    return [json.loads(line) for line in whole.splitlines()]


def between_marks(page: str, begin: str, end: str, text: str) -> str:
    """A page with ``text`` in the place between its marks ``begin`` and ``end``.

    Raises:
        ValueError: the page does not have both marks, in this order.
    """
    before, opening, rest = page.partition(begin)
    _, closing, after = rest.partition(end)
    if not (opening and closing):
        raise ValueError(f"the page lacks the mark {begin if not opening else end}")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def write_between_marks(path: Path, begin: str, end: str, text: str) -> None:
    """``between_marks`` of a file, in place: how a script puts its tables into a page of text."""
    write_lines(path, between_marks(path.read_text(encoding="utf-8"), begin, end, text).splitlines())


def write_refusals(path: Path, refusals: Iterable[Refusal]) -> None:
    """Writes one JSON line per refused row: source, line, column, reason."""
    write_lines(path, (json.dumps(asdict(refusal), ensure_ascii=False) for refusal in refusals))


def _json_lines(path: Path) -> Iterator[Record | Refusal]:
    with path.open("rb") as file:
        yield from _parse_lines(path, file)


def _gzip_lines(path: Path) -> Iterator[Record | Refusal]:
    line = 0
    with gzip.open(path, "rb") as file:
        try:
            for item in _parse_lines(path, file):
                line = item.line or line
                yield item
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(
                f"{path} is damaged after line {line}: {error}. It was cut short or is no gzip file; fetch it again."
            ) from error


def _parse_lines(path: Path, file: Iterable[bytes]) -> Iterator[Record | Refusal]:
    for number, raw in enumerate(file, start=1):
        if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
            raise UserError(f"{path} is UTF-16; save it as UTF-8.")
        if not raw.strip():
            continue
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield Refusal(str(path), number, None, f"is not UTF-8 at byte {error.start + 1} of the line")
            continue
        try:
            yield _record(path, number, json.loads(text))
        except json.JSONDecodeError as error:
            yield Refusal(str(path), number, None, f"is not JSON: {error.msg} at character {error.colno}")
        except (ValueError, RecursionError) as error:  # a number or a nesting beyond what Python reads
            yield Refusal(str(path), number, None, f"is not readable JSON: {error}")


def _json_list(path: Path) -> Iterator[Record | Refusal]:
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 at byte {error.start + 1}; save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}). "
            "A file of one object per line is read when its name ends in .jsonl."
        ) from error
    if not isinstance(items, list):
        raise UserError(f"{path} holds one {type(items).__name__}; expected a list of objects.")
    for number, item in enumerate(items, start=1):
        yield _record(path, number, item)


def _record(path: Path, number: int, item: Any) -> Record | Refusal:
    if isinstance(item, dict):
        return Record(str(path), number, f"{'/'.join(path.absolute().parts[-2:])}:{number}", item)
    return Refusal(str(path), number, None, f"is a JSON {type(item).__name__}; expected an object with named columns")


def _parquet(path: Path) -> Iterator[Record | Refusal]:
    return _table(path, "from_parquet", {})


def _csv(path: Path) -> Iterator[Record | Refusal]:
    # Without this, answers and choices such as "None" or "N/A" would be read as missing.
    return _table(path, "from_csv", {"keep_default_na": False, "na_values": [""]})


def _table(path: Path, reader: str, options: dict[str, Any]) -> Iterator[Record | Refusal]:
    if path.stat().st_size == 0:
        return
    import datasets
    from datasets.exceptions import DatasetsError

    # A private cache: a changed file is never answered with its former rows, and nothing stays behind.
    with tempfile.TemporaryDirectory() as cache:
        try:
            table = getattr(datasets.Dataset, reader)(str(path), cache_dir=cache, keep_in_memory=True, **options)
        except (DatasetsError, ValueError) as error:
            if _has_no_rows(path):
                return
            raise UserError(f"{path} cannot be read as {path.suffix}: {error.__cause__ or error}.") from error
        for number, fields in enumerate(table, start=1):
            yield _record(path, number, fields)


def _has_no_rows(path: Path) -> bool:
    """A table with its head alone, which ``datasets`` takes for a fault."""
    if path.suffix == ".csv":
        with path.open(encoding="utf-8", errors="replace") as file:
            return sum(1 for line in file if line.strip()) <= 1
    import pyarrow
    from pyarrow import parquet

    try:
        return bool(parquet.read_metadata(path).num_rows == 0)
    except pyarrow.ArrowException:
        return False


_READERS: dict[str, Callable[[Path], Iterator[Record | Refusal]]] = {
    ".jsonl": _json_lines,
    ".jsonl.gz": _gzip_lines,
    ".json": _json_list,
    ".parquet": _parquet,
    ".csv": _csv,
}
SUFFIXES: tuple[str, ...] = tuple(_READERS)
"""The kinds of files that are read."""
