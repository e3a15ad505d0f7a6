"""Majority and naive Bayes against a count by hand and an independent loop."""

from __future__ import annotations

import math
import random

import pytest

from isodistill.benchmarks import trivial_answers, trivial_scores
from isodistill.data.rows import Row


def row(name: str, prompt: str, answer: str, split: str = "train", domain: str | None = None) -> Row:
    return Row(id=name, prompt=prompt, answer=answer, answer_type="yesno", split=split, domain=domain)


TRAIN = [row("1", "red red cat", "yes"), row("2", "red dog", "yes"), row("3", "blue dog", "no")]


def test_by_hand() -> None:
    # yes: prior 2/3, words red 3, cat 1, dog 1 of 5; no: 1/3, blue 1, dog 1 of 2; V = 4.
    # "Blue, blue!": yes 2/3 (1/9)^2 = .0082, no 1/3 (2/6)^2 = .037. "dog": yes 2/3 2/9 = .148, no 1/3 2/6 = .111.
    test = [row("4", "Blue, blue!", "no"), row("5", "dog", "no"), row("6", "unheard of", "yes")]
    assert trivial_answers(TRAIN, test) == {"majority": ["yes"] * 3, "naive_bayes": ["no", "yes", "yes"]}


def test_each_kind_of_question_has_its_own_counts() -> None:
    two = Row(id="7", prompt="red", answer="B", answer_type="choice", choices=("x", "y"))
    three = Row(id="8", prompt="red", answer="C", answer_type="choice", choices=("x", "y", "z"))
    number = Row(id="9", prompt="red", answer="4", answer_type="number")
    assert trivial_answers([*TRAIN, two, three], [two, three, number])["majority"] == ["B", "C", None]


def test_ties_go_to_the_answer_that_sorts_first() -> None:
    assert trivial_answers([TRAIN[0], TRAIN[2]], [row("4", "of", "no")])["majority"] == ["no"]


def test_naive_bayes_is_the_product_of_the_textbook() -> None:
    rng = random.Random(0)
    words = [f"w{n}" for n in range(12)]
    train = [row(str(n), " ".join(rng.choices(words, k=8)), rng.choice(["yes", "no"])) for n in range(40)]
    test = [row(str(n), " ".join(rng.choices([*words, "new"], k=6)), "yes") for n in range(40, 80)]

    def probability(prompt: str, answer: str) -> float:
        texts = [str(r.prompt).split() for r in train if r.answer == answer]
        pooled = [word for text in texts for word in text]
        value = len(texts) / len(train)
        for word in prompt.split():
            if word in words:
                value *= (pooled.count(word) + 1) / (len(pooled) + len(words))
        return value

    expected = ["yes" if probability(str(r.prompt), "yes") > probability(str(r.prompt), "no") else "no" for r in test]
    assert trivial_answers(train, test)["naive_bayes"] == expected
    assert len(set(expected)) == 2


def test_scores_are_means_over_domains() -> None:
    test = [row("4", "red", "yes", "id", "a"), row("5", "red", "yes", "id", "a"), row("6", "red", "no", "id", "b")]
    scores = trivial_scores([*TRAIN, *test])
    assert scores == {"id": {"majority": 0.5, "naive_bayes": 0.5}}
    assert math.isclose(scores["id"]["majority"], 0.5)


def test_an_answer_that_no_kind_has_is_wrong() -> None:
    number = Row(id="9", prompt="red", answer="4", answer_type="number", split="ood")
    assert trivial_scores([*TRAIN, number]) == {"ood": {"majority": 0.0, "naive_bayes": 0.0}}
    assert pytest.approx(0) == trivial_scores([*TRAIN, number])["ood"]["majority"]
