"""EK-FAC against kronfluence, which knows pointwise losses: batches of one pair and its hard negative are such a loss.

The Makefile installs it without its dependencies: it wants a torchvision of the same build as torch, but never
imports it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from isodistill.influence import Influence

REASON = "the oracle is not installed: pip install --no-deps kronfluence einops einconv opt_einsum"
analyzer = pytest.importorskip("kronfluence.analyzer", reason=REASON)
arguments = pytest.importorskip("kronfluence.arguments", reason=REASON)
task = pytest.importorskip("kronfluence.task", reason=REASON)

N, QUERIES, WIDTH, OUT, T, DELTA = 120, 7, 5, 4, 0.5, 3.0


class Head(nn.Linear):
    def encode_a(self, items: torch.Tensor) -> torch.Tensor:
        return self(items)

    def encode_b(self, items: torch.Tensor) -> torch.Tensor:
        return items


class Choice(task.Task):
    """Which of two vectors a projected item belongs to, the first is right."""

    def compute_train_loss(self, batch: list, model: nn.Module, sample: bool = False) -> torch.Tensor:
        a, *choices = batch
        u = model(a)  # once: a second call would replace the activations that are kept of the first
        S = torch.stack([(u * b).sum(1) / T for b in choices], 1)
        answer = torch.zeros(len(a), dtype=torch.long)
        if sample:
            answer = torch.multinomial(S.detach().softmax(1), 1)[:, 0]
        return F.cross_entropy(S, answer, reduction="sum")

    def compute_measurement(self, batch: list, model: nn.Module) -> torch.Tensor:
        return self.compute_train_loss(batch, model)


def items(n: int, seed: int, unit: bool) -> list[torch.Tensor]:
    """a, its own b, and another; with ``unit`` a and the difference of the two have norm 1."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randn(n, d, generator=generator, dtype=torch.float64) for d in (WIDTH, OUT))
    away = torch.randn(n, OUT, generator=generator, dtype=torch.float64)
    return [F.normalize(a), b, b - F.normalize(away)] if unit else [a, b, b - away]


def theirs(head: Head, train: list[torch.Tensor], queries: list[torch.Tensor], folder: Path) -> torch.Tensor:
    """Pairwise influences (queries, train) with the damping that delta is to a mean of N losses."""
    copy = nn.Linear(WIDTH, OUT, bias=False).double()
    copy.load_state_dict(head.state_dict())
    model = analyzer.prepare_model(nn.Sequential(copy), Choice())
    found = analyzer.Analyzer("pairs", model, Choice(), cpu=True, disable_tqdm=True, output_dir=str(folder))
    wide = ("activation_covariance", "gradient_covariance", "eigendecomposition", "per_sample_gradient", "lambda")
    factors = arguments.FactorArguments(strategy="ekfac", **{f"{name}_dtype": torch.float64 for name in wide})
    found.fit_all_factors("ekfac", TensorDataset(*train), per_device_batch_size=N, factor_args=factors)
    wide = ("query_gradient_svd", "score", "per_sample_gradient", "precondition")
    scores = arguments.ScoreArguments(
        damping_factor=DELTA / len(train[0]), **{f"{name}_dtype": torch.float64 for name in wide}
    )
    found.compute_pairwise_scores(
        "scores", "ekfac", TensorDataset(*queries), TensorDataset(*train), per_device_query_batch_size=QUERIES,
        per_device_train_batch_size=N, score_args=scores,
    )  # fmt: skip
    result: torch.Tensor = found.load_pairwise_scores("scores")["all_modules"]
    return result / len(train[0])  # theirs inverts the mean of the losses, ours their sum


def ours(head: Head, train: list[torch.Tensor], queries: list[torch.Tensor], n_draws: int) -> torch.Tensor:
    a, b, other = train
    alone = [torch.tensor([n]) for n in range(len(a))]
    influence = Influence(
        head, ["weight"], a, b, alone, temperature=T, delta=DELTA, sides="a_to_b", similarity="dot", negatives=other
    )
    factors = influence.factors("ekfac", n_draws=n_draws)
    rows = []
    for a, b, other in zip(*queries, strict=True):
        g = influence.query_gradient(a[None], torch.stack([b, other]))
        rows.append(influence.score_all(factors.inverse(g, influence.delta)))
    return torch.stack(rows)


def test_equal_to_kronfluence_where_the_axes_of_both_are_the_same(tmp_path: Path) -> None:
    """At S = 0 all draws have one size; with items of norm 1 the factors E[S S'] and E[g g'] are then proportional."""
    head = Head(WIDTH, OUT, bias=False).double()
    nn.init.zeros_(head.weight)
    data = items(N, 0, unit=True), items(QUERIES, 1, unit=True)
    expected = theirs(head, *data, tmp_path)
    found = ours(head, *data, n_draws=2)
    assert expected.shape == (QUERIES, N)
    assert torch.allclose(found, expected.double(), rtol=1e-6, atol=1e-9)


def test_near_to_kronfluence_elsewhere(tmp_path: Path) -> None:
    """Axes and draws differ: theirs weighs all items of a factor alike, ours by the other side of their gradient."""
    torch.manual_seed(0)
    head = Head(WIDTH, OUT, bias=False).double()
    data = items(N, 2, unit=False), items(QUERIES, 3, unit=False)
    expected, found = theirs(head, *data, tmp_path).double(), ours(head, *data, n_draws=16)
    agreement = float(torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1])
    print(f"correlation with kronfluence {agreement:.3f}, sizes {float(found.norm() / expected.norm()):.2f} of theirs")
    assert agreement > 0.9
    assert found.norm() / expected.norm() == pytest.approx(1, abs=0.3)
