"""Ask teachers batches of questions through one store of answers and one limit of cost; nothing is asked twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from isodistill.teachers.asking import Limits, Refused, ask_all
from isodistill.teachers.base import Messages, Sampling, Teacher
from isodistill.teachers.store import AnswerStore, Request

__all__ = ["Ask", "Desk", "Reply"]

Reply: TypeAlias = str | Refused | None
"""What a teacher wrote; None where it ran into its length limit; why it gave no answer."""

Ask: TypeAlias = Callable[[Sequence[Messages]], list[Reply]]
"""Questions in, replies out, in order."""


class Desk:
    """What writer and reader share.

    Args:
        store: where the answers go; what it holds already is taken from there.
        limits: ``Teacher.name`` -> how it may be asked.
        template: under which the answers are kept: name and hash of the prompts.
        max_cost: most money for all answers of both; needs prices.
    """

    def __init__(
        self, store: AnswerStore, limits: Mapping[str, Limits], template: str, max_cost: float | None = None
    ) -> None:
        self._store, self._limits, self._template, self._max_cost = store, limits, template, max_cost
        self._answered: dict[str, Request] = {}

    def asking(self, teacher: Teacher, sampling: Sampling) -> Ask:
        """Ask one teacher.

        When asked, it raises what ``ask_all`` does: a teacher that is down or the limit of cost ends the run, and the
        answers so far are kept.
        """

        def ask(questions: Sequence[Messages]) -> list[Reply]:
            requests = [Request(teacher.name, self._template, messages, sampling) for messages in questions]
            # Earlier answers are named, too, for they have cost money.
            known = [*self._answered.values(), *requests]
            refused = ask_all({teacher.name: teacher}, known, self._store, self._limits, max_cost=self._max_cost)
            why = {one.request.key: one for one in refused}
            self._answered |= {request.key: request for request in requests if request.key not in why}
            return [why.get(request.key) or self._reply(request.key) for request in requests]

        return ask

    def _reply(self, key: str) -> str | None:
        answer = self._store.get(key)
        return None if answer.finish_reasons[0] == "length" else answer.texts[0].strip()
