"""Answers on disk: found again, never doubled, repaired after a kill, refused to others."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from isodistill.errors import UserError
from isodistill.teachers.base import Answer, Sampling
from isodistill.teachers.store import AnswerStore, Request

MADE_WITH = {"teachers": ["server:m"], "template": "plain-1", "sampling": {"temperature": 0.0}}


def request(number: int = 0, **sampling: float) -> Request:
    return Request(
        "server:m",
        "plain-1",
        [{"role": "user", "content": f"é {number}"}],
        Sampling(**sampling),  # type: ignore[arg-type]
    )


def answer(text: str = "The answer is 1.") -> Answer:
    return Answer((text, "b\n"), ("stop", "length"), 3, 4, (({"a": -0.5},), ({"b": -1.0}, {"c": -2.0})))


def filled(path: Path, n: int) -> None:
    with AnswerStore(path, MADE_WITH) as store:
        for number in range(n):
            store.add(request(number), answer(f"{number}"), 0.5)


def test_answers_are_found_again_as_they_were(tmp_path: Path) -> None:
    filled(tmp_path / "run" / "traces.jsonl", 3)
    with AnswerStore(tmp_path / "run" / "traces.jsonl", MADE_WITH) as store:
        assert len(store) == 3
        assert store.get(request(2).key) == answer("2")
        assert request(3).key not in store
        with pytest.raises(ValueError, match="has an answer already"):
            store.add(request(1), answer(), 0.1)


def test_the_key_is_of_teacher_template_messages_and_sampling() -> None:
    base = request()
    others = [
        request(1),
        request(temperature=0.5),
        request(seed=1),
        Request("server:n", base.template, base.messages, base.sampling),
        Request(base.teacher, "plain-2", base.messages, base.sampling),
    ]
    assert len({r.key for r in [base, *others]}) == len(others) + 1
    assert request().key == base.key


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_partial_last_line_is_cut_off_and_asked_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "traces.jsonl"
    filled(path, 3)
    os.truncate(path, path.stat().st_size - cut)
    with AnswerStore(path, MADE_WITH) as store:
        assert len(store) == 2
        store.add(request(2), answer("again"), 0.1)
    with AnswerStore(path, MADE_WITH) as store:
        assert [store.get(request(i).key).texts[0] for i in range(3)] == ["0", "1", "again"]


def test_a_store_cut_within_its_first_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    filled(path, 0)
    os.truncate(path, 5)
    filled(path, 1)
    assert len(path.read_text().splitlines()) == 2


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    filled(path, 3)
    lines = path.read_text().split("\n")
    lines[2] = lines[2][:30]
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"traces.jsonl, line 3 is not JSON"):
        AnswerStore(path, MADE_WITH)


def test_the_store_of_another_recipe_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    filled(path, 1)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"another recipe: sampling was \{'temperature': 0.0\} and is"):
        AnswerStore(path, MADE_WITH | {"sampling": {"temperature": 0.7}})
    assert path.read_bytes() == before
    path.write_text('{"prompt": "rows, not answers"}\n')
    with pytest.raises(UserError, match="is no store of answers"):
        AnswerStore(path, MADE_WITH)


def test_a_file_of_the_user_is_refused_untouched_even_without_a_line_end(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text('{"prompt": "mine", "completion": "all that I have"}')
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"is no store of answers.*stays as it is"):
        AnswerStore(path, MADE_WITH)
    assert path.read_bytes() == before


@pytest.mark.parametrize("field", ["key", "texts", "finish_reasons", "completion_tokens"])
def test_a_line_that_is_no_answer_is_named(tmp_path: Path, field: str) -> None:
    path = tmp_path / "traces.jsonl"
    filled(path, 2)
    lines = path.read_text().splitlines()
    record = json.loads(lines[1])
    del record[field]
    path.write_text("\n".join([lines[0], json.dumps(record), lines[2], ""]))
    with pytest.raises(UserError, match=rf"line 2 is no answer: its {field} is missing"):
        AnswerStore(path, MADE_WITH)


def test_a_stored_half_of_a_surrogate_pair_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    filled(path, 1)
    path.write_text(path.read_text().replace('"texts": ["0"', r'"texts": ["\ud800 5"'))
    with AnswerStore(path, MADE_WITH) as store:
        assert store.get(request(0).key).texts[0].encode() == "\ufffd 5".encode()


def hold(path: Path, ready: multiprocessing.synchronize.Event) -> None:  # type: ignore[name-defined]
    with AnswerStore(path, MADE_WITH):
        ready.set()
        multiprocessing.Event().wait(60)


def test_two_processes_cannot_write_one_store(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    path = tmp_path / "traces.jsonl"
    process = context.Process(target=hold, args=(path, ready))
    process.start()
    try:
        assert ready.wait(30)
        with pytest.raises(UserError, match="Another process is writing"):
            AnswerStore(path, MADE_WITH)
    finally:
        process.kill()
        process.join()
    filled(path, 1)  # a killed process holds nothing


def test_a_full_disk_keeps_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "traces.jsonl"
    filled(path, 1)
    write = os.write

    def half(descriptor: int, content: bytes) -> int:
        if len(content) > 20:
            return write(descriptor, bytes(content)[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with AnswerStore(path, MADE_WITH) as store:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(UserError, match=r"No space left on device.*free some space"):
                store.add(request(1), answer(), 0.1)
        assert request(1).key not in store
        store.add(request(2), answer("2"), 0.1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("key") for line in lines[1:]] == [request(0).key, request(2).key]
