"""Templates: what the teacher reads, apart from what the student reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from isodistill.data.load import load_rows
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.evaluation.traces import judge
from isodistill.teachers.prompts import BUILTIN_TEMPLATES, builtin_examples, load_template, one_answer_sentence

ROW = Row(id="r", prompt="Add 2 and 3.", answer="5", answer_type="number", domain="law")


@pytest.mark.parametrize("name", BUILTIN_TEMPLATES)
def test_every_template_of_ours_asks_the_problem_last(name: str) -> None:
    messages = load_template(name).messages(ROW)
    assert messages[-1]["role"] == "user"
    assert "Add 2 and 3." in messages[-1]["content"]
    assert name == "plain" or "a plain number" in messages[-1]["content"]


def test_worked_examples_hold_and_are_shown_but_never_of_the_problem_itself() -> None:
    examples = load_rows(builtin_examples(), max_refused=0).rows
    assert all(judge(row, row.completion or "", "stop", check_steps=True).verdict == "correct" for row in examples)
    template = load_template("few_shot", examples)
    shown = template.messages(ROW)[-1]["content"]
    assert all(str(row.completion) in shown for row in examples)
    assert str(examples[0].completion) not in template.messages(examples[0])[-1]["content"]


def test_a_template_is_an_editable_file_with_its_own_key(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("[system]\nYou know {{ domain }}.\n\n[user]\nQ: {{ prompt }}\n")
    template = load_template(str(path))
    assert template.messages(ROW) == [
        {"role": "system", "content": "You know law."},
        {"role": "user", "content": "Q: Add 2 and 3."},
    ]
    path.write_text("[user]\nQ: {{ prompt }}?\n")
    assert load_template(str(path)).id != template.id


def test_earlier_turns_of_a_conversation_stay() -> None:
    talk = (
        {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Add 2 and 3."},
    )  # fmt: skip
    assert load_template("plain").messages(Row(id="r", prompt=talk)) == list(talk)


@pytest.mark.parametrize(
    ("text", "words"),
    [("Q: {{ prompt }}", "must begin with a line"), ("[user]\n{{ promt }}", "'promt' is undefined"),
     ("[user]\n{{ prompt }}\n[assistant]\nA:", "must be the user's"), ("[user]\n{{ prompt", "cannot be filled in")],
)  # fmt: skip
def test_a_bad_template_is_explained(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "mine.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        load_template(str(tmp_path / "mine.txt")).messages(ROW)


def test_an_unknown_template_is_named() -> None:
    with pytest.raises(UserError, match="There is no template zero_shoot"):
        load_template("zero_shoot")


def test_rationale_and_label_become_one_trace() -> None:
    assert one_answer_sentence("Rationale: 2 and 3\nmake 5.\n\n**Answer:** 5.") == "2 and 3\nmake 5. The answer is 5."
    assert one_answer_sentence(" 2 + 3 = 5. The answer is 5. \n") == "2 + 3 = 5. The answer is 5."
