"""The conflict mask, its normalisers and its controls against the written formulas in numpy float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isodistill.numerics import (
    MaskStats,
    conflict_mask,
    domain_statistics,
    mask_stats,
    permuted_mask,
    segmented_conflict_mask,
    uniform_mask,
)

NORMS = ("none", "tensor_mean", "global_mean", "relative", "bounded", "keep_rate")
KINDS = [("exp", norm) for norm in NORMS] + [("ratio", "tensor_mean")]
SCALE_FREE = [kind for kind in KINDS if kind[1] != "none"]
GLOBAL_MEAN = 0.6


def statistics(size: int = 200, domains: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    common = rng.standard_normal(size)
    return domain_statistics(torch.tensor(common + rng.standard_normal((domains, size)), dtype=torch.float32))


def mask_of(kind: tuple[str, str], mean: torch.Tensor, variance: torch.Tensor, tau: float, scale: float = 1.0):
    form, norm = kind
    return conflict_mask(scale * mean, scale**2 * variance, tau, form, norm, global_mean=scale**2 * GLOBAL_MEAN)


def formula(kind: tuple[str, str], mean: np.ndarray, variance: np.ndarray, tau: float) -> np.ndarray:
    form, norm = kind
    eps = 1e-12 * (mean**2).mean()
    if form == "ratio":
        return mean**2 / (mean**2 + tau * variance + eps)
    if norm == "keep_rate":
        return np.exp(-tau * np.log(2) * variance / np.quantile(variance, 0.7, method="inverted_cdf"))
    unit = {
        "none": 1.0,
        "tensor_mean": variance.mean(),
        "global_mean": GLOBAL_MEAN,
        "relative": mean**2 + eps,
        "bounded": mean**2 + variance + eps,
    }[norm]
    return np.exp(-tau * variance / unit)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
def test_every_kind_is_its_formula(kind: tuple[str, str], dtype: torch.dtype, tau: float) -> None:
    mean, variance = (x.to(dtype).view(10, 20) for x in statistics())
    mask = mask_of(kind, mean, variance, tau)
    assert mask.dtype == torch.float32
    assert mask.shape == (10, 20)
    expected = formula(kind, mean.double().numpy(), variance.double().numpy(), tau)
    np.testing.assert_allclose(mask.numpy(), expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("domains", [1, 2, 3, 8])
def test_equal_domains_and_a_single_domain_are_left_alone_bit_for_bit(kind: tuple[str, str], domains: int) -> None:
    g = torch.randn(500, generator=torch.Generator().manual_seed(1)) * 1e-4
    g[:5] = 0
    mean, variance = domain_statistics(g.expand(domains, -1))
    form, norm = kind
    mask = conflict_mask(mean, variance, 3.0, form, norm, global_mean=variance.mean())
    assert torch.equal(mask, torch.ones(500))
    assert torch.equal(mask * mean, g)


@pytest.mark.parametrize("kind", KINDS)
def test_agreement_is_one_and_conflict_is_above_zero_at_the_extremes(kind: tuple[str, str]) -> None:
    mean = torch.tensor([0.0, 0.0, 1.0, 1.0, 1e-3])
    variance = torch.tensor([0.0, 1e12, 0.0, 1e12, 1e-30])
    for m in (mean, torch.zeros(5)):
        for tau in (10.0, 1e6):
            mask = mask_of(kind, m, variance, tau)
            assert mask[0] == mask[2] == 1
            assert ((mask > 0) & (mask <= 1)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_tau_zero_is_one_everywhere(kind: tuple[str, str]) -> None:
    mean, variance = statistics()
    for m in (mean, torch.zeros(200)):
        assert torch.equal(mask_of(kind, m, 1e20 * variance, 0.0), torch.ones(200))


@settings(deadline=None)
@given(kind=st.sampled_from(KINDS), tau=st.floats(0, 100), factor=st.floats(1, 100), seed=st.integers(0, 2**16))
def test_mask_lies_in_the_unit_interval_and_falls_with_tau(
    kind: tuple[str, str], tau: float, factor: float, seed: int
) -> None:
    mean, variance = statistics(50, seed=seed)
    mask = mask_of(kind, mean, variance, tau)
    assert ((mask > 0) & (mask <= 1)).all()
    assert (mask_of(kind, mean, variance, tau * factor) <= mask * (1 + 1e-6)).all()
    assert (mask * mean) @ mean >= 0


@settings(deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**16))
def test_mask_falls_with_the_variance(kind: tuple[str, str], seed: int) -> None:
    _, variance = statistics(50, seed=seed)
    mask = mask_of(kind, torch.ones(50), variance, 2.0)
    ordered = mask[variance.argsort()]
    assert (ordered.diff() <= 1e-6).all()
    assert ordered[0] > ordered[-1]


@pytest.mark.parametrize("kind", SCALE_FREE)
@pytest.mark.parametrize("scale", [1e-10, 1e-4, 1e3])
def test_mask_does_not_depend_on_the_size_of_the_gradients(kind: tuple[str, str], scale: float) -> None:
    rows = torch.randn(4, 300, generator=torch.Generator().manual_seed(2))
    masks = []
    for factor in (1.0, scale):
        mean, variance = domain_statistics(factor * rows)
        masks.append(conflict_mask(mean, variance, 3.0, *kind, global_mean=variance.mean()))
    torch.testing.assert_close(masks[1], masks[0], rtol=1e-4, atol=1e-7)
    assert 0.05 < masks[0].mean() < 0.95


@pytest.mark.parametrize("kind", SCALE_FREE)
def test_fp64_statistics_are_masked_in_fp64(kind: tuple[str, str]) -> None:
    mean, variance = (x.double() for x in statistics())
    torch.testing.assert_close(
        mask_of(kind, mean, variance, 1.0, scale=1e-25), mask_of(kind, mean, variance, 1.0), rtol=1e-5, atol=1e-7
    )


def test_printed_formula_without_normaliser_is_inert_at_real_gradient_sizes() -> None:
    mean, variance = statistics()
    assert mask_of(("exp", "none"), mean, variance, 1.0, scale=1e-4).min() > 0.9999
    assert mask_of(("exp", "none"), mean, variance, 1.0).min() < 0.5


@settings(deadline=None)
@given(order=st.permutations(range(5)), kind=st.sampled_from(KINDS))
def test_mask_does_not_depend_on_the_order_of_the_domains(order: list[int], kind: tuple[str, str]) -> None:
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(3))
    one, other = (mask_of(kind, *domain_statistics(r), 1.0) for r in (rows, rows[order]))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("rate", [0.1, 0.7, 1.0])
def test_keep_rate_keeps_its_share_also_among_ties(rate: float) -> None:
    mean, variance = statistics(1000)
    kept = (conflict_mask(mean, variance, 1.0, norm="keep_rate", keep_rate=rate) >= 0.5).sum()
    assert kept == round(1000 * rate)
    tied = conflict_mask(mean, torch.full((1000,), 3e-9), 1.0, norm="keep_rate", keep_rate=rate)
    assert torch.equal(tied, torch.full((1000,), 0.5))


def test_keep_rate_with_a_zero_quantile_is_tensor_mean() -> None:
    mean, variance = statistics(100)
    variance[:80] = 0
    mask = conflict_mask(mean, variance, 2.0, norm="keep_rate", keep_rate=0.7)
    torch.testing.assert_close(mask, conflict_mask(mean, variance, 2.0, norm="tensor_mean"))
    assert mask.min() < 0.5


def test_one_conflicting_entry_is_suppressed_by_tensor_mean() -> None:
    variance = torch.zeros(100)
    variance[7] = 1e-9
    mask = conflict_mask(torch.ones(100), variance, 1.0)
    assert 0 < mask[7] < 1e-30
    assert mask.sum() == pytest.approx(99)


def test_nan_is_not_hidden() -> None:
    for form, norm in KINDS:
        mask = conflict_mask(torch.ones(3), torch.tensor([0.0, 1.0, float("nan")]), 1.0, form, norm, global_mean=1.0)
        assert mask[2].isnan()


@pytest.mark.parametrize("kind", KINDS)
def test_segments_of_a_flat_buffer_are_masked_one_by_one(kind: tuple[str, str]) -> None:
    mean, variance = statistics(60)
    variance[20:] *= 10
    form, norm = kind
    flat = segmented_conflict_mask(mean, variance, [0, 20, 21, 60], 1.0, form, norm)
    parts = [
        conflict_mask(mean[part], variance[part], 1.0, form, norm, global_mean=variance.mean())
        for part in (slice(0, 20), slice(20, 21), slice(21, 60))
    ]
    torch.testing.assert_close(flat, torch.cat(parts), rtol=0, atol=0)


def test_a_buffer_of_many_chunks_is_masked_to_its_end() -> None:
    mean, variance = statistics(300_001)
    for kind in KINDS:
        expected = formula(kind, mean.double().numpy(), variance.double().numpy(), 1.0)
        np.testing.assert_allclose(mask_of(kind, mean, variance, 1.0).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_bad_options_are_named() -> None:
    mean, variance = statistics(6)
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="tau"):
            conflict_mask(mean, variance, bad)
    with pytest.raises(ValueError, match="form must be one of exp, ratio"):
        conflict_mask(mean, variance, 1.0, "sigmoid")
    with pytest.raises(ValueError, match="norm must be one of none"):
        conflict_mask(mean, variance, 1.0, norm="max")
    with pytest.raises(ValueError, match="keep_rate"):
        conflict_mask(mean, variance, 1.0, norm="keep_rate", keep_rate=0.0)
    with pytest.raises(ValueError, match="global_mean"):
        conflict_mask(mean, variance, 1.0, norm="global_mean")
    with pytest.raises(ValueError, match="one shape"):
        conflict_mask(mean, variance[:1], 1.0)
    for bounds in ([0, 5], [1, 6], [0, 3, 3, 6], [0, 4, 2, 6], [6], []):
        with pytest.raises(ValueError, match="bounds"):
            segmented_conflict_mask(mean, variance, bounds, 1.0)


@settings(deadline=None)
@given(exponent=st.integers(-10, 3), seed=st.integers(0, 2**16))
def test_permuted_mask_has_the_same_entries_and_step_ratio(exponent: int, seed: int) -> None:
    mean, variance = statistics(400, seed=seed)
    x = mean * 10.0**exponent
    mask = conflict_mask(mean, variance, 3.0, "ratio").view(20, 20)
    x = x.view(20, 20)
    control = permuted_mask(mask, x, torch.Generator().manual_seed(seed))
    expected, actual = (np.sort(m.double().numpy().ravel()) for m in (mask, control))
    np.testing.assert_allclose(actual / actual[-1], expected / expected[-1], rtol=1e-5)
    assert not torch.equal(control.argsort(), mask.argsort())
    masked, permuted = (np.linalg.norm((m.double() * x.double()).numpy()) for m in (mask, control))
    assert permuted == pytest.approx(masked, rel=1e-5)
    assert torch.equal(control, permuted_mask(mask, x, torch.Generator().manual_seed(seed)))


@settings(deadline=None)
@given(exponent=st.integers(-10, 3), seed=st.integers(0, 2**16))
def test_uniform_mask_is_one_constant_with_the_step_ratio(exponent: int, seed: int) -> None:
    mean, variance = statistics(100, seed=seed)
    x = mean * 10.0**exponent
    mask = conflict_mask(mean, variance, 3.0, "ratio")
    control = uniform_mask(mask, x)
    assert control.unique().numel() == 1
    assert control.shape == mask.shape
    masked, uniform = (np.linalg.norm((m.double() * x.double()).numpy()) for m in (mask, control))
    assert uniform == pytest.approx(masked, rel=1e-5)


def test_controls_of_a_zero_tensor_and_of_a_mask_of_ones_change_nothing() -> None:
    mask, zero = torch.tensor([0.5, 1.0]), torch.zeros(2)
    assert torch.equal(uniform_mask(mask, zero), torch.ones(2))
    assert torch.equal(permuted_mask(mask, zero).sort().values, mask)
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(permuted_mask(torch.ones(50), x), torch.ones(50))
    assert torch.equal(uniform_mask(torch.ones(50), x), torch.ones(50))


def test_statistics_of_a_mask_are_those_of_numpy_whole_or_in_tiles() -> None:
    mean, variance = statistics(240)
    mask, x = conflict_mask(mean, variance, 3.0, "ratio").view(24, 10), mean.view(24, 10)
    tiles = MaskStats()
    for start in range(0, 24, 7):
        tiles.update(mask[start : start + 7], x[start : start + 7])
    m, y = mask.double().numpy(), x.double().numpy()
    expected = {
        "mean": m.mean(),
        "keep_rate": (m >= 0.5).mean(),
        "step_ratio": np.linalg.norm(m * y) / np.linalg.norm(y),
        "cosine": (m * y * y).sum() / np.linalg.norm(m * y) / np.linalg.norm(y),
    }
    assert mask_stats(mask, x) == pytest.approx(expected, rel=1e-5)
    assert tiles.result() == pytest.approx(expected, rel=1e-5)
    assert mask_stats(mask, torch.zeros(24, 10))["step_ratio"] == 1
    with pytest.raises(ValueError, match="empty"):
        MaskStats().result()


def test_adam_undoes_a_fixed_mask_on_the_gradient_but_not_on_the_update() -> None:
    def train(mask: torch.Tensor, apply_to: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(5)
        parameter = torch.zeros(300, requires_grad=True)
        optimizer = torch.optim.Adam([parameter], lr=1e-3)
        for _ in range(200):
            gradient = slope + 0.5 * torch.randn(300, generator=generator)
            parameter.grad = gradient * mask if apply_to == "gradient" else gradient
            before = parameter.detach().clone()
            optimizer.step()
            if apply_to == "update":
                with torch.no_grad():
                    parameter.copy_(before + mask * (parameter - before))
        return parameter.detach()

    slope = torch.randn(300, generator=torch.Generator().manual_seed(4))
    variance = torch.rand(300, generator=torch.Generator().manual_seed(6))
    mask = conflict_mask(slope, variance, 3.0)
    assert mask.min() < 0.01
    free = train(torch.ones(300), "gradient")
    on_gradient, on_update = train(mask, "gradient"), train(mask, "update")
    assert (on_gradient - free).norm() < 1e-3 * free.norm()
    assert (on_update - free).norm() > 0.3 * free.norm()
    torch.testing.assert_close(on_update, mask * free, rtol=1e-4, atol=1e-6)
