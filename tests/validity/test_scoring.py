"""A scorer that raises, hangs, or returns no number; and scores that are asked for once."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.validity import Action, Scoring


def actions(*steps: str) -> list[Action]:
    return [Action(Row(id="a", prompt="?"), "", step, "", ends=False) for step in steps]


class Scripted:
    """Scores a number as it is; ``raise`` and ``hang`` as they say."""

    name = "scripted"

    def __init__(self) -> None:
        self.seen: list[str] = []

    def score(self, actions: Sequence[Action]) -> list[float]:
        self.seen += [a.step for a in actions]
        if any(a.step == "raise" for a in actions):
            raise RuntimeError("no")
        if any(a.step == "hang" for a in actions):
            threading.Event().wait(60)
        return [float(a.step) for a in actions][: None if "short" not in self.seen else -1]


def test_failures_cost_no_other_step_its_score(tmp_path: Path) -> None:
    scoring = Scoring(Scripted(), tmp_path, limit=0.05)
    assert scoring(actions("0.5", "raise", "1", "nan", "1.5", "-0.1")) == [0.5, None, 1.0, None, None, None]
    assert scoring(actions("0", "hang", "0.25")) == [0.0, None, 0.25]
    assert (scoring.asked, scoring.failed) == (9, 5)
    assert "RuntimeError: no" in scoring.first_failure


def test_what_no_other_step_could_mend_stops_at_once(tmp_path: Path) -> None:
    class Refused:
        name = "refused"

        def score(self, actions: Sequence[Action]) -> list[float]:
            raise UserError("the server refuses the key in KEY.")

    scoring = Scoring(Refused(), tmp_path, max_failed=1.0)
    with pytest.raises(UserError, match="refuses the key"):
        scoring(actions("0.5"))


def test_too_many_failures_stop_with_the_first_reason(tmp_path: Path) -> None:
    scoring = Scoring(Scripted(), tmp_path, max_failed=0.2)
    good = [str(n / 100) for n in range(16)]
    scoring(actions(*good, "nan", "2", "3", "4"))  # a fifth is allowed
    with pytest.raises(UserError, match=r"5 of 21 steps.*max_failed = 0.2.*a score of nan"):
        scoring(actions("5"))


def test_a_scorer_that_always_hangs_is_found_out_before_all_steps_have_hung(tmp_path: Path) -> None:
    scripted, began = Scripted(), time.monotonic()
    scoring = Scoring(scripted, tmp_path, limit=0.01, max_failed=0.1)
    with pytest.raises(UserError, match=r"failed at 21 of 21 steps, and 179 are .*longer than 0.01 s"):
        scoring([replace(action, prefix=str(n)) for n, action in enumerate(actions(*["hang"] * 200))])
    assert time.monotonic() - began < 5  # two calls of sixteen and 21 of one, not 200


def test_early_failures_that_later_steps_mend_stop_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scoring = Scoring(Scripted(), tmp_path, max_failed=0.2)
    good = [str(n / 100) for n in range(40)]
    assert scoring(actions("raise", "nan", "2", "3", "4", *good))[:6] == [None] * 5 + [0.0]
    assert capsys.readouterr().out == "the scorer scripted failed, and that step has weight 1: RuntimeError: no\n"


def test_scores_are_asked_for_once_and_failures_again(tmp_path: Path) -> None:
    first = Scripted()
    Scoring(first, tmp_path)(actions("0.5", "nan"))
    again = Scripted()
    scoring = Scoring(again, tmp_path, rank=1)
    assert scoring(actions("0.5", "nan", "0.5")) == [0.5, None, 0.5]
    assert again.seen == ["nan"]
    again.name = "another"
    assert Scoring(again, tmp_path)(actions("0.5")) == [0.5]
    assert again.seen == ["nan", "0.5"]


def test_a_cut_line_is_taken_out_and_a_damaged_one_told(tmp_path: Path) -> None:
    scripted = Scripted()
    Scoring(scripted, tmp_path)(actions("0.5", "0.25"))
    file = tmp_path / "scores-0.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    assert Scoring(scripted, tmp_path)(actions("0.5", "0.25")) == [0.5, 0.25]
    assert scripted.seen == ["0.5", "0.25", "0.25"]
    assert Scoring(scripted, tmp_path)(actions("0.5", "0.25")) == [0.5, 0.25]
    assert len(scripted.seen) == 3
    file.write_text("{\n")
    with pytest.raises(UserError, match="damaged"):
        Scoring(scripted, tmp_path)
