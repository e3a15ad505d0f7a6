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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from isodistill.errors import UserError
from isodistill.teachers.base import Answer, Messages, Sampling

__all__ = ["AnswerStore", "Request", "request_key"]

_SCHEMA = 1
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


class AnswerStore:
    """The file of answers of one recipe; safe to use from several threads, by one process at a time.

    An answer is in the file when ``add`` returns, so a killed process loses none; it is synced to the disk at least
    every second, so a power cut loses the last second. A partial last line, left by a kill in the middle of a write, is
    cut off on opening (a warning says so); its request is then simply not answered.

    Args:
        path: the file; it and its folder are made when missing.
        made_with: JSON-ready settings that answers of one store share; another store's are refused.

    Raises:
        UserError: another process has the store open, it was made with other settings, or it is damaged.
    """

    def __init__(self, path: Path, made_with: Mapping[str, Any]) -> None:
        self.path = path
        self._places: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()
        self._synced = time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UserError(f"Cannot open {path}: {error.strerror}. Check the folder and its permissions.") from error
        try:
            self._claim()
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
        return key in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._places))

    def get(self, key: str) -> Answer:
        """The answer to a request; raises KeyError where it has none."""
        start, length = self._places[key]
        record = json.loads(os.pread(self._file, length, start))
        logprobs = record.get("logprobs")
        return Answer(
            texts=tuple(record["texts"]),
            finish_reasons=tuple(record["finish_reasons"]),
            prompt_tokens=record["prompt_tokens"],
            completion_tokens=record["completion_tokens"],
            logprobs=None if logprobs is None else tuple(tuple(tokens) for tokens in logprobs),
        )

    def add(self, request: Request, answer: Answer, seconds: float) -> None:
        """Put an answer into the file; a second one to the same request is refused.

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
            **{name: value for name, value in asdict(answer).items() if name != "logprobs" or value is not None},
            "seconds": round(seconds, 3),
        }
        with self._lock:
            if key in self._places:
                raise ValueError(f"the request {key} has an answer already")
            self._places[key] = self._append(record)

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
                elif "key" in record:
                    self._places.setdefault(record["key"], (place, len(line)))
                else:
                    raise UserError(f"{self.path}, line {number} is no answer: it has no key. Delete that line.")
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


def _check_header(header: Mapping[str, Any], made_with: Mapping[str, Any], path: Path) -> None:
    if header.get("store") != _SCHEMA or not isinstance(header.get("made_with"), dict):
        raise UserError(f"{path} is no store of answers of this version: its first line says nothing about it.")
    before = header["made_with"]
    names = [name for name in {**before, **made_with} if before.get(name) != made_with.get(name)]
    if names:
        changes = "; ".join(f"{name} was {before.get(name)!r} and is {made_with.get(name)!r}" for name in names)
        raise UserError(
            f"{path} holds answers of another recipe: {changes}. Go back to those settings, or choose another run "
            "folder with --out; the answers there stay as they are."
        )
