"""Moments over domains and moving averages against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isodistill.numerics import DomainMoments, Ema, domain_statistics


def draw(domains: int, size: int, scale: float = 1.0, offset: float = 0.0, seed: int = 0) -> np.ndarray:
    return scale * (offset + np.random.default_rng(seed).standard_normal((domains, size)))


def streamed(rows: torch.Tensor) -> DomainMoments:
    moments = DomainMoments()
    for row in rows:
        moments.update(row)
    return moments


def assert_two_pass(mean: torch.Tensor, variance: torch.Tensor, rows: np.ndarray, rtol: float) -> None:
    size = np.abs(rows).max()
    np.testing.assert_allclose(mean.double().numpy(), rows.mean(0), rtol=0, atol=rtol * size)
    spread = rows.std(0).max()
    np.testing.assert_allclose(
        variance.double().numpy(), rows.var(0), rtol=rtol, atol=rtol * (spread**2 + size * spread)
    )


@settings(deadline=None)
@given(
    domains=st.integers(1, 8),
    size=st.integers(1, 40),
    exponent=st.integers(-10, 3),
    offset=st.sampled_from([0.0, 1.0, 100.0]),
    seed=st.integers(0, 2**16),
)
def test_streaming_and_matrix_form_equal_the_two_pass_formula(
    domains: int, size: int, exponent: int, offset: float, seed: int
) -> None:
    rows = draw(domains, size, 10.0**exponent, offset, seed)
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 2e-6)):
        given_rows = torch.tensor(rows, dtype=dtype)
        oracle = given_rows.double().numpy()
        moments = streamed(given_rows)
        assert moments.count == domains
        assert moments.mean.dtype == moments.variance.dtype == dtype
        assert_two_pass(moments.mean, moments.variance, oracle, rtol)
        assert_two_pass(*domain_statistics(given_rows), oracle, rtol)


def test_small_spread_on_a_large_mean_does_not_cancel_in_fp32() -> None:
    rows = torch.tensor(1 + draw(4, 1000, 1e-4), dtype=torch.float32)
    expected = rows.double().numpy().var(0)
    for variance in (streamed(rows).variance, domain_statistics(rows)[1]):
        assert (variance >= 0).all()
        # 1e-7 of a mean of 1 is all that fp32 can resolve.
        np.testing.assert_allclose(np.sqrt(variance.numpy()), np.sqrt(expected), atol=3e-7)


def test_a_buffer_of_many_chunks_equals_the_two_pass_formula() -> None:
    rows = torch.tensor(draw(3, 400_003), dtype=torch.float32)
    assert_two_pass(*domain_statistics(rows), rows.double().numpy(), 2e-6)
    moments = streamed(rows)
    assert_two_pass(moments.mean, moments.variance, rows.double().numpy(), 2e-6)


@pytest.mark.parametrize("domains", [1, 2, 3, 7])
def test_equal_gradients_have_variance_zero_bit_for_bit(domains: int) -> None:
    row = torch.tensor(draw(1, 100, 1e-4)[0], dtype=torch.float32)
    rows = row.expand(domains, -1)
    for mean, variance in ((streamed(rows).mean, streamed(rows).variance), domain_statistics(rows)):
        assert torch.equal(mean, row)
        assert torch.equal(variance, torch.zeros_like(row))


@settings(deadline=None)
@given(split=st.integers(0, 6), order=st.permutations(range(6)))
def test_merged_ranks_and_reordered_domains_equal_one_stream(split: int, order: list[int]) -> None:
    rows = draw(6, 20, offset=3.0)
    shuffled = torch.tensor(rows[order])
    merged, other = streamed(shuffled[:split]), streamed(shuffled[split:])
    merged.merge(other)
    assert merged.count == 6
    assert other.count == 6 - split
    assert_two_pass(merged.mean, merged.variance, rows, 1e-12)
    assert_two_pass(*domain_statistics(shuffled), rows, 1e-12)


def test_merging_into_an_empty_one_leaves_no_shared_memory() -> None:
    other = streamed(torch.tensor(draw(2, 5)))
    kept = other.mean.clone()
    merged = DomainMoments()
    merged.merge(other)
    merged.update(torch.ones(5, dtype=torch.float64))
    assert torch.equal(other.mean, kept)


def test_resumed_moments_continue_bit_for_bit() -> None:
    rows = torch.tensor(draw(5, 30), dtype=torch.float32)
    running = streamed(rows[:2])
    saved = running.state_dict()
    for row in rows[2:]:
        running.update(row)
    resumed = DomainMoments()
    resumed.load_state_dict(saved)
    for row in rows[2:]:
        resumed.update(row)
    assert resumed.count == running.count
    assert torch.equal(resumed.mean, running.mean)
    assert torch.equal(resumed.variance, running.variance)
    running.load_state_dict(DomainMoments().state_dict())
    assert running.count == 0


def test_gradients_of_any_layout_and_dtype_are_taken_without_their_graph() -> None:
    weight = torch.arange(6.0, requires_grad=True)
    transposed = (weight.view(2, 3).bfloat16() * 2).T
    moments = DomainMoments()
    moments.update(transposed)
    moments.update(3 * transposed)
    assert not moments.mean.requires_grad
    torch.testing.assert_close(moments.mean, torch.tensor([[0.0, 12.0], [4.0, 16.0], [8.0, 20.0]]))
    torch.testing.assert_close(moments.variance, torch.tensor([[0.0, 36.0], [4.0, 64.0], [16.0, 100.0]]))


def test_misuse_is_named() -> None:
    moments = DomainMoments()
    with pytest.raises(ValueError, match="empty"):
        _ = moments.variance
    moments.update(torch.ones(3))
    with pytest.raises(ValueError, match=r"\(1,\).*\(3,\)"):
        moments.update(torch.ones(1))
    assert moments.count == 1
    with pytest.raises(ValueError, match=r"\(4,\).*\(3,\)"):
        moments.merge(streamed(torch.ones(1, 4)))
    for bad in (torch.ones(3), torch.ones(0, 3)):
        with pytest.raises(ValueError, match="K >= 1"):
            domain_statistics(bad)
    with pytest.raises(ValueError, match="decay"):
        Ema(1.0)
    with pytest.raises(ValueError, match="empty"):
        _ = Ema(0.5).value
    average = Ema(0.5)
    average.update(torch.ones(3))
    with pytest.raises(ValueError, match=r"\(1,\).*\(3,\)"):
        average.update(torch.ones(1))


@settings(deadline=None)
@given(decay=st.floats(0, 0.999), steps=st.integers(1, 30), seed=st.integers(0, 2**16))
def test_moving_average_is_the_corrected_weighted_sum(decay: float, steps: int, seed: int) -> None:
    rows = draw(steps, 6, seed=seed)
    weights = decay ** np.arange(steps - 1, -1, -1, dtype=np.float64)
    average = Ema(decay)
    for row in rows:
        value = average.update(torch.tensor(row))
    assert average.count == steps
    np.testing.assert_allclose(value.numpy(), weights @ rows / weights.sum(), rtol=1e-9, atol=1e-9)


def test_moving_average_of_a_constant_is_that_constant_and_resumes_bit_for_bit() -> None:
    row = torch.tensor(draw(1, 50, 1e-7)[0], dtype=torch.float32)
    average = Ema(0.95)
    for _ in range(5):
        assert torch.equal(average.update(row), row)
    saved = average.state_dict()
    expected = average.update(2 * row).clone()
    resumed = Ema(0.95)
    resumed.load_state_dict(saved)
    assert torch.equal(resumed.update(2 * row), expected)
