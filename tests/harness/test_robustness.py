"""Robustness metrics on samples as the harness logs them, written by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from isodistill.errors import UserError
from isodistill.evaluation.generate import Generation
from isodistill.harness.robustness import records_of, robustness


def opened(number: int, domain: str, said: str, right: float, **more: Any) -> dict[str, Any]:
    doc = {"template": f"t{number}", "field": domain, "gold": "24", "answer_type": "number"}
    return {
        "doc_id": number * 10 + len(domain), "doc": doc, "target": "24", "arguments": [(f"{number} {domain}?", {})],
        "resps": [[f"It is {said}"]], "filtered_resps": [said], "filter": "strict", "metrics": ["exact_match"],
        "prompt_hash": "h", "exact_match": right,
    } | more  # fmt: skip


COLUMNS = {"set_id": "template", "domain": "field", "answer": "gold"}
SAMPLES = [
    opened(1, "law", "24", 1.0), opened(1, "medicine", "24.0", 1.0),
    opened(2, "law", "7", 0.0), opened(2, "medicine", "7", 0.0),
    opened(3, "law", "24", 1.0), opened(3, "medicine", "[invalid]", 0.0),
]  # fmt: skip


def test_sets_and_domains_come_from_the_columns_of_the_documents() -> None:
    told = robustness(SAMPLES, metric="exact_match", columns=COLUMNS)
    assert told["n_sets"] == 3
    assert told["acc_by_domain"] == {"law": pytest.approx(2 / 3), "medicine": pytest.approx(1 / 3)}
    assert told["all_correct"] == pytest.approx(1 / 3)
    assert told["transfer"] == pytest.approx(1 / 2)
    assert told["agreement"] == pytest.approx(2 / 3)  # 24 and 24.0 agree, so do both wrong 7s; [invalid] with nobody
    assert told["unparsed"] == pytest.approx(1 / 6)
    alone = robustness(SAMPLES, metric="exact_match")
    assert alone["n_sets"] == 0
    assert alone["acc_macro"] == pytest.approx(1 / 2)


def test_an_answer_that_was_cut_off_is_truncated_and_lengths_are_those_of_the_answers() -> None:
    cut = Generation([1, 2, 3], "It is", "length", None, None)  # type: ignore[arg-type]
    records = records_of(SAMPLES, metric="exact_match", columns=COLUMNS, generations={"3 medicine?": cut})
    assert [record.outcome for record in records] == ["correct"] * 2 + ["wrong"] * 2 + ["correct", "truncated"]
    assert [record.n_new_tokens for record in records] == [0] * 5 + [3]
    assert records[-1].parsed is None
    assert records[-1].output == "It is [invalid]"


def test_options_give_the_likeliest_letter_and_its_distribution() -> None:
    sample = opened(1, "law", "", 1.0) | {
        "arguments": [("?", " a"), ("?", " b")], "resps": [[(-1.0, False)], [(-2.0, False)]],
        "filtered_resps": [(-1.0, False), (-2.0, False)], "target": 0,
    }  # fmt: skip
    (record,) = records_of([sample], metric="exact_match", columns=COLUMNS)
    assert (record.parsed, record.gold, record.answer_type, record.outcome) == ("A", "A", "choice", "correct")
    assert record.pi == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)])


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match="no metric 'acc'; it has exact_match"):
        records_of(SAMPLES, metric="acc")
    two = [*SAMPLES, opened(1, "law", "24", 1.0, filter="flexible")]
    with pytest.raises(UserError, match="name one of flexible, strict as filter_name"):
        records_of(two, metric="exact_match")
    assert len(records_of(two, metric="exact_match", filter_name="strict")) == 6
    with pytest.raises(UserError, match="let the harness log its samples"):
        records_of([], metric="acc")
