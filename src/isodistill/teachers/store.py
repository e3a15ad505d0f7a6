"""Answers on disk: append-only JSON lines keyed by a hash of the request, so that nothing paid for is asked twice.

The first line says with which settings the store was made; every other line is one answer. The index (key -> place of
the line) is read from the file itself when the store is opened, so it can never disagree with it.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isodistill.errors import UserError
from isodistill.teachers.base import Answer, Messages, Sampling

__all__ = ["AnswerStore", "Request", "answered_keys", "request_key"]

_SCHEMA = 1
_BEGIN = f'{{"store": {_SCHEMA}, '.encode()
_SYNC_EVERY_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """One question to one teacher.

    Attributes:
        teacher: ``Teacher.name`` of who is asked.
        template: name and hash of the template that the messages were made with.
        messages: what the teacher reads.
        sampling: how it draws its answers.
    """

    teacher: str
    template: str
    messages: Messages
    sampling: Sampling

    @property
    def key(self) -> str:
        """SHA-256 of all of it; equal requests have one answer."""
        return request_key(self.teacher, self.template, self.messages, self.sampling)


def request_key(teacher: str, template: str, messages: Messages, sampling: Sampling) -> str:
    """SHA-256 (hex) of (teacher, template, messages, sampling)."""
    whole = [teacher, template, [dict(message) for message in messages], asdict(sampling)]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def answered_keys(path: Path, made_with: Mapping[str, Any]) -> set[str]:
    """The keys of all whole answers in a store, read without a claim to it: another process may be writing.

    Raises:
        UserError: it was made with other settings, or is damaged.
    """
    whole = set()
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break  # being written, or cut by a kill
            record = _parsed(line, f"{path}, line {number}")
            if number == 1:
                _check_header(record, json.loads(json.dumps(made_with)), path)
            elif "texts" in record and not record.get("more"):
                whole.add(str(record.get("key")))
    return whole


class AnswerStore:
    """The file of answers of one recipe; safe to use from several threads, by one process at a time.

    An answer is in the file when ``add`` returns, so a killed process loses none; it is synced to the disk at least
    every second, so a power cut loses the last second. A partial last line, left by a kill in the middle of a write, is
    cut off on opening (a warning says so); its request is then simply not answered.

    An answer may come in parts, one line each, where the teacher gives fewer texts at a time than it is asked for; its
    request is answered (``in``) when the last part is there, and ``get`` joins them. A line with ``refused`` remembers
    a request that got no answer.

    Args:
        path: the file; it and its folder are made when missing.
        made_with: JSON-ready settings that answers of one store share; another store's are refused.

    Raises:
        UserError: another process has the store open, it was made with other settings, or it is damaged.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any]) -> None:
        self.path = path
        self._places: dict[str, list[tuple[int, int]]] = {}
        self._n_texts: Counter[str] = Counter()
        self._whole: set[str] = set()
        self._refused: set[str] = set()
        self._lock = threading.Lock()
        self._synced = time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UserError(f"Cannot open {path}: {error.strerror}. Check the folder and its permissions.") from error
        try:
            self._claim()
            self._check_is_store()
            self._size = self._cut_partial_line()
            self._read_index(json.loads(json.dumps(made_with)))
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> AnswerStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __contains__(self, key: str) -> bool:
        return key in self._whole

    def __len__(self) -> int:
        return len(self._whole)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._whole))

    def get(self, key: str) -> Answer:
        """The answer to a request, as far as it has come; raises KeyError where nothing has."""
        parts = [_answer(json.loads(os.pread(self._file, length, start))) for start, length in self._places[key]]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def n_texts(self, key: str) -> int:
        """How many texts of an answer have come."""
        return self._n_texts[key]

    def was_refused(self, key: str) -> bool:
        """Whether an earlier sitting got no answer to this request."""
        return key in self._refused

    def add(self, request: Request, answer: Answer, seconds: float) -> None:
        """Put an answer, or the next part of one, into the file; one more to a whole answer is refused.

        Raises:
            UserError: the disk is full or the file cannot be written; the answers before are kept.
            ValueError: the request has an answer already.
        """
        key = request.key
        record = {
            "key": key,
            "teacher": request.teacher,
            "template": request.template,
            "sampling": asdict(request.sampling),
            "messages": [dict(message) for message in request.messages],
            **{name: value for name, value in asdict(answer).items() if value or name not in ("logprobs", "more")},
            "seconds": round(seconds, 3),
        }
        with self._lock:
            if key in self._whole:
                raise ValueError(f"the request {key} has an answer already")
            self._note(record, self._append(record))

    def refuse(self, request: Request, reason: str) -> None:
        """Remember that a request got no answer; raises as ``add`` does."""
        with self._lock:
            if request.key not in self._refused:
                self._append({"key": request.key, "teacher": request.teacher, "refused": reason})
                self._refused.add(request.key)

    def close(self) -> None:
        """Sync and let go; another process may open the store now."""
        with self._lock:
            if self._file >= 0:
                os.fsync(self._file)
                os.close(self._file)
                self._file = -1

    def _claim(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another process is writing {self.path}. Wait until it has ended, or choose another run folder."
            ) from None

    def _note(self, record: Mapping[str, Any], place: tuple[int, int]) -> None:
        key = record["key"]
        self._places.setdefault(key, []).append(place)
        self._n_texts[key] += len(record["texts"])
        if not record.get("more"):
            self._whole.add(key)

    def _check_is_store(self) -> None:
        """Refuse a file of something else before a byte of it is touched; half a first line may be a store's."""
        start = os.pread(self._file, len(_BEGIN), 0)
        if start != _BEGIN[: len(start)]:
            raise UserError(
                f"{self.path} is no store of answers: it does not begin as one. It stays as it is; move it away, or "
                "choose another run folder with --out."
            )

    def _cut_partial_line(self) -> int:
        """The length of the whole lines, to which the file is cut."""
        size = end = os.fstat(self._file).st_size
        while end:
            start = max(0, end - 65536)
            block = os.pread(self._file, end - start, start)
            if (newline := block.rfind(b"\n")) >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            _log.warning("%s ends in a partial line; cut off %d bytes.", self.path, size - end)
            os.ftruncate(self._file, end)
        return end

    def _read_index(self, made_with: Mapping[str, Any]) -> None:
        if not self._size:
            self._append({"store": _SCHEMA, "made_with": made_with})
            return
        place = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                record = _parsed(line, f"{self.path}, line {number}")
                if number == 1:
                    _check_header(record, made_with, self.path)
                elif "refused" in record and isinstance(record.get("key"), str):
                    self._refused.add(record["key"])
                elif (missing := _missing(record)) is not None:
                    raise UserError(
                        f"{self.path}, line {number} is no answer: its {missing} is missing or of the wrong type. "
                        "Restore the file, or delete this line: its request is then asked again."
                    )
                elif record["key"] not in self._whole:
                    self._note(record, (place, len(line)))
                place += len(line)

    def _append(self, record: Mapping[str, Any]) -> tuple[int, int]:
        """Write one line at the end; where it stands. What a full disk leaves of a line is taken back."""
        line = json.dumps(record, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace") + b"\n"
        try:
            left = memoryview(line)
            while left:
                left = left[os.write(self._file, left) :]
            if time.monotonic() - self._synced >= _SYNC_EVERY_S:
                os.fsync(self._file)
                self._synced = time.monotonic()
        except OSError as error:
            os.ftruncate(self._file, self._size)
            advice = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Check the disk"
            raise UserError(
                f"Cannot write to {self.path}: {error.strerror}. The answers written so far are kept; {advice.lower()} "
                "and start the same command again to go on from there."
            ) from error
        place = self._size
        self._size += len(line)
        return place, len(line)


def _parsed(line: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise UserError(
            f"{where} is not JSON ({error}). Restore the file, or delete this line: its request is then asked again."
        ) from error
    if not isinstance(record, dict):
        raise UserError(f"{where} is no JSON object. Restore the file, or delete this line.")
    return record


def _missing(record: Mapping[str, Any]) -> str | None:
    """The first field that an answer needs and this record lacks."""
    texts, reasons = record.get("texts"), record.get("finish_reasons")
    if not isinstance(record.get("key"), str):
        return "key"
    if not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
        return "texts"
    if not (isinstance(reasons, list) and len(reasons) == len(texts)):
        return "finish_reasons"
    counts = ("prompt_tokens", "completion_tokens")
    return next((name for name in counts if not isinstance(record.get(name, ""), int | None)), None)


def _answer(record: Mapping[str, Any]) -> Answer:
    logprobs = record.get("logprobs")
    return Answer(
        texts=tuple(record["texts"]),
        finish_reasons=tuple(record["finish_reasons"]),
        prompt_tokens=record["prompt_tokens"],
        completion_tokens=record["completion_tokens"],
        logprobs=None if logprobs is None else tuple(tuple(tokens) for tokens in logprobs),
        more=bool(record.get("more")),
    )


def _joined(parts: Sequence[Answer]) -> Answer:
    """Parts of one answer as one."""
    reading, writing = [part.prompt_tokens for part in parts], [part.completion_tokens for part in parts]
    logprobs = [part.logprobs for part in parts if part.logprobs is not None]
    return Answer(
        texts=tuple(text for part in parts for text in part.texts),
        finish_reasons=tuple(reason for part in parts for reason in part.finish_reasons),
        prompt_tokens=None if None in reading else sum(count or 0 for count in reading),
        completion_tokens=None if None in writing else sum(count or 0 for count in writing),
        logprobs=tuple(tokens for each in logprobs for tokens in each) if len(logprobs) == len(parts) else None,
        more=parts[-1].more,
    )


def _check_header(header: Mapping[str, Any], made_with: Mapping[str, Any], path: Path) -> None:
    if header.get("store") != _SCHEMA or not isinstance(header.get("made_with"), dict):
        raise UserError(f"{path} is no store of answers of this version: its first line says nothing about it.")
    before = header["made_with"]
    names = [name for name in made_with if before.get(name) != made_with[name]]
    if names:
        changes = "; ".join(f"{name} was {before.get(name)!r} and is {made_with.get(name)!r}" for name in names)
        raise UserError(
            f"{path} holds answers of another recipe: {changes}. Go back to those settings, or choose another run "
            "folder with --out; the answers there stay as they are."
        )
