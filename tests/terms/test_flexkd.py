"""The terms by themselves: which dimensions meet, what the controls choose, baselines, options that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from isodistill.numerics.correlation import correlation_loss, pearson
from isodistill.terms import CKA, FlexKD, Projector
from isodistill.terms.scoring import DimensionScores


def scored(d_T: int, seed: int = 0) -> DimensionScores:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.rand(d_T, generator=generator) + 0.1
    spread = torch.rand(d_T, generator=generator) + 0.1
    scores = DimensionScores("abs", d_T)
    for half in (0, 1):
        noise = [torch.randn(50, d_T, generator=generator) for _ in range(2)]
        scores.add(noise[0] * scale, noise[1] * spread, half)
    return scores


def chosen(d_S: int, d_T: int, seed: int = 0, **options: Any) -> FlexKD:
    term = FlexKD(**options)
    term.setup([(d_S, d_T)], seed)
    term.choose([scored(d_T)] if d_S < d_T else [])
    return term


def features(n: int, d_S: int, d_T: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, d_S, generator=generator), torch.randn(n, d_T, generator=generator)


@pytest.mark.parametrize(("d_S", "d_T"), [(6, 12), (12, 12), (16, 12)])
def test_students_narrower_than_equal_to_and_wider_than_the_teacher(d_S: int, d_T: int) -> None:
    term = chosen(d_S, d_T)
    F_S, F_T = features(20, d_S, d_T)
    idx = scored(d_T).scores().argsort(descending=True, stable=True)[:d_S].sort().values if d_S < d_T else range(d_T)
    expected = correlation_loss(*pearson(F_S[:, : min(d_S, d_T)], F_T[:, list(idx)]))
    torch.testing.assert_close(term.loss(0, F_S, F_T, step=0), expected)
    assert term.learner is None
    assert all("idx" in name or name == "refreshed" for name in term.state_dict())


def test_controls_choose_what_they_say() -> None:
    scores = scored(12)
    best = scores.scores().argsort(descending=True)
    assert set(chosen(4, 12).idx[0].tolist()) == set(best[:4].tolist())
    assert set(chosen(4, 12, select="lowest").idx[0].tolist()) == set(best[-4:].tolist())
    variance = chosen(4, 12, select="variance").idx[0]
    assert set(variance.tolist()) == set(scores.variance().argsort(descending=True)[:4].tolist())
    assert chosen(4, 12, select="first").idx[0].tolist() == [0, 1, 2, 3]
    draws = {tuple(chosen(4, 12, seed=seed, select="random").idx[0].tolist()) for seed in range(5)}
    assert len(draws) > 1
    assert draws == {tuple(chosen(4, 12, seed=s, select="random").idx[0].tolist()) for s in range(5)}
    assert chosen(4, 12, order="score").idx[0].tolist() == best[:4].tolist()
    metrics = chosen(4, 12, select="lowest").take_metrics()
    assert metrics["overlap_with_top_0"] == 0.0
    assert chosen(4, 12).take_metrics()["overlap_with_top_0"] == 1.0


def test_standardised_mse_is_two_times_one_minus_r() -> None:
    F_S, F_T = features(25, 6, 6)
    r = pearson(F_S, F_T)[0]
    loss = chosen(6, 6, loss_form="standardised_mse").loss(0, F_S, F_T, 0)
    torch.testing.assert_close(loss, (2 * (1 - r)).mean())
    torch.testing.assert_close(chosen(6, 6, loss_form="mse").loss(0, F_S, F_T, 0), (F_S - F_T).square().mean())


def test_offdiag_adds_its_share_of_the_correlations_between_other_columns() -> None:
    F_S, F_T = features(30, 5, 5)
    C = np.corrcoef(F_S.numpy(), F_T.numpy(), rowvar=False)[:5, 5:]
    others = sum(C[i, j] ** 2 for i in range(5) for j in range(5) if i != j)
    plain, more = (float(chosen(5, 5, offdiag=share).loss(0, F_S, F_T, 0)) for share in (0.0, 0.3))
    assert more - plain == pytest.approx(0.3 * others, rel=1e-4)
    assert others > 0.05


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_tokens_give_zero_with_a_graph(n: int) -> None:
    F_S, F_T = features(2, 4, 6)
    for term in (chosen(4, 6), CKA()):
        some = F_S[:n].clone().requires_grad_()
        loss = term.loss(0, some, F_T[:n], 0)
        loss.backward()
        assert float(loss.detach()) == 0.0
        assert not some.grad.any()


def test_batches_of_few_rows_are_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    term, enough = chosen(4, 6), chosen(4, 6)
    for _ in range(2):
        term.loss(0, *features(1, 4, 6), 0)
        enough.loss(0, *features(64, 4, 6), 0)
    out = capsys.readouterr().out
    assert out.count("correlates over 1 rows (fewer than 2 add nothing)") == out.count("correlates") == 1


def test_the_mask_of_columns_is_drawn_anew_each_step_and_alike_in_a_step() -> None:
    term = chosen(8, 16, p_mask=0.5)
    F_S, F_T = features(20, 8, 16)
    losses = [float(term.loss(0, F_S, F_T, step)) for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_state_keeps_the_dimensions() -> None:
    term, other = chosen(4, 12, select="random", seed=3), FlexKD(select="random")
    other.setup([(4, 12)], 0)
    other.load_state_dict({name: value.clone() for name, value in term.state_dict().items()})
    assert torch.equal(other.idx[0], term.idx[0])
    fresh = FlexKD()
    fresh.setup([(4, 12)], 0)
    assert fresh.state_dict() == {}
    fresh.load_state_dict({})
    assert fresh.idx == []


def test_the_projector_learns_the_map_and_has_its_parameters_apart() -> None:
    F_S, _ = features(200, 4, 8)
    F_T = F_S @ torch.randn(4, 8, generator=torch.Generator().manual_seed(2)) + 1.0
    term = Projector(learning_rate=0.05)
    term.setup([(4, 8)], seed=0)
    assert term.learner is not None
    assert term.learner.size == 4 * 8 + 8
    before = float(term.loss(0, F_S, F_T, 0).detach())
    for _ in range(300):
        term.loss(0, F_S, F_T, 0).backward()
        term.learner.step()
    assert float(term.loss(0, F_S, F_T, 0).detach()) < 1e-3 * before
    other = Projector(learning_rate=0.05)
    other.setup([(4, 8)], seed=1)
    other.load_state_dict({name: value.clone() for name, value in term.state_dict().items()})
    for each in (term, other):  # the moments came along: the next step is the same
        each.loss(0, F_S, F_T, 0).backward()
        each.learner.step()
    torch.testing.assert_close(other.learner.module.weight, term.learner.module.weight, rtol=0, atol=0)


def test_nan_in_the_features_is_nan_in_the_loss_and_never_reaches_the_projector() -> None:
    F_S, F_T = features(10, 4, 4)
    F_T[3, 2] = torch.nan
    assert bool(torch.isnan(chosen(4, 4).loss(0, F_S, F_T, 0)))
    term = Projector()
    term.setup([(4, 4)], seed=0)
    weight = term.learner.module.weight.detach().clone()
    term.loss(0, F_S, F_T, 0).backward()
    term.learner.step()
    assert torch.equal(term.learner.module.weight, weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"b": -1.0}, "b is -1"),
        ({"score": "grad"}, "choose one of abs"),
        ({"select": "best"}, "choose one of top"),
        ({"p_mask": 1.0}, "share of the columns"),
        ({"b": float("nan")}, "b is nan"),
        ({"offdiag": float("inf")}, "offdiag is inf"),
        ({"examples": 1}, "2 or more"),
        ({"layers": [[0, -1]]}, "1 to L"),
        ({"layers": []}, "1 to L"),
        ({"layers": [[-1, 1.5]]}, "1 to L"),
        ({"layers": [[True, 1]]}, "1 to L"),
        ({"stats": "step", "offdiag": 0.1}, "exact for the diagonal"),
        ({"stats": "batch"}, "choose one of micro"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlexKD(**options)


@pytest.mark.parametrize("options", [{"b": float("nan")}, {"b": -1.0}, {"learning_rate": float("inf")}])
def test_options_of_the_baselines_out_of_range_are_refused(options: dict[str, float]) -> None:
    for term in (Projector, CKA):
        with pytest.raises((ValueError, TypeError), match=next(iter(options))):
            term(**options)


def test_selected_dimensions_beat_random_ones_when_the_teacher_has_loud_distractors() -> None:
    """A toy: labels hang on 4 quiet columns of 32, the others are noise of variance 100 that no input explains."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 4, generator=generator)
    truth = x @ torch.randn(4, 4, generator=generator)
    h = 10 * torch.randn(400, 32, generator=generator)
    quiet = [3, 9, 17, 30]
    h[:, quiet] = truth
    U = torch.zeros(2, 32)
    U[:, quiet] = torch.randn(2, 4, generator=generator)
    y = (h @ U.T).argmax(1)
    scores = DimensionScores("abs", 32)
    scores.add((torch.nn.functional.one_hot(y, 2) - torch.softmax(h @ U.T, 1)) @ U, h, 0)
    found = {}
    for select in ("top", "random", "variance"):
        term = FlexKD(select=select)
        term.setup([(4, 32)], seed=0)
        term.choose([scores])
        W = torch.zeros(4, 4, requires_grad=True)
        optimizer = torch.optim.Adam([W], lr=0.05)
        with torch.no_grad():
            W += 0.1 * torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
        for _ in range(150):
            optimizer.zero_grad()
            term.loss(0, x @ W, h, 0).backward()
            optimizer.step()
        found[select] = float(pearson((x @ W).detach(), truth)[0].mean())
    assert found["top"] > 0.95 > found["random"]
    assert found["top"] > found["variance"]
