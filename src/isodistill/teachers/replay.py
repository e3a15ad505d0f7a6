"""A teacher that answers from traces on disk: someone asked and paid long ago."""

from __future__ import annotations

from collections.abc import Mapping

from isodistill.data.load import load_rows
from isodistill.data.rows import Prompt
from isodistill.errors import TeacherError
from isodistill.teachers.base import Answer, Messages, Sampling

__all__ = ["ReplayTeacher"]


class ReplayTeacher:
    """The completions of rows, found again by their prompt; white space does not count.

    With ``columns`` that read the prompt from ``question``, as in ``data.load``, the choices stand below it and the
    trace ends in the answer: map ``answer`` to what the *teacher* answered, and wrong traces keep their own.

    Args:
        name: of the teacher.
        files: rows with a completion, anything that ``load_rows`` reads.
        columns: our column -> theirs.
        max_refused: share of the rows that may be unreadable.

    Raises:
        UserError: the rows cannot be read.
    """

    def __init__(self, name: str, files: str, columns: Mapping[str, str] | None, max_refused: float) -> None:
        self.name = name
        self._texts: dict[str, list[str]] = {}
        for row in load_rows(files, columns, max_refused=max_refused).rows:
            if row.completion is not None:
                self._texts.setdefault(_last_turn(row.prompt), []).append(row.completion)

    def answer(self, messages: Messages, sampling: Sampling) -> Answer:
        """The first n traces of the problem that is the last message; fewer where there are fewer.

        Raises:
            TeacherError: there is none.
        """
        texts = self._texts.get(_folded(messages[-1]["content"]), [])[: sampling.n]
        if not texts:
            raise TeacherError("has no trace of this problem.", retry=False)
        return Answer(texts=tuple(texts), finish_reasons=("stop",) * len(texts))


def _last_turn(prompt: Prompt) -> str:
    return _folded(prompt if isinstance(prompt, str) else prompt[-1]["content"])


def _folded(text: str) -> str:
    return " ".join(text.split())
