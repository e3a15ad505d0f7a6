"""Ask a teacher a batch of questions through the store of answers, so that nothing is asked twice."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

from isodistill.isomers.rewrite import prompts
from isodistill.teachers.asking import Limits, Refused, ask_all
from isodistill.teachers.base import Messages, Sampling, Teacher
from isodistill.teachers.store import AnswerStore, Request

__all__ = ["Ask", "Reply", "asking"]

Reply: TypeAlias = str | Refused | None
"""What a teacher wrote; None where it ran into its length limit; why it gave no answer."""

Ask: TypeAlias = Callable[[Sequence[Messages]], list[Reply]]
"""Questions in, replies out, in order."""


def asking(teacher: Teacher, sampling: Sampling, store: AnswerStore, limits: Limits) -> Ask:
    """Ask one teacher; what the store holds already is taken from there.

    When asked, it raises what ``ask_all`` does: a teacher that is down ends the run, and the answers so far are kept.
    """
    template = f"isomers-{hashlib.sha256(prompts.ALL.encode()).hexdigest()[:12]}"

    def ask(questions: Sequence[Messages]) -> list[Reply]:
        requests = [Request(teacher.name, template, messages, sampling) for messages in questions]
        refused = ask_all({teacher.name: teacher}, requests, store, {teacher.name: limits})
        why = {one.request.key: one for one in refused}
        return [why.get(request.key) or _reply(request.key, store) for request in requests]

    return ask


def _reply(key: str, store: AnswerStore) -> str | None:
    answer = store.get(key)
    return None if answer.finish_reasons[0] == "length" else answer.texts[0].strip()
