"""A model in this process, and traces on disk."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from isodistill.errors import TeacherError, UserError
from isodistill.evaluation.generate import generate
from isodistill.models.load import Student
from isodistill.teachers.base import Sampling
from isodistill.teachers.local import LocalTeacher
from isodistill.teachers.replay import ReplayTeacher

TEXTS = ["Add 2 and 3.", "How many briefs stay with the court?", "Anna stands left of Ben."]


@pytest.fixture
def student(tiny_model: Any, tokenizer: Any) -> Student:
    return Student(tiny_model, tokenizer, "tiny")


def ask(teacher: LocalTeacher, text: str, sampling: Sampling) -> Any:
    return teacher.answer([{"role": "user", "content": text}], sampling)


def test_greedy_answers_are_those_of_transformers(student: Student) -> None:
    sampling = Sampling(max_tokens=12)
    for text in TEXTS:
        ids = student.tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt"
        )["input_ids"]
        out = student.model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
        answer = ask(LocalTeacher("local:tiny", student, generate, 4), text, sampling)
        assert answer.texts == (student.tokenizer.decode(out, skip_special_tokens=True),)
        assert answer.prompt_tokens == ids.shape[1]
        assert answer.finish_reasons == ("length",)


def test_requests_that_wait_together_are_one_batch_and_answered_as_alone(student: Student) -> None:
    batches: list[int] = []
    gate = threading.Event()

    def slow(model: Any, tokenizer: Any, prompts: Any, **settings: Any) -> Any:
        batches.append(len(prompts))
        gate.wait(10)
        return generate(model, tokenizer, prompts, **settings)

    teacher, sampling = LocalTeacher("local:tiny", student, slow, 8), Sampling(0.8, max_tokens=6, n=2, seed=3)
    with ThreadPoolExecutor(9) as pool:
        asked = [pool.submit(ask, teacher, f"{text} {i}", sampling) for i in range(3) for text in TEXTS]
        while len(teacher._queue) + sum(batches) // 2 < len(asked):
            threading.Event().wait(0.01)
        gate.set()
        answers = [future.result() for future in asked]
    assert sum(batches) == 18
    assert len(batches) <= 3
    alone = LocalTeacher("local:tiny", student, generate, 8)
    assert answers == [ask(alone, f"{text} {i}", sampling) for i in range(3) for text in TEXTS]
    assert all(answer.texts[0] != answer.texts[1] for answer in answers)


def test_what_a_local_teacher_cannot_do(student: Student) -> None:
    teacher = LocalTeacher("local:tiny", student, generate, 4)
    with pytest.raises(TeacherError, match="more than the context of 512") as error:
        ask(teacher, "long " * 300, Sampling(max_tokens=400))
    assert not error.value.retry
    with pytest.raises(TeacherError, match="neither top_p nor log-probs"):
        ask(teacher, "Add.", Sampling(top_p=0.9))
    student.tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        LocalTeacher("local:tiny", student, generate, 4)


def test_traces_on_disk_are_found_by_their_problem(tmp_path: Path) -> None:
    rows = [
        {"question": "Which one?", "choices": ["a pen", "a cup"], "answer_type": "choice", "rationale": "It writes",
         "meta": {"model_answer": answer}}
        for answer in ("A", "B")
    ]  # fmt: skip
    path = tmp_path / "old.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"prompt": "question", "completion": "rationale", "answer": "meta.model_answer"}
    teacher = ReplayTeacher("replay:old.jsonl", str(path), columns, 0.0)
    problem = [{"role": "user", "content": "Which  one?\nA) a pen\nB) a cup\n"}]
    assert teacher.answer(problem, Sampling()).texts == ("It writes. The answer is A.",)
    assert teacher.answer(problem, Sampling(n=3)).texts[1] == "It writes. The answer is B."
    with pytest.raises(TeacherError, match="no trace of this problem"):
        teacher.answer([{"role": "user", "content": "Which two?"}], Sampling())
