"""A maker of prediction records, with every field that a test does not care about filled in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from isodistill.evaluation import Record

PLAIN: dict[str, Any] = {
    "run_id": "run-0",
    "method": "erm",
    "tier": None,
    "stage": "after",
    "split": "id",
    "structure_id": "rates/mul-sub",
    "answer_type": "number",
    "seed_train": 0,
    "seed_data": 0,
    "seed_hparam": None,
    "step": 200,
    "prompt_hash": "ab12",
    "output": "The answer is 19.",
    "n_new_tokens": 8,
    "finish": "eos",
    "parsed": "19",
    "gold": "19",
    "canon_parsed": "19",
    "canon_gold": "19",
    "outcome": "correct",
    "parser_version": "1",
    "sampling": {"temperature": 0.0},
}


@pytest.fixture
def make_record() -> Callable[..., Record]:
    """``make_record(set_id, domain, answer="19")``; an answer of None is truncated, any other than 19 is wrong."""

    def make(set_id: str | None, domain: str | None, answer: str | None = "19", **changed: Any) -> Record:
        outcome = "correct" if answer == "19" else "truncated" if answer is None else "wrong"
        fields = {"item_id": f"{set_id}/{domain}", "parsed": answer, "canon_parsed": answer, "outcome": outcome}
        return Record(**(PLAIN | fields | {"set_id": set_id, "domain": domain} | changed))

    return make
