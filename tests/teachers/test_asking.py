"""Many requests: concurrency, rate, money, and what one bad request does to the others."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
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
    with pytest.raises(UserError, match=r"cost limit is reached: 3\.0000 of max_cost 3\.6"):
        ask_all({"t": teacher}, requests(20), store, prices, max_cost=3.6)
    assert len(store) == 6  # at 0.5 each; a seventh might cost 1.0
    ask_all({"t": teacher}, requests(20), store, prices, max_cost=11)
    assert len(store) == len(teacher.asked) == 20


class Single(Scripted):
    """Gives one text at a time, whatever it is asked for."""

    def answer(self, messages: Messages, sampling: Sampling) -> Answer:
        return replace(super().answer(messages, sampling), more=sampling.n > 1)


def several(n: int) -> list[Request]:
    return [replace(r, sampling=replace(r.sampling, n=n, temperature=1.0)) for r in requests(1)]


def test_rate_and_money_are_of_every_sending_not_of_every_request(store: AnswerStore) -> None:
    teacher, start = Single(fine), time.monotonic()
    prices = {"t": Limits(workers=4, per_minute=1200, prices=Prices(1e5, 0.0))}  # a token of the prompt costs 0.1
    with pytest.raises(UserError, match=r"cost limit is reached: 0\.3000 of max_cost 0\.35"):
        ask_all({"t": teacher}, several(4), store, prices, max_cost=0.35)
    assert len(teacher.asked) == 3
    assert all(at - start >= 0.05 * i for i, (_, at) in enumerate(teacher.asked))


def test_texts_that_came_before_a_failure_are_kept_and_only_the_rest_is_asked_again(store: AnswerStore) -> None:
    def say(text: str) -> Answer:
        if len(teacher.asked) == 4:
            raise TeacherError("never", retry=False)
        return fine(f"{text} {len(teacher.asked)}")

    teacher, (asked,) = Single(say), several(4)
    (refused,) = ask_all({"t": teacher}, [asked], store, LIMITS)
    assert refused.request == asked
    assert asked.key not in store
    assert store.get(asked.key).texts == ("0 1", "0 2", "0 3")
    store.close()
    with AnswerStore(store.path, {}) as again:
        assert ask_all({"t": teacher}, [asked], again, LIMITS) == []
        assert again.get(asked.key).texts == ("0 1", "0 2", "0 3", "0 5")
        assert again.get(asked.key).completion_tokens == 40


@pytest.mark.parametrize("retry", [False, True])
def test_what_was_refused_before_is_no_sign_of_a_teacher_at_fault(store: AnswerStore, retry: bool) -> None:
    def say(text: str) -> Answer:
        if int(text) >= 35:
            raise TeacherError("never", retry=retry)
        return fine(text)

    stops, limits = 0, {"t": Limits(workers=2, tries=2)}
    for _ in range(20):
        try:
            refused = ask_all({"t": Scripted(say)}, requests(60), store, limits)
            break
        except UserError:
            stops += 1  # nothing but the bad ones was left, three of them in a row
    assert len(refused) == 25
    assert (stops > 0) == retry
    again = Scripted(say)
    assert len(ask_all({"t": again}, requests(61), store, limits)) == 26
    assert again.asked[0][0] == "60"  # a new one goes before those
    lines = store.path.read_text().splitlines()
    assert len(lines) == 1 + 35 + 26


def test_a_request_that_fails_while_others_are_answered_says_nothing_about_the_teacher(store: AnswerStore) -> None:
    def say(text: str) -> Answer:
        if int(text) < 3:
            n_tries = [asked for asked, _ in teacher.asked].count(text)
            while n_tries == 2 and len(store) < 9:  # all three are given up after the last answer
                time.sleep(0.005)
            raise TeacherError("oops", retry=True)
        return fine(text)

    teacher = Scripted(say)
    assert len(ask_all({"t": teacher}, requests(12), store, {"t": Limits(workers=4, tries=2)})) == 3


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
