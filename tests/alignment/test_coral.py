"""CORAL against dense means and covariances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from isodistill.alignment import CORAL, SeenTokens


def ready(lam: float = 1.0) -> CORAL:
    coral = CORAL(lam=lam)
    coral.setup(layers=[], total_steps=10, adaptive=True, seed=0)
    return coral


def drawn(sizes: list[int], d: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    domains = torch.tensor([k for k, n in enumerate(sizes) for _ in range(n)])
    s = (
        torch.randn(len(domains), d, generator=generator, dtype=torch.float64) * (1 + domains[:, None])
        + domains[:, None]
    )
    return s, domains, torch.ones_like(domains)


def oracle(s: Tensor, domains: Tensor) -> float:
    groups = [s[domains == k] for k in domains.unique()]
    values = []
    for i in range(len(groups)):
        for j in range(i):
            value = (groups[i].mean(0) - groups[j].mean(0)).square().mean()
            if min(len(groups[i]), len(groups[j])) > 1:
                value = value + (groups[i].T.cov() - groups[j].T.cov()).square().mean()
            values.append(float(value))
    return sum(values) / len(values)


@pytest.mark.parametrize("sizes", [[4, 4, 4], [2, 7], [3, 0, 5], [1, 4, 2], [1, 1]])
def test_the_penalty_is_that_of_dense_covariances(sizes: list[int]) -> None:
    s, domains, tokens = drawn(sizes)
    assert float(ready().penalty(s, domains, tokens)) == pytest.approx(oracle(s, domains), rel=1e-10)


def test_equal_samples_cost_nothing_and_one_domain_pulls_at_nothing() -> None:
    s, _, tokens = drawn([4])
    twice, domains = torch.cat([s, s.flip(0)]), torch.tensor([0] * 4 + [1] * 4)
    assert float(ready().penalty(twice, domains, torch.cat([tokens, tokens]))) == pytest.approx(0.0, abs=1e-12)
    assert not ready().pull(s, torch.zeros(4, dtype=torch.long), tokens, 2).any()


def test_the_pull_is_the_derivative() -> None:
    s, domains, tokens = drawn([3, 2, 4])
    assert torch.autograd.gradcheck(lambda x: ready().penalty(x, domains, tokens), s.clone().requires_grad_())
    x = s.clone().requires_grad_()
    (expected,) = torch.autograd.grad(3 * ready().penalty(x, domains, tokens), x)
    torch.testing.assert_close(ready(lam=3.0).pull(s, domains, tokens, 3), expected)


def test_features_are_means_over_the_positions_of_each_sequence() -> None:
    hidden = torch.arange(10.0).view(5, 2)
    seen = SeenTokens(
        hidden, torch.zeros(5).long(), torch.tensor([0, 0, 0, 1, 1]), torch.ones(2), lambda h: h, torch.eye(2)
    )
    assert ready().statistics(seen).tolist() == [[2.0, 3.0], [7.0, 8.0]]


def test_a_negative_strength_is_named() -> None:
    with pytest.raises(ValueError, match=r"alignment\.lam is -1"):
        CORAL(lam=-1.0)
