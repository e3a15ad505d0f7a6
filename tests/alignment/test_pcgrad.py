"""PCGrad steps along projected vectors, in an order that is drawn, saved and alike everywhere."""

from __future__ import annotations

import pytest
import torch

from isodistill.alignment import PCGrad
from isodistill.numerics.gram import gram, pcgrad_weights

from .bench import Bench, drawn


def conflicting() -> torch.Tensor:
    g = drawn(0, domains=3)
    return g - 1.2 * g.mean(0)


def test_the_direction_is_the_mean_of_projected_gradients() -> None:
    g = conflicting()
    expected = [
        pcgrad_weights(gram(g), [[a, 3 - a], [b, 2 - b], [c, 1 - c]]) @ g.double()
        for a in (1, 2)
        for b in (0, 2)
        for c in (0, 1)
    ]
    found = Bench("pcgrad").direction(g).double()
    assert any(torch.allclose(found, e, rtol=1e-4, atol=1e-4) for e in expected)
    assert not torch.allclose(found, g.double().mean(0), rtol=1e-2, atol=1e-2)


def test_what_conflicts_is_taken_away_and_what_agrees_is_kept() -> None:
    """Two domains, written out: the projections of (1, 0) and (-1, 1) on each other's normals."""
    apart = torch.tensor([[1.0, 0.0], [-1.0, 1.0]])
    torch.testing.assert_close(_direction(apart), torch.tensor([0.25, 0.75]))
    alike = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(_direction(alike), torch.tensor([1.0, 0.5]))


def _direction(g: torch.Tensor) -> torch.Tensor:
    alignment = PCGrad()
    alignment.setup(layers=[], total_steps=1, adaptive=True, seed=0)
    w = alignment.weights(g, torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.bool))
    return w.to(g) @ g


def test_the_order_is_drawn_by_the_seed() -> None:
    def directions(seed: int) -> torch.Tensor:
        bench = Bench("pcgrad", seed=seed)
        return torch.stack([bench.direction(conflicting()) for _ in range(8)])

    assert torch.equal(directions(1), directions(1))
    assert not torch.equal(directions(1), directions(2))


def test_the_sum_is_k_times_the_mean() -> None:
    mean, total = (Bench("pcgrad", reduction=r).direction(conflicting()) for r in ("mean", "sum"))
    torch.testing.assert_close(total, 3 * mean)


def test_an_unknown_reduction_is_named() -> None:
    with pytest.raises(ValueError, match=r"alignment\.reduction is 'max'; choose one of mean, sum"):
        PCGrad(reduction="max")
