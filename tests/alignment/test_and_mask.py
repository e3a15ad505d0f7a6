"""AND-mask against a loop over entries that follows the formula and nothing else."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from isodistill.alignment import ANDMask

from .bench import BOUNDS, Bench, K, drawn

PRESENTS = [[True] * K, [True, False, True], [True] * K, [False, True, True]]


def averaged(history: list[Tensor], presents: list[list[bool]], decay: float) -> list[list[float]]:
    """Running means of the domains seen so far, by explicit weights decay^age, entry by entry."""
    averages = []
    for k in range(len(history[0])):
        steps = [s for s, present in enumerate(presents) if present[k]]
        if not steps or (decay == 0 and steps[-1] != len(presents) - 1):
            continue
        newest_first = steps[::-1]
        weights = [decay**age if decay else float(age == 0) for age in range(len(newest_first))]
        averages.append(
            [
                sum(w * float(history[s][k, j]) for w, s in zip(weights, newest_first, strict=True)) / sum(weights)
                for j in range(history[0].shape[1])
            ]
        )
    return averages


def agreements(averages: list[list[float]]) -> list[float]:
    signs = [[(x > 0) - (x < 0) for x in e] for e in averages]
    return [abs(sum(column)) / len(averages) for column in zip(*signs, strict=True)]


def renormed(mask: list[float]) -> list[float]:
    means = [sum(mask[a:b]) / (b - a) for a, b in itertools.pairwise(BOUNDS)]
    return [m / (means[0 if j < BOUNDS[1] else 1] + 1e-10) for j, m in enumerate(mask)]


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize(("decay", "t"), [(0.0, 1.0), (0.7, 1.0), (0.7, 0.5), (0.0, 0.3)])
def test_every_step_is_the_mean_where_enough_domains_agree(decay: float, t: float, renorm: bool, apply_to: str) -> None:
    bench = Bench("and_mask", grad_ema=decay, t=t, renorm=renorm, apply_to=apply_to)
    history: list[Tensor] = []
    for step, present in enumerate(PRESENTS):
        history.append(drawn(step))
        found, metrics = bench.step(history[-1], present)
        mask = [float(c >= t) for c in agreements(averaged(history, PRESENTS[: step + 1], decay))]
        if not renorm:
            assert metrics["mask_density"] == pytest.approx(sum(mask) / 17, abs=1e-6)
        mask = renormed(mask) if renorm else mask
        rows = [k for k in range(K) if present[k]]
        expected = [mask[j] * sum(float(history[-1][k, j]) for k in rows) / len(rows) for j in range(17)]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=2e-4, atol=2e-5)


def test_threshold_zero_is_erm_bit_for_bit() -> None:
    for apply_to in ("gradient", "update"):
        bench, plain = Bench("and_mask", t=0.0, apply_to=apply_to), Bench("iga", tau=0.0)
        for step in range(3):
            bench.step(drawn(step))
            plain.step(drawn(step))
        assert torch.equal(bench.parameters(), plain.parameters())


@pytest.mark.parametrize("domains", [2, 4, 6])
def test_noise_passes_at_the_rate_of_equal_signs(domains: int) -> None:
    noise = torch.randn(domains, 200_000, generator=torch.Generator().manual_seed(0))
    assert float(ANDMask().mask(noise).mean()) == pytest.approx(2.0 ** (1 - domains), abs=5e-3)


@pytest.mark.parametrize(("t", "passing"), [(0.6, 2), (0.2, 3), (0.61, 1)])
def test_an_agreement_equal_to_the_threshold_passes(t: float, passing: int) -> None:
    signs = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, -1], [1, -1, -1]], dtype=torch.float32)  # c 1, .6, .2
    assert int(ANDMask(t=t).mask(signs).sum()) == passing


@pytest.mark.parametrize("control", ["random", "uniform"])
def test_controls_keep_the_length_of_the_step(control: str) -> None:
    lengths = []
    for chosen in ("none", control):
        found, metrics = Bench("and_mask", grad_ema=0.0, control=chosen, apply_to="gradient").step(drawn(0))
        lengths.append([float(found.norm()), metrics["step_ratio"]])
    assert lengths[1] == pytest.approx(lengths[0], rel=1e-4)
    assert lengths[0][1] < 0.99


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t": 1.5}, r"alignment\.t is 1\.5"),
        ({"t": -0.1}, r"alignment\.t is -0\.1"),
        ({"grad_ema": 1.0}, r"alignment\.grad_ema is 1\.0"),
        ({"apply_to": "both"}, r"alignment\.apply_to is 'both'; choose one of auto, gradient, update"),
        ({"control": "half"}, r"alignment\.control is 'half'"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ANDMask(**options)
