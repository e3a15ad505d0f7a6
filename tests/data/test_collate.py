from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isodistill.data.collate import collate
from isodistill.data.encode import Encoded

DOMAINS = ("law", "medicine", "science")


def encoded(row_id: str, domain: str, length: int, n_prompt: int, weight: float = 1.0, **more: Any) -> Encoded:
    ids = list(range(1, length + 1))
    given = {"set_id": None} | more
    return Encoded(row_id, domain, input_ids=ids, labels=[-100] * n_prompt + ids[n_prompt:], weight=weight, **given)


def test_by_hand() -> None:
    batch = collate([encoded("a", "science", 2, 1), encoded("b", "law", 3, 2, 0.5)], DOMAINS, pad_id=9)
    assert batch["input_ids"].tolist() == [[1, 2, 3], [1, 2, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 3], [-100, 2, -100]]
    assert batch["domain_index"].tolist() == [0, 2]
    assert batch["weights"].tolist() == [0.5, 1.0]
    assert {name: tensor.dtype for name, tensor in batch.items()} == {
        "input_ids": torch.int64,
        "attention_mask": torch.int64,
        "labels": torch.int64,
        "domain_index": torch.int64,
        "weights": torch.float32,
        "set_index": torch.int64,
        "answer_at": torch.int64,
        "place": torch.int64,
    }


def test_members_that_were_handed_out_together_share_a_number() -> None:
    """Two traces of one set are two groups, since their domains come again; rows without a set have none."""
    rows = [("s1", "law"), ("s1", "science"), ("s1", "law"), ("s1", "science"), ("s2", "medicine"), (None, "law")]
    given_rows = [
        encoded(str(i), domain, 5, 1, float(i), set_id=set_id, answer_at=(2, 4) if i == 4 else None)
        for i, (set_id, domain) in enumerate(rows)
    ]
    batch = collate(given_rows, DOMAINS, pad_id=0)
    found = dict(zip(batch["weights"].int().tolist(), batch["set_index"].tolist(), strict=True))
    assert found == {0: 0, 1: 0, 2: 1, 3: 1, 4: 2, 5: -1}
    spans = dict(zip(batch["weights"].int().tolist(), batch["answer_at"].tolist(), strict=True))
    assert spans == {i: [2, 4] if i == 4 else [0, 0] for i in range(6)}


@given(rows=st.lists(st.tuples(st.sampled_from(DOMAINS), st.integers(1, 9)), min_size=1, max_size=12))
def test_rows_survive_and_domains_are_slices(rows: list[tuple[str, int]]) -> None:
    given_rows = [encoded(str(i), domain, length, length // 2, float(i)) for i, (domain, length) in enumerate(rows)]
    batch = collate(given_rows, DOMAINS, pad_id=0)
    seen = []
    for n in range(len(rows)):
        length = int(batch["attention_mask"][n].sum())
        row = given_rows[int(batch["weights"][n])]
        assert batch["input_ids"][n, :length].tolist() == row.input_ids
        assert batch["labels"][n, :length].tolist() == row.labels
        assert batch["labels"][n, length:].eq(-100).all()
        seen.append((DOMAINS.index(row.domain), int(row.weight)))
    assert seen == sorted(seen)  # by domain, and in the given order within one
    assert batch["domain_index"].tolist() == [k for k, _ in seen]


def test_an_unknown_domain_and_an_empty_batch() -> None:
    with pytest.raises(ValueError, match="row 'a' is of domain 'sports', expected one of"):
        collate([encoded("a", "sports", 2, 1)], DOMAINS, pad_id=0)
    with pytest.raises(ValueError, match="at least one row"):
        collate([], DOMAINS, pad_id=0)
