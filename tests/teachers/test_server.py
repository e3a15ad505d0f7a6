"""A teacher behind a server: what is sent, what comes back, and every fault that a network and a server commit."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from isodistill.errors import TeacherError, UserError
from isodistill.teachers.asking import Limits, ask_all
from isodistill.teachers.base import Messages, Sampling
from isodistill.teachers.server import ServerTeacher
from isodistill.teachers.store import AnswerStore, Request

from .conftest import KEY
from .loopback import FAULTS, Adder, Faulty, Handler, completion, serving

MESSAGES: Messages = [{"role": "user", "content": "Add 2 and 3."}]


def teacher(url: str, timeout: float = 5.0) -> ServerTeacher:
    return ServerTeacher("server:adder", "adder", url, "TEACHER_KEY", timeout)


def requests(n: int) -> list[Request]:
    return [
        Request("server:adder", "plain-1", [{"role": "user", "content": f"Add {i} and 3."}], Sampling())
        for i in range(n)
    ]


def test_what_is_sent_and_what_comes_back(adder: tuple[Any, str]) -> None:
    server, url = adder
    answer = teacher(url).answer(MESSAGES, Sampling(0.7, 0.9, 40, 2, 2**31 + 5, ("END",)))
    assert answer.texts == ("2 + 3 = 5. The answer is 5.",) * 2
    assert answer.finish_reasons == ("stop", "stop")
    assert (answer.prompt_tokens, answer.completion_tokens, answer.logprobs) == (10, 10, None)
    (sent,) = server.asked
    assert sent.pop("messages") == MESSAGES
    assert sent == {
        "model": "adder", "max_tokens": 40, "temperature": 0.7, "top_p": 0.9, "n": 2, "seed": 5, "stop": ["END"],
        "key": f"Bearer {KEY}",
    }  # fmt: skip


class OneAtATime(Adder):
    """A server that knows no n, as transformers serve and Ollama."""

    def do_POST(self) -> None:
        request = json.loads(self.body())
        self.asked.append(request)
        self.reply(completion([f"text {request['seed']}"]))


def test_a_server_that_knows_no_n_is_asked_for_the_rest(adder: tuple[Any, str], tmp_path: Path) -> None:
    asked = Request("server:adder", "plain-1", MESSAGES, Sampling(temperature=1.0, n=3, seed=7))
    with serving(OneAtATime) as (server, url), AnswerStore(tmp_path / "traces.jsonl", {}) as store:
        ask_all({"server:adder": teacher(url)}, [asked], store, {"server:adder": Limits()})
        answer = store.get(asked.key)
    assert answer.texts == ("text 7", "text 8", "text 9")
    assert (answer.prompt_tokens, answer.completion_tokens) == (30, 15)
    assert [request.get("n", 1) for request in server.asked] == [3, 2, 1]


class Renaming(Adder):
    """A model that wants its limit under the new name, as OpenAI's reasoning models do."""

    def do_POST(self) -> None:
        request = json.loads(self.body())
        self.asked.append(request)
        if "max_tokens" in request:
            words = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead."
            self.reply(json.dumps({"error": {"message": words, "code": "unsupported_parameter"}}).encode(), 400)
        else:
            self.reply(completion([f"at most {request['max_completion_tokens']}"]))


