"""pi, the distribution over answer options, against plain forwards of a tiny student."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from isodistill.data.encode import encode_prompt
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.evaluation import PredictionLog, split_results
from isodistill.evaluation.answer import Provenance, answer_rows
from isodistill.evaluation.backends import LocalBackend
from isodistill.evaluation.generate import Generation, generate
from isodistill.evaluation.options import distributions, option_tokens, watched_tokens
from isodistill.evaluation.parse import answer_start
from isodistill.isomers.generate import generate_sets
from isodistill.models.load import Student
from isodistill.models.tiny import make_tiny_student

PROVENANCE = Provenance("run", "erm", None, seed_train=0, seed_data=0, step=0, stage="after")


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return generate_sets(n_sets=6, seed=0, families=["ordering", "inclusion", "rates"], domains=["law", "medicine"])


@pytest.fixture(scope="module")
def student(rows: list[Row]) -> Student:
    return make_tiny_student([f"{row.prompt}\n{row.completion}" for row in rows], 0)


def kind(rows: list[Row], answer_type: str) -> Row:
    return next(row for row in rows if row.answer_type == answer_type)


def by_forward(student: Student, context: list[int], options: list[list[int]]) -> np.ndarray:
    with torch.no_grad():
        logits = student.model(torch.tensor([context])).logits[0, -1].double()
    mass = np.array([float(logits[option].exp().sum()) for option in options])
    return mass / mass.sum()


def said(student: Student, row: Row, text: str) -> tuple[Generation, list[int]]:
    """A generation that says ``text``, with the logits of its steps from plain forwards."""
    prompt = encode_prompt(row, student.tokenizer, 400)
    tokens = student.tokenizer(text, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = student.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 :]
    watch = watched_tokens([option_tokens(row, student.tokenizer)])
    return Generation(tokens, student.tokenizer.decode(tokens), "eos", None, logits[:, watch].numpy()), prompt


def pi_of(student: Student, row: Row, text: str) -> tuple[list[float] | None, list[int], list[list[int]]]:
    generation, prompt = said(student, row, text)
    options = option_tokens(row, student.tokenizer)
    assert options is not None
    args = (LocalBackend(student.model), student.tokenizer, [row], [prompt], [options], [generation])
    return distributions(*args, batch_size=4)[0], prompt, options


def test_options_are_told_by_tokens_of_their_own(rows: list[Row], student: Student) -> None:
    options = option_tokens(kind(rows, "yesno"), student.tokenizer)
    assert options is not None
    texts = [{student.tokenizer.decode([token]).strip().lower() for token in option} for option in options]
    assert texts[0] <= {"yes", "true"}
    assert texts[1] <= {"no", "false"}
    choice = kind(rows, "choice")
    assert choice.choices is not None
    letters = option_tokens(choice, student.tokenizer)
    assert letters is not None
    assert [student.tokenizer.decode([option[0]]).strip() for option in letters] == list("ABC"[: len(choice.choices)])
    assert option_tokens(kind(rows, "number"), student.tokenizer) is None
    assert option_tokens(replace(choice, choices=None), student.tokenizer) is None


def test_pi_is_read_where_the_last_marked_answer_begins(rows: list[Row], student: Student) -> None:
    row = kind(rows, "choice")
    before = "The answer is B. No, once more. The answer is"
    pi, prompt, options = pi_of(student, row, f"{before} A.")
    context = prompt + student.tokenizer(before, add_special_tokens=False)["input_ids"]
    assert pi == pytest.approx(by_forward(student, context, options), abs=1e-5)
    assert pi != pytest.approx(pi_of(student, row, "The answer is A.")[0], abs=1e-5)


def test_an_output_without_an_answer_is_asked_for_one(rows: list[Row], student: Student) -> None:
    row = kind(rows, "yesno")
    for text in ("All nurses rest, so", ""):
        pi, prompt, options = pi_of(student, row, text)
        context = prompt + student.tokenizer(text, add_special_tokens=False)["input_ids"]
        context += student.tokenizer("\nThe answer is", add_special_tokens=False)["input_ids"]
        assert pi == pytest.approx(by_forward(student, context, options), abs=1e-5)


def test_a_context_without_room_cuts_the_output_and_never_the_prompt(rows: list[Row], student: Student) -> None:
    row = kind(rows, "yesno")
    context = student.model.config.max_position_embeddings
    pi, _, _ = pi_of(student, row, "so and so " * 20)
    assert pi is not None
    generation, prompt = said(student, row, "so")
    options = option_tokens(row, student.tokenizer)
    for length, known in ((context - 20, True), (context - 2, False)):
        long = (prompt * context)[:length]
        found = distributions(
            LocalBackend(student.model), student.tokenizer, [row], [long], [options], [generation], batch_size=1
        )
        assert (found[0] is not None) == known


@pytest.mark.parametrize(
    ("output", "answer_type", "rest"),
    [
        ("So 4. The answer is **(B)**.", "choice", "B)**."),
        (r"The answer is \boxed{yes}", "yesno", "yes}"),
        ("The answer is no. The answer is: maybe", "yesno", "no. The answer is: maybe"),
        ("no answer", "yesno", None),
    ],
)
def test_where_an_answer_begins(output: str, answer_type: Any, rest: str | None) -> None:
    start = answer_start(output, answer_type)
    assert (None if start is None else output[start:]) == rest


def test_watching_keeps_the_logits_of_every_step(rows: list[Row], student: Student) -> None:
    prompts = [encode_prompt(row, student.tokenizer, 400) for row in rows[:5]]
    plain = generate(student.model, student.tokenizer, prompts, max_new_tokens=6, batch_size=2)
    seen = generate(student.model, student.tokenizer, prompts, max_new_tokens=6, batch_size=2, watch=[7, 300])
    for prompt, a, b in zip(prompts, plain, seen, strict=True):
        assert a.tokens == b.tokens
        assert a.watched.shape == (len(b.watched), 0)
        with torch.no_grad():
            logits = student.model(torch.tensor([prompt + b.tokens])).logits[0, len(prompt) - 1 :]
        assert b.watched == pytest.approx(logits[: len(b.watched), [7, 300]].numpy(), abs=1e-3)


def test_records_hold_pi_of_the_rows_with_options_and_give_lcs_js(
    rows: list[Row], student: Student, tmp_path: Any
) -> None:
    log = PredictionLog(tmp_path / "predictions.jsonl")
    common: dict[str, Any] = {"split": "id", "max_new_tokens": 12, "batch_size": 4}
    assert answer_rows(LocalBackend(student.model), student.tokenizer, rows, log, PROVENANCE, **common) == []
    for record in log.read():
        assert (record.pi is None) == (record.answer_type == "number")
        assert record.pi is None or sum(record.pi) == pytest.approx(1, abs=1e-8)
    result = split_results(log.read(), resamples=100)
    assert 0 < result["lcs_js"] < 1
    low, high = result["lcs_js_ci95"]
    assert low <= result["lcs_js"] <= high


def test_sampled_answers_are_numbered_seeded_and_gone_on_with(rows: list[Row], student: Student, tmp_path: Any) -> None:
    common: dict[str, Any] = {"split": "id", "max_new_tokens": 6, "batch_size": 4, "temperature": 1.0, "n_samples": 3}

    def answers(name: str, seed_train: int = 0) -> PredictionLog:
        log = PredictionLog(tmp_path / name / "predictions.jsonl")
        provenance = replace(PROVENANCE, seed_train=seed_train)
        answer_rows(LocalBackend(student.model), student.tokenizer, rows[:5], log, provenance, **common)
        return log

    log = answers("a")
    records = log.read()
    assert [(r.item_id, r.sample) for r in records] == [(row.id, j) for row in rows[:5] for j in range(3)]
    assert len({r.output for r in records[:3]}) > 1
    assert records[0].sampling == {"temperature": 1.0, "max_new_tokens": 6}
    assert [r.output for r in answers("b").read()] == [r.output for r in records]
    assert [r.output for r in answers("c", seed_train=1).read()] != [r.output for r in records]
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join(lines[:7]))
    with pytest.raises(UserError, match="unequally many answers"):
        split_results(log.read(), resamples=10)
    assert [r.output for r in answers("a").read()] == [r.output for r in records]
    result = split_results(log.read(), resamples=10)
    assert (result["n_samples"], list(result["pass_at_k"])) == (3, ["1", "2", "3"])
