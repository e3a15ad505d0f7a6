"""Fishr's running variances against loops; its gradients are in tests/training/test_penalties.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from isodistill.alignment import Fishr, SeenTokens


def ready(**options: Any) -> Fishr:
    fishr = Fishr(**{"anneal": 0.0, **options})
    fishr.setup(layers=[], total_steps=10, adaptive=True, seed=0)
    return fishr


def drawn(step: int, sizes: tuple[int, ...] = (4, 3, 2)) -> tuple[Tensor, Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(step)
    domains = torch.tensor([k for k, n in enumerate(sizes) for _ in range(n)])
    s = torch.randn(len(domains), 3, generator=generator, dtype=torch.float64) * (1 + domains[:, None])
    return s, domains, torch.ones_like(domains), len(sizes)


def variances(s: Tensor, domains: Tensor, k: int) -> list[float]:
    rows = s[domains == k].tolist()
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return [sum((row[j] - means[j]) ** 2 for row in rows) / len(rows) for j in range(3)]


@pytest.mark.parametrize("scale", ["relative", "reference", "unit"])
def test_the_penalty_is_the_spread_of_running_variances(scale: str) -> None:
    fishr, ema = ready(ema=0.8, scale=scale), 0.8
    e = [[0.0] * 3 for _ in range(3)]
    for step in range(4):
        s, domains, tokens, K = drawn(step)
        fishr.pull(s, domains, tokens, K)
        e = [
            [ema * old + (1 - ema) * v for old, v in zip(e[k], variances(s, domains, k), strict=True)] for k in range(3)
        ]
        vt = [[x / (1 - ema) if scale == "reference" else x for x in row] for row in e]
        mean = [sum(column) / 3 for column in zip(*vt, strict=True)]
        expected = sum((vt[k][j] - mean[j]) ** 2 for k in range(3) for j in range(3)) / 9
        if scale == "relative":
            expected /= sum(m**2 for m in mean) / 3
        assert fishr._metrics["penalty"] == pytest.approx(expected, rel=1e-10)


def test_the_pull_is_the_derivative_with_the_old_means_fixed() -> None:
    s, domains, tokens, K = drawn(5)
    fishr = ready(lam=2.0, scale="reference")
    fishr.pull(*drawn(4))
    e = fishr._e.clone()
    c = fishr.pull(s, domains, tokens, K)
    for i in range(len(s)):
        values = []
        for sign in (1, -1):
            fishr._e = e.clone()
            moved = s.clone()
            moved[i, 1] += sign * 1e-5
            values.append(float(fishr.penalty(moved, domains, tokens)))
        assert float(c[i, 1]) == pytest.approx(2.0 * (values[0] - values[1]) / 2e-5, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("size", [1e-5, 1e3])
def test_the_default_strength_does_not_depend_on_the_size_of_gradients(size: float) -> None:
    """The pull of c s is that of s over c, as of any loss that is a function of the variances' ratios."""
    s, domains, tokens, K = drawn(5)
    torch.testing.assert_close(
        ready().pull(size * s, domains, tokens, K) * size, ready().pull(s, domains, tokens, K), rtol=1e-8, atol=0.0
    )


def test_equal_sequences_have_no_penalty() -> None:
    s, domains, tokens, K = drawn(5)
    assert not ready().pull(torch.ones_like(s), domains, tokens, K).any()


def test_statistics_are_gradients_of_single_sequences() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, W = torch.randn(7, 4, generator=generator), torch.randn(9, 4, generator=generator)
    targets, rows = torch.arange(7), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    found = Fishr().statistics(SeenTokens(hidden, targets, rows, torch.tensor([1.0, 0.5]), lambda h: h @ W.T, W))
    for i, weight in enumerate((1.0, 0.5)):
        gamma = torch.ones(4, requires_grad=True)
        loss = weight * F.cross_entropy((gamma * hidden[rows == i]) @ W.T, targets[rows == i])
        torch.testing.assert_close(found[i], torch.autograd.grad(loss, gamma)[0], rtol=1e-4, atol=1e-6)


def test_a_domain_with_one_sequence_keeps_its_running_variance() -> None:
    fishr = ready()
    fishr.pull(*drawn(0))
    kept = fishr._e[1].clone()
    c = fishr.pull(*drawn(1, (4, 1, 2)))
    assert torch.equal(fishr._e[1], kept)
    assert not c[4].any()
    assert torch.isfinite(c).all()


def test_there_is_no_penalty_before_the_anneal_step_but_the_means_fill() -> None:
    fishr = ready(anneal=0.2)
    pulls = [float(fishr.pull(*drawn(step)).abs().sum()) for step in range(4)]
    assert pulls[:2] == [0.0, 0.0]
    assert min(pulls[2:]) > 0
    filled = ready()
    for step in range(4):
        filled.pull(*drawn(step))
    assert torch.equal(filled._e, fishr._e)


def test_running_variances_survive_a_resume(tmp_path: Path) -> None:
    whole, first, second = ready(), ready(), ready()
    pulls = [whole.pull(*drawn(step)) for step in range(5)]
    for step in range(3):
        first.pull(*drawn(step))
    save_file(first.state_dict(), tmp_path / "state.safetensors")
    second.load_state_dict(load_file(tmp_path / "state.safetensors"))
    assert all(torch.equal(second.pull(*drawn(step)), pulls[step]) for step in (3, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -1.0}, r"alignment\.lam is -1\.0"),
        ({"ema": 1.0}, r"alignment\.ema is 1\.0"),
        ({"scale": "none"}, r"alignment\.scale is 'none'; choose one of relative, reference, unit"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Fishr(**options)
