"""Many requests: concurrency, rate, money, and what one bad request does to the others."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from isodistill.errors import TeacherError, UserError
from isodistill.teachers.asking import Limits, ask_all
from isodistill.teachers.base import Answer, Messages, Sampling
from isodistill.teachers.pace import Prices, backoff
from isodistill.teachers.store import AnswerStore, Request

LIMITS = {"t": Limits(workers=4, tries=3)}


class Scripted:
    """A teacher that does what a function says."""

    def __init__(self, say: Callable[[str], Answer], name: str = "t") -> None:
        self.name = name
        self._say = say
        self.asked: list[tuple[str, float]] = []
        self.most, self._now, self._lock = 0, 0, threading.Lock()

    def answer(self, messages: Messages, sampling: Sampling) -> Answer:
        with self._lock:
            self.asked.append((messages[-1]["content"], time.monotonic()))
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return self._say(messages[-1]["content"])
        finally:
            with self._lock:
                self._now -= 1


def requests(n: int, teacher: str = "t", max_tokens: int = 10) -> list[Request]:
    return [
        Request(teacher, "plain", [{"role": "user", "content": str(i)}], Sampling(max_tokens=max_tokens))
        for i in range(n)
    ]


def fine(text: str) -> Answer:
    return Answer((text,), ("stop",), 1, 10)


@pytest.fixture
def store(tmp_path: Path) -> AnswerStore:
    return AnswerStore(tmp_path / "traces.jsonl", {})


def test_requests_run_side_by_side_and_equal_ones_once(store: AnswerStore) -> None:
    teacher = Scripted(lambda text: time.sleep(0.01) or fine(text))
    assert ask_all({"t": teacher}, requests(20) * 2, store, LIMITS) == []
    assert sorted(int(text) for text, _ in teacher.asked) == list(range(20))
    assert teacher.most == 4
    assert ask_all({"t": teacher}, requests(21), store, LIMITS) == []
    assert len(teacher.asked) == 21


def test_the_rate_is_kept(store: AnswerStore) -> None:
    teacher, start = Scripted(fine), time.monotonic()
    ask_all({"t": teacher}, requests(5), store, {"t": Limits(workers=4, per_minute=1200)})
    times = sorted(at for _, at in teacher.asked)
    assert all(at - start >= 0.05 * i for i, at in enumerate(times))  # late on a busy machine, never early


def test_a_wait_that_the_server_asks_for_holds_all_workers(store: AnswerStore) -> None:
    first = threading.Event()

    def say(text: str) -> Answer:
        if not first.is_set():
            first.set()
            raise TeacherError("slow down", retry=True, after=0.2)
        time.sleep(0.01)
        return fine(text)

    teacher = Scripted(say)
    ask_all({"t": teacher}, requests(30), store, {"t": Limits(workers=3)})
    first_at = teacher.asked[0][1]
    assert sum(at - first_at < 0.19 for _, at in teacher.asked) <= 3  # those that had gone out already


def test_a_bad_request_is_refused_and_the_others_answered(store: AnswerStore) -> None:
    def say(text: str) -> Answer:
        if text in ("3", "4"):
            raise TeacherError("never", retry=text == "4")
        return fine(text)

    teacher = Scripted(say)
    refused = ask_all({"t": teacher}, requests(8), store, LIMITS)
    assert sorted((r.request.messages[0]["content"], r.reason) for r in refused) == [("3", "never"), ("4", "never")]
    assert [text for text, _ in teacher.asked].count("4") == 3
    assert len(store) == 6


def test_a_defect_of_the_teacher_stops_the_run_and_keeps_the_answers(store: AnswerStore) -> None:
    def say(text: str) -> Answer:
        if text == "5":
            raise UserError("no model")
        return fine(text)

    with pytest.raises(UserError, match="no model"):
        ask_all({"t": Scripted(say)}, requests(8), store, {"t": Limits(workers=1)})
    assert len(store) == 5


def test_the_cost_limit_is_never_passed_and_can_be_raised(store: AnswerStore) -> None:
    prices = {"t": Limits(workers=4, prices=Prices(0.0, 1e5))}  # a token of an answer costs 0.1
    teacher = Scripted(lambda text: time.sleep(0.002) or Answer((text,), ("stop",), 1, 5))
    with pytest.raises(UserError, match=r"cost limit is reached: 3\.0000 of teach\.max_cost 3\.6"):
        ask_all({"t": teacher}, requests(20), store, prices, max_cost=3.6)
    assert len(store) == 6  # at 0.5 each; a seventh might cost 1.0
    ask_all({"t": teacher}, requests(20), store, prices, max_cost=11)
    assert len(store) == len(teacher.asked) == 20


def test_two_teachers_do_not_wait_for_each_other(store: AnswerStore) -> None:
    slow, fast = Scripted(lambda text: time.sleep(0.05) or fine(text), "slow"), Scripted(fine, "fast")
    asked = requests(4, "slow") + requests(40, "fast")
    limits = {name: Limits(workers=1) for name in ("slow", "fast")}
    ask_all({"slow": slow, "fast": fast}, asked, store, limits)
    assert fast.asked[-1][1] < slow.asked[-1][1]


def test_ctrl_c_lets_the_requests_in_flight_come_back(store: AnswerStore, capfd: pytest.CaptureFixture[str]) -> None:
    def say(text: str) -> Answer:
        if text == "5":
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return fine(text)

    teacher = Scripted(say)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        ask_all({"t": teacher}, requests(100), store, LIMITS)
    assert "requests in flight" in capfd.readouterr().out
    assert len(store) == len(teacher.asked) < 15


def test_backoff_grows_is_spread_and_stands_above_the_wait_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isodistill.teachers.pace._FIRST_WAIT_S", 0.5)
    rng = random.Random(0)
    for failures, most in ((1, 0.5), (3, 2.0), (20, 60.0)):
        waits = [backoff(failures, None, rng) for _ in range(400)]
        assert 0 <= min(waits) < 0.05 * most
        assert 0.95 * most < max(waits) <= most
    assert 7 <= backoff(1, 7.0, rng) <= 7.5
