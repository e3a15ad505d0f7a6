"""SAND-mask against a loop over entries that follows the formula and nothing else."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from isodistill.alignment import SANDMask

from .bench import BOUNDS, Bench, K, drawn
from .test_and_mask import PRESENTS, agreements, averaged, renormed


def oracle(averages: list[list[float]], t: float, k: float, norm: str) -> list[float]:
    """The mask (17,), entry by entry."""
    c, n = agreements(averages), len(averages)
    V = []
    for column in zip(*averages, strict=True):
        mean = sum(column) / n
        V.append(sum((x - mean) ** 2 for x in column) / n if len(set(column)) > 1 else 0.0)
    mask = []
    for a, b in itertools.pairwise(BOUNDS):
        unit = sum(V[a:b]) / (b - a) if norm == "tensor_mean" else 1.0
        mask += [max(0.0, math.tanh(k * unit / V[j] * (c[j] - t))) if V[j] else float(c[j] > t) for j in range(a, b)]
    return mask


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
@pytest.mark.parametrize("norm", ["tensor_mean", "none"])
@pytest.mark.parametrize(("decay", "t", "k", "renorm"), [(0.0, 0.5, 10.0, False), (0.7, 0.3, 0.1, True)])
def test_every_step_is_the_damped_mean(
    decay: float, t: float, k: float, renorm: bool, norm: str, apply_to: str
) -> None:
    bench = Bench("sand_mask", grad_ema=decay, t=t, k=k, norm=norm, renorm=renorm, apply_to=apply_to)
    history: list[Tensor] = []
    for step, present in enumerate(PRESENTS):
        history.append(drawn(step))
        found, _ = bench.step(history[-1], present)
        mask = oracle(averaged(history, PRESENTS[: step + 1], decay), t, k, norm)
        mask = renormed(mask) if renorm else mask
        rows = [k for k in range(K) if present[k]]
        expected = [mask[j] * sum(float(history[-1][k, j]) for k in rows) / len(rows) for j in range(17)]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-3, atol=2e-4)


def test_the_normaliser_keeps_the_mask_from_being_all_or_nothing() -> None:
    g = drawn(0, 1e-4)
    masks = {norm: SANDMask(k=0.3, t=0.2, norm=norm).mask(g) for norm in ("tensor_mean", "none")}
    soft = {norm: float(((m > 0) & (m < 1)).float().mean()) for norm, m in masks.items()}
    assert soft == {"none": 0.0, "tensor_mean": pytest.approx(0.5, abs=0.4)}


def test_threshold_one_is_refused_since_it_trains_nothing() -> None:
    with pytest.raises(ValueError, match=r"alignment\.t is 1\.0.*nothing would train"):
        SANDMask(t=1.0)


def test_entries_without_spread_get_the_limit() -> None:
    g = torch.tensor([[1.0, 1.0, 0.0, 2.0], [1.0, 1.0, 0.0, -2.0]])
    assert SANDMask().mask(g).tolist() == [1.0, 1.0, 0.0, 0.0]
    assert SANDMask().mask(torch.zeros(2, 4)).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t": -0.5}, r"alignment\.t is -0\.5"),
        ({"k": 0.0}, r"alignment\.k is 0\.0"),
        ({"norm": "mean"}, r"alignment\.norm is 'mean'; choose one of tensor_mean, none"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SANDMask(**options)
