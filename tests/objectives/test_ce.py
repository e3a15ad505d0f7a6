"""Cross-entropy: float64 oracle, chunks that change nothing but the memory, finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from isodistill.models.frozen import FrozenLinear
from isodistill.objectives import OBJECTIVES, CrossEntropy, StudentOutput, TrainedTokens

D, VOCABULARY = 5, 11


def tokens_of(targets: Tensor, weights: Tensor | None = None) -> TrainedTokens:
    n = len(targets)
    zeros = torch.zeros(n, dtype=torch.long)
    return TrainedTokens(targets, zeros, zeros, torch.ones(n) if weights is None else weights)


def drawn(n: int, seed: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states (n, d), head weight (vocabulary, d) and targets (n,)."""
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(n, D, generator=generator)
    return hidden, torch.randn(VOCABULARY, D, generator=generator), torch.randint(VOCABULARY, (n,), generator=generator)


def losses_of(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int) -> Tensor:
    return CrossEntropy(chunk).token_losses(StudentOutput(hidden, lambda h: h @ weight.T), tokens_of(targets))[0]


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 99), st.sampled_from([1e-3, 1.0, 30.0]))
def test_losses_are_the_negative_log_probabilities(n: int, seed: int, scale: float) -> None:
    hidden, weight, targets = drawn(n, seed, scale)
    found = losses_of(hidden, weight, targets, chunk=100)
    for i, target in enumerate(targets.tolist()):
        logits = [sum(h * w for h, w in zip(hidden[i].tolist(), row, strict=True)) for row in weight.tolist()]
        top = max(logits)
        expected = top + math.log(sum(math.exp(z - top) for z in logits)) - logits[target]
        assert float(found[i]) == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 7, 8, 9, 100])
def test_chunks_change_neither_losses_nor_gradients(chunk: int) -> None:
    hidden, weight, targets = drawn(8, 0)
    factors = torch.linspace(0.1, 2, 8)
    results = []
    for size in (chunk, 8):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        losses = losses_of(h, w, targets, size)
        (losses * factors).sum().backward()
        results.append((losses.detach(), h.grad, w.grad))
    for found, expected in zip(*results, strict=True):
        assert found is not None
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_logits_of_one_chunk_exist_at_a_time() -> None:
    hidden, weight, targets = drawn(10, 0)
    sizes: list[int] = []

    def head(h: Tensor) -> Tensor:
        sizes.append(len(h))
        return h @ weight.T

    losses, _ = CrossEntropy(4).token_losses(StudentOutput(hidden.requires_grad_(), head), tokens_of(targets))
    losses.sum().backward()
    assert sizes == [4, 4, 2, 2, 4, 4]  # forward, then made again from the last chunk to the first


@pytest.mark.parametrize("chunk", [2, 6])
def test_gradient_equals_finite_differences(chunk: int) -> None:
    hidden, weight, targets = drawn(6, 3)
    inputs = (hidden.double().requires_grad_(), weight.double().requires_grad_())
    # The losses are fp32 by contract, hence the wide step and the tolerance.
    assert torch.autograd.gradcheck(lambda h, w: losses_of(h, w, targets, chunk), inputs, eps=1e-2, atol=2e-3)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_a_frozen_head_gives_the_same_losses_and_gradients(chunk: int, scale: float) -> None:
    hidden, weight, targets = drawn(8, 0, scale)
    factors = torch.linspace(-0.1, 2, 8)
    results = []
    for head in (FrozenLinear(weight, None, torch.float32), lambda h: h.double() @ weight.double().T):
        h = hidden.clone().requires_grad_()
        if isinstance(head, FrozenLinear):
            losses, _ = CrossEntropy(chunk).token_losses(StudentOutput(h, head), tokens_of(targets))
        else:
            losses = F.cross_entropy(head(h), targets, reduction="none")
        (losses * factors).sum().backward()
        results.append((losses.detach().float(), h.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * scale)


def test_losses_are_fp32_under_bf16_logits() -> None:
    hidden, weight, targets = drawn(6, 1)
    losses = losses_of(hidden.bfloat16(), weight.bfloat16(), targets, 100)
    assert losses.dtype is torch.float32
    torch.testing.assert_close(losses, losses_of(hidden, weight, targets, 100), rtol=0.05, atol=0.05)


def test_weights_are_passed_on() -> None:
    hidden, weight, targets = drawn(3, 0)
    weights = torch.tensor([0.0, 1.0, 2.5])
    output = StudentOutput(hidden, lambda h: h @ weight.T)
    assert torch.equal(CrossEntropy().token_losses(output, tokens_of(targets, weights))[1], weights)


def test_a_chunk_holds_a_position() -> None:
    with pytest.raises(ValueError, match="chunk is 0"):
        CrossEntropy(0)
    assert OBJECTIVES["ce"] is CrossEntropy
