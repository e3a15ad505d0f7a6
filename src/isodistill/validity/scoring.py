"""Scores kept on disk, and a scorer that may fail: it raises, hangs or returns no number, and training goes on."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from isodistill.errors import UserError
from isodistill.validity.base import Action, Scorer

__all__ = ["Scoring"]

T = TypeVar("T")
_JUDGED_FROM = 20  # steps asked, from which the share of failures means something
_TOGETHER = 16  # steps scored in one call, so that a scorer that hangs is found out after 16 limits


class Scoring:
    """Scores of proposed steps; None where the scorer failed.

    Steps are scored sixteen at a time; where that fails, one by one, so that one bad step costs no other its score. A
    call that hangs is left behind in its thread, which cannot be stopped from here. Scores are kept by content (scorer,
    problem, prefix, steps), failures are not.

    Args:
        scorer: who scores.
        folder: of ``scores-RANK.jsonl``; None keeps scores in memory.
        rank: process that writes; all files of the folder are read.
        limit: seconds per step.
        max_failed: share of failures at which training stops.

    Attributes:
        asked: steps that the scorer was asked for.
        failed: those that it failed at.
        first_failure: in words.
    """

    def __init__(
        self, scorer: Scorer, folder: Path | None, *, rank: int = 0, limit: float = 60.0, max_failed: float = 0.2
    ) -> None:
        self.scorer, self.limit, self.max_failed = scorer, limit, max_failed
        self.asked = self.failed = 0
        self.first_failure = ""
        self._known: dict[str, float] = {}
        self._own = None if folder is None else folder / f"scores-{rank}.jsonl"
        for path in sorted(folder.glob("scores-*.jsonl")) if folder is not None and folder.is_dir() else ():
            self._read(path)

    def __call__(self, actions: Sequence[Action]) -> list[float | None]:
        """The validities in order.

        Raises:
            UserError: more than the share ``max_failed`` of the steps failed, and these steps can no longer mend that;
                the scorer itself raised one, because it can score no step at all; or the disk is full.
        """
        keys = [self._key(action) for action in actions]
        todo = {key: action for key, action in zip(keys, actions, strict=True) if key not in self._known}
        asked = self.asked + len(todo)
        while todo:
            some = {key: todo.pop(key) for key in list(todo)[:_TOGETHER]}
            together = self._try(list(some.values()))
            if together is not None:
                self._take(list(some), together, asked)
                continue
            for key, action in some.items():
                self._take([key], self._try([action]) or [None], asked)
        return [self._known.get(key) for key in keys]

    def _take(self, keys: Sequence[str], scores: Sequence[float | None], asked: int) -> None:
        """Keep some scores; stop where too many of the steps failed that will have been ``asked``."""
        self._keep({key: v for key, v in zip(keys, scores, strict=True) if v is not None})
        self.asked += len(keys)
        self.failed += sum(v is None for v in scores)
        if asked >= _JUDGED_FROM and self.failed > self.max_failed * asked:
            raise UserError(
                f"The scorer {self.scorer.name} failed at {self.failed} of {self.asked} steps, and "
                f"{asked - self.asked} are to come: more than the share steps.max_failed = {self.max_failed:g} allows. "
                f"The first failure: {self.first_failure.rstrip('.')}. Mend the scorer or its server; scores found so "
                "far are kept."
            )

    def _try(self, actions: Sequence[Action]) -> list[float | None] | None:
        """Scores of some steps; None where all failed at once."""
        try:
            scores = _within(self.limit * len(actions), lambda: self.scorer.score(actions))
            if len(scores) != len(actions):
                raise ValueError(f"gave {len(scores)} scores to {len(actions)} steps")
        except UserError:
            raise  # a key that is refused, no sandbox: no step could be scored, and it says what to do
        except Exception as error:  # noqa: BLE001 - a scorer is code, a model or a server of somebody else
            if len(actions) == 1:  # more are asked again, one by one
                self._note(f"{type(error).__name__}: {error}")
            return None
        return [self._checked(v) for v in scores]

    def _checked(self, v: float) -> float | None:
        if 0 <= v <= 1:  # not true of NaN
            return float(v)
        self._note(f"a score of {v}, which is not between 0 and 1")
        return None

    def _note(self, failure: str) -> None:
        if not self.first_failure:
            self.first_failure = failure
            print(f"the scorer {self.scorer.name} failed, and that step has weight 1: {failure}", flush=True)

    def _key(self, action: Action) -> str:
        row = action.row
        problem = row.prompt if isinstance(row.prompt, str) else [dict(message) for message in row.prompt]
        asked = [problem, row.answer, row.answer_type, row.choices]
        whole = [self.scorer.name, *asked, action.prefix, action.step, action.reference, action.ends]
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()

    def _keep(self, scores: dict[str, float]) -> None:
        self._known |= scores
        if self._own is None or not scores:
            return
        try:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            with self._own.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps([key, v]) + "\n" for key, v in scores.items())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(f"{self._own} cannot be written: {error.strerror}. Free some space and go on.") from error

    def _read(self, path: Path) -> None:
        """What a file holds; a line that was cut off in a kill is taken out, so that the next one starts afresh."""
        whole, _, rest = path.read_text(encoding="utf-8").rpartition("\n")
        try:
            self._known |= dict(json.loads(line) for line in whole.splitlines())
        except ValueError as error:
            raise UserError(f"{path} is damaged: {error}. Delete it; its steps are scored again.") from error
        if rest and path == self._own:
            os.truncate(path, len(whole.encode()) + bool(whole))


def _within(limit: float, call: Callable[[], T]) -> T:
    """The result of a call, in a thread of its own.

    Raises:
        TimeoutError: it takes longer than ``limit`` seconds; and whatever the call raises.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(call())
        except Exception as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(limit)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"took longer than {limit:g} s")
    return results[0]
