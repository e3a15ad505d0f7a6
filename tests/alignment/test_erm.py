"""ERM counts every domain alike, pooled ERM every token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isodistill.alignment import ALIGNMENTS, ERM, PooledERM
from isodistill.models.lora import DomainGradients

counts = st.lists(st.integers(0, 5000), min_size=1, max_size=6).filter(any)


@settings(deadline=None)
@given(counts, st.integers(0, 99))
def test_erm_is_the_mean_of_domain_means(n: list[int], seed: int) -> None:
    losses = [torch.rand(k, generator=torch.Generator().manual_seed(seed + i)).double() for i, k in enumerate(n)]
    weights = ERM().domain_weights(torch.tensor(n, dtype=torch.float64))
    found = sum(float(w) * float(x.sum()) for w, x in zip(weights, losses, strict=True))
    means = [float(x.mean()) for x in losses if len(x)]
    assert found == pytest.approx(sum(means) / len(means))
    assert all(float(w) == 0 for w, k in zip(weights, n, strict=True) if k == 0)


@settings(deadline=None)
@given(counts)
def test_pooled_erm_is_the_mean_over_tokens(n: list[int]) -> None:
    weights = PooledERM().domain_weights(torch.tensor(n, dtype=torch.float64))
    assert weights.tolist() == pytest.approx([1 / sum(n)] * len(n))


def test_the_one_row_of_gradients_becomes_grad() -> None:
    module = torch.nn.Linear(3, 2)
    gradients = DomainGradients.allocate(module, 1)
    gradients.flat.copy_(torch.arange(8.0))
    assert ERM().update(gradients, torch.ones(1, dtype=torch.bool)) == {}
    assert torch.equal(module.weight.grad, torch.arange(6.0).view(2, 3))
    assert torch.equal(module.bias.grad, torch.tensor([6.0, 7.0]))


def test_erm_has_no_state() -> None:
    assert ERM().state_dict() == {}
    ERM().load_state_dict({})
    with pytest.raises(ValueError, match=r"ERM has no state, but the checkpoint holds \['step'\]"):
        ERM().load_state_dict({"step": torch.zeros(())})
    assert ALIGNMENTS.keys() >= {"erm", "erm_pooled", "iga"}
