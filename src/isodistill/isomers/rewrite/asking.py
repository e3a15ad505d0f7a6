"""Ask a teacher a batch of questions, and never one of them twice: every reply is in a file as soon as it came."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from isodistill.errors import TeacherError, UserError
from isodistill.teachers.base import Messages, Sampling, Teacher

__all__ = ["Ask", "asking"]

Ask: TypeAlias = Callable[[Sequence[Messages]], list[str | None]]
"""Questions in, replies out, in order; None where the teacher refused one for good or ran into its length limit."""


def asking(teacher: Teacher, sampling: Sampling, replies: Path) -> Ask:
    """Ask one teacher; replies that stand in the file already are taken from there.

    A partial last line, left by a kill in the middle of a write, is cut off; its question is then asked again.

    Raises (when asked):
        UserError: the teacher fails in a way that asking again can mend; the replies so far are kept.
    """

    def ask(questions: Sequence[Messages]) -> list[str | None]:
        known = _known(replies)
        keys = [_key(teacher, sampling, messages) for messages in questions]
        for key, messages in zip(keys, questions, strict=True):
            if key not in known:
                known[key] = _answer(teacher, sampling, messages)
                _append(replies, {"key": key, "text": known[key]})
        return [known[key] for key in keys]

    return ask


def _answer(teacher: Teacher, sampling: Sampling, messages: Messages) -> str | None:
    try:
        answer = teacher.answer(messages, sampling)
    except TeacherError as error:
        if error.retry:
            raise UserError(
                f"The teacher {teacher.name} gave no answer: {error}. What it answered so far is kept; the same "
                "command goes on from there."
            ) from error
        return None
    return None if answer.finish_reasons[0] == "length" else answer.texts[0].strip()


def _key(teacher: Teacher, sampling: Sampling, messages: Messages) -> str:
    whole = [teacher.name, [dict(message) for message in messages], asdict(sampling)]
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _known(path: Path) -> dict[str, str | None]:
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        os.truncate(path, len(whole))
    known = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            record = json.loads(line)
            known[record["key"]] = record["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number} is no reply of a teacher ({error}). Delete that line.") from error
    return known


def _append(path: Path, record: dict[str, str | None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}. Free some space and go on.") from error