def test_a_limit_is_sent_under_the_name_that_the_server_wants(
    adder: tuple[Any, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked, limits = requests(20), {"server:adder": Limits(workers=4, tries=1)}
    with serving(Renaming) as (server, url), AnswerStore(tmp_path / "traces.jsonl", {}) as store:
        assert ask_all({"server:adder": teacher(url)}, asked, store, limits) == []
        assert {store.get(request.key).texts for request in asked} == {("at most 512",)}
    assert (
        sum("max_tokens" in request for request in server.asked) <= 4
    )  # those that were in flight at the first answer
    assert caplog.text.count("wants max_completion_tokens instead of max_tokens") == 1


class Odd(Handler):
    """Answers with JSON that is valid and not what the API says."""

    odd: Any = None

    def do_POST(self) -> None:
        self.body()
        choice = {"message": {"content": "5"}, "finish_reason": "stop"}
        self.reply(json.dumps({"choices": [choice], **self.odd(choice)}).encode())


@pytest.mark.parametrize("usage", [[1, 2], "many", {"prompt_tokens": "3", "completion_tokens": -1}, None])
def test_a_usage_that_tells_nothing_costs_no_answer(adder: tuple[Any, str], usage: Any) -> None:
    with serving(Odd, odd=staticmethod(lambda choice: {"usage": usage})) as (_, url):
        answer = teacher(url).answer(MESSAGES, Sampling())
    assert (answer.texts, answer.prompt_tokens, answer.completion_tokens) == (("5",), None, None)


def test_a_text_may_come_in_parts_and_other_content_is_refused(adder: tuple[Any, str]) -> None:
    def content(value: Any) -> Any:
        return staticmethod(lambda choice: choice["message"].update(content=value) or {})

    parts = [{"type": "text", "text": "The answer "}, {"type": "text", "text": "is 5."}]
    with serving(Odd, odd=content(parts)) as (_, url):
        assert teacher(url).answer(MESSAGES, Sampling()).texts == ("The answer is 5.",)
    for value, kind in ((5, "int"), ([{"type": "image"}], "list")):
        with serving(Odd, odd=content(value)) as (_, url), pytest.raises(TeacherError, match=f"but a {kind}"):
            teacher(url).answer(MESSAGES, Sampling())


def test_half_a_surrogate_pair_becomes_a_mark_that_files_can_hold(adder: tuple[Any, str]) -> None:
    odd = staticmethod(lambda choice: choice["message"].update(content="\ud800 The answer is 5.") or {})
    with serving(Odd, odd=odd) as (_, url):
        assert teacher(url).answer(MESSAGES, Sampling()).texts == ("\ufffd The answer is 5.",)


@pytest.mark.parametrize("wait", ["100000", "inf", "Fri, 31 Dec 2099 23:59:59 GMT"])
def test_a_wait_without_bound_is_cut_and_told(
    adder: tuple[Any, str], tmp_path: Path, wait: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Busy(Adder):
        def do_POST(self) -> None:
            if self.seen:
                super().do_POST()
                return
            self.body()
            self.seen.append(None)  # type: ignore[attr-defined]
            self.reply(b"{}", 429, Retry_After=wait)

    monkeypatch.setattr("isodistill.teachers.pace._LONGEST_HOLD_S", 0.05)
    monkeypatch.setattr("isodistill.teachers.pace._TOLD_FROM_S", 0.01)
    with serving(Busy) as (_, url), AnswerStore(tmp_path / "traces.jsonl", {}) as store:
        ask_all({"server:adder": teacher(url)}, requests(1), store, {"server:adder": Limits()})
        assert len(store) == 1
    assert "server:adder asks to wait" in caplog.text
    assert "the longest that is waited" in caplog.text


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_tried_again_until_the_answer_is_whole(adder: tuple[Any, str], tmp_path: Path, fault: str) -> None:
    plan = iter([fault, fault, None])
    with serving(Faulty, upstream=adder[1], plan=lambda: next(plan), hang_s=0.6) as (proxy, url):
        asked = requests(1)
        with AnswerStore(tmp_path / "traces.jsonl", {}) as store:
            assert ask_all({"server:adder": teacher(url, 0.3)}, asked, store, {"server:adder": Limits(tries=3)}) == []
            assert store.get(asked[0].key).texts == ("0 + 3 = 3. The answer is 3.",)
    assert proxy.seen == [fault, fault, None]
    assert KEY not in (tmp_path / "traces.jsonl").read_text()


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_in_words_and_can_be_tried_again(adder: tuple[Any, str], fault: str) -> None:
    with serving(Faulty, upstream=adder[1], plan=lambda: fault, hang_s=0.6) as (_, url):
        start = time.monotonic()
        with pytest.raises(TeacherError) as error:
            teacher(url, 0.3).answer(MESSAGES, Sampling())
    assert error.value.retry
    assert time.monotonic() - start < 2
    words = {
        "too_many": "status 429: slow down", "error": "status 500: oops", "hang": "no answer within 0.3 s",
        "drop": "the connection broke", "malformed": "not JSON", "no_choices": "no choices", "no_message": "no message",
        "encoding": "not UTF-8", "drip": "no whole answer within 0.3 s", "html": "not JSON",
        "drip_head": "no answer within 0.3 s", "drip_error": "no answer within 0.3 s",
    }  # fmt: skip
    assert words[fault] in str(error.value)
    assert error.value.after == (0.05 if fault == "too_many" else None)


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_the_key_is_in_no_log_even_when_everything_is_logged(
    adder: tuple[Any, str], fault: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy = serving(Faulty, upstream=adder[1], plan=lambda: fault, hang_s=0.6)
    with proxy as (_, url), contextlib.suppress(TeacherError):
        teacher(url, 0.3).answer(MESSAGES, Sampling())
    assert any(record.name.startswith("openai") for record in caplog.records)
    assert KEY not in caplog.text


class Refusing(Handler):
    """Answers with one status and its words, the key among them."""

    status = 401
    words = "wrong"

    def do_POST(self) -> None:
        self.body()
        key = self.headers["Authorization"].removeprefix("Bearer ")
        self.reply(json.dumps({"error": {"message": f"{self.words} {key}"}}).encode(), self.status)


@pytest.mark.parametrize(
    ("status", "words", "kind"),
    [
        (401, "refuses the key in the environment variable TEACHER_KEY", UserError),
        (403, "may not use this model", UserError),
        (404, "model 'adder': not found", UserError),
        (400, "status 400: the context overflows", TeacherError),
        (422, "status 422", TeacherError),
        (503, "status 503", TeacherError),
    ],
)
def test_a_refusal_is_for_the_run_the_request_or_the_try(
    adder: tuple[Any, str], status: int, words: str, kind: type[Exception]
) -> None:
    with serving(Refusing, status=status, words="the context overflows") as (_, url), pytest.raises(kind) as error:
        teacher(url).answer(MESSAGES, Sampling())
    assert words in str(error.value)
    assert KEY not in str(error.value)
    if isinstance(error.value, TeacherError):
        assert error.value.retry == (status >= 500)


def test_half_a_key_is_not_told_where_a_long_error_is_cut(adder: tuple[Any, str]) -> None:
    with serving(Refusing, status=400, words="x" * 480 + " Bearer") as (_, url), pytest.raises(TeacherError) as error:
        teacher(url).answer(MESSAGES, Sampling())
    assert KEY[:4] not in str(error.value)


class Echo(Handler):
    """Answers with the header that holds the key."""

    def do_POST(self) -> None:
        self.body()
        self.reply(completion([f"You sent {self.headers['Authorization']}."]))


def test_a_key_that_the_server_echoes_is_not_stored(adder: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Echo) as (_, url):
        assert teacher(url).answer(MESSAGES, Sampling()).texts == ("You sent Bearer ***.",)
        monkeypatch.setenv("TEACHER_KEY", "sent")  # a placeholder is no secret, and honest texts stay as they are
        assert teacher(url).answer(MESSAGES, Sampling()).texts == ("You sent Bearer sent.",)


def test_the_line_end_behind_a_key_is_neither_sent_nor_told(
    adder: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", f" {KEY}\n")
    with serving(Echo) as (_, url):
        assert teacher(url).answer(MESSAGES, Sampling()).texts == ("You sent Bearer ***.",)


@pytest.mark.parametrize("key", ["secret\nsecret", "secret secret", "s\u00e9cret-secret", "secret\x7fsecret"])
def test_a_key_that_no_header_can_hold_is_refused_before_any_request(
    adder: tuple[Any, str], monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("TEACHER_KEY", key)
    with pytest.raises(UserError, match="environment variable TEACHER_KEY") as error:
        teacher("http://127.0.0.1:9/v1")
    assert "secret" not in str(error.value)


def test_a_missing_key_is_told_apart_from_a_wrong_one(adder: tuple[Any, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY")
    with serving(Refusing) as (_, url), pytest.raises(UserError, match="wants a key, and there is none in"):
        teacher(url).answer(MESSAGES, Sampling())


def test_nobody_listens(adder: tuple[Any, str], tmp_path: Path) -> None:
    with serving(Adder) as (_, url):
        pass
    words = r"gave no answer to 3 requests in a row, 2 tries each.*no connection"
    with AnswerStore(tmp_path / "traces.jsonl", {}) as store, pytest.raises(UserError, match=words):
        ask_all({"server:adder": teacher(url)}, requests(50), store, {"server:adder": Limits(tries=2)})


def test_a_teacher_that_refuses_everything_stops_the_run(adder: tuple[Any, str], tmp_path: Path) -> None:
    store, words = AnswerStore(tmp_path / "traces.jsonl", {}), "refused 20 requests and answered none"
    with serving(Refusing, status=400) as (_, url), store, pytest.raises(UserError, match=words):
        ask_all({"server:adder": teacher(url)}, requests(50), store, {"server:adder": Limits()})


def test_log_probs_are_read(adder: tuple[Any, str]) -> None:
    class Telling(Handler):
        def do_POST(self) -> None:
            self.body()
            tokens = [{"token": "5", "top_logprobs": [{"token": "5", "logprob": -0.1}, {"token": "6", "logprob": -3}]}]
            choice = {"message": {"content": "5"}, "finish_reason": "stop", "logprobs": {"content": tokens}}
            self.reply(json.dumps({"choices": [choice]}).encode())

    with serving(Telling) as (_, url):
        answer = teacher(url).answer(MESSAGES, Sampling(logprobs=2))
        assert answer.logprobs == (({"5": -0.1, "6": -3.0},),)
        assert answer.prompt_tokens is None
    with pytest.raises(TeacherError, match="log-probs were asked for"):
        teacher(adder[1]).answer(MESSAGES, Sampling(logprobs=2))


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'isodistill\[teacher\]'"):
        teacher("http://127.0.0.1:1/v1")
