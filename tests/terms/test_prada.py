"""The adversary by itself: signs by separate autograd passes, placements, schedule, symmetry, a toy."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isodistill.numerics.reversal import reverse_gradient
from isodistill.terms import PRADA


def made(K: int = 2, steps: int = 10, **options: Any) -> PRADA:
    term = PRADA(**{"dropout": 0.0, "width": 16} | options)
    term.setup(6, K, steps, seed=0)
    return term


def features(n: int = 12) -> Tensor:
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(1))


def test_reversal_is_the_identity_forward_and_minus_the_scale_backward() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    upstream = torch.randn(4, 3)
    for scale in (1.0, 0.3):
        y = reverse_gradient(x, scale)
        assert torch.equal(y, x)
        (g,) = torch.autograd.grad(y, x, upstream)
        torch.testing.assert_close(g, -scale * upstream, rtol=0, atol=0)


@pytest.mark.parametrize("placement", ["loss", "grl"])
def test_signs_by_two_separate_autograd_passes(placement: str) -> None:
    """th_f gets dL_y - lam dL_d, th_d gets + lam dL_d (loss) or + dL_d (grl)."""
    term = made(lam=0.7, schedule="constant", lambda_placement=placement)
    body, labels = nn.Linear(6, 6), torch.tensor([0] * 5 + [1] * 7)
    counts = torch.tensor([5.0, 7.0])
    D = term.learner.module
    x, y = features(), features().sum(1)
    L_y = (body(x).sum(1) - y).square().mean()
    CE = F.cross_entropy(D(body(x)), labels, reduction="none")
    L_d = CE[:5].mean() + CE[5:].mean()  # two separate means
    own, theirs = list(body.parameters()), list(D.parameters())
    g_y = torch.autograd.grad(L_y, own, retain_graph=True)
    g_d = torch.autograd.grad(L_d, own + theirs, retain_graph=True)
    (L_y + term.loss(body(x), labels, counts, step=3)).backward()
    for p, a, b in zip(own, g_y, g_d, strict=False):
        torch.testing.assert_close(p.grad, a - 0.7 * b, rtol=1e-5, atol=1e-6)
    for p, b in zip(theirs, g_d[len(own) :], strict=True):
        torch.testing.assert_close(p.grad, (0.7 if placement == "loss" else 1.0) * b, rtol=1e-5, atol=1e-6)


def test_schedule() -> None:
    term = made(steps=1000, lam=2.0)
    assert [round(term.lam_at(s) / 2, 4) for s in (0, 500, 1000)] == [0.0, 0.9866, 0.9999]
    assert term.lam_at(100) == pytest.approx(2 * math.tanh(0.5), rel=1e-12)  # 2 / (1 + exp(-x)) - 1 = tanh(x / 2)
    assert made(schedule="constant", lam=0.3).lam_at(0) == 0.3


def test_swapping_the_domains_and_the_rows_of_the_output_changes_nothing() -> None:
    term, other = made(schedule="constant"), made(schedule="constant")
    last = other.learner.module[-1]
    with torch.no_grad():
        last.weight.copy_(last.weight.flip(0))
        last.bias.copy_(last.bias.flip(0))
    labels = torch.tensor([0, 1] * 6)
    counts = torch.tensor([6.0, 6.0])
    loss = term.loss(features(), labels, counts, 0)
    torch.testing.assert_close(other.loss(features(), 1 - labels, counts, 0), loss)


def test_three_domains_have_a_mean_each_and_an_empty_one_none() -> None:
    term = made(K=3, schedule="constant")
    labels = torch.tensor([0] * 3 + [1] * 9)
    counts = torch.tensor([3.0, 9.0, 0.0])
    CE = F.cross_entropy(term.learner.module(features()), labels, reduction="none")
    torch.testing.assert_close(term.loss(features(), labels, counts, 0), CE[:3].mean() + CE[3:].mean())
    parts = [term.loss(features()[i : i + 4], labels[i : i + 4], counts, 0) for i in (0, 4, 8)]
    torch.testing.assert_close(sum(parts), CE[:3].mean() + CE[3:].mean())  # whatever the split into micro-batches


def test_controls() -> None:
    frozen = made(control="frozen", schedule="constant")
    before = copy.deepcopy(frozen.learner.module.state_dict())
    frozen.loss(features(), torch.zeros(12, dtype=torch.long), torch.tensor([12.0, 0.0]), 0).backward()
    frozen.step()
    assert all(torch.equal(v, before[n]) for n, v in frozen.learner.module.state_dict().items())
    assert all(p.grad is None or not p.grad.any() for p in frozen.learner.module.parameters())
    shuffled = made(control="shuffled")
    texts = [[i, i + 1] for i in range(200)]
    labels = shuffled.labels(torch.zeros(200, dtype=torch.long), texts)
    assert 60 < int(labels.sum()) < 140  # nothing to do with the domains
    assert torch.equal(labels, shuffled.labels(torch.ones(200, dtype=torch.long), texts))
    assert made().labels(torch.tensor([0, 1]), texts[:2]).tolist() == [0, 1]


def probe(q: Tensor, domains: Tensor) -> float:
    """Accuracy of a fresh linear classifier (least squares), fitted to half of the rows and judged on the other."""
    x = torch.cat([q, torch.ones(len(q), 1)], 1)
    W = torch.linalg.lstsq(x[:128], (2.0 * domains[:128] - 1)[:, None]).solution
    return float((((x @ W)[:, 0] > 0).long() == domains)[128:].float().mean())


@pytest.mark.parametrize(("lam", "falls"), [(1.0, True), (0.0, False)])
def test_a_fresh_probe_no_longer_finds_a_pure_domain_coordinate(lam: float, falls: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    domains = torch.arange(256) % 2
    x = torch.randn(256, 6, generator=generator)
    x[:, 0] = 2.0 * (2 * domains - 1) + 0.3 * x[:, 0]  # the domain
    y = x[:, 1]  # the task
    body, head = nn.Linear(6, 2), nn.Linear(2, 1)
    with torch.no_grad():  # the second feature holds the domain beside noise, and the task needs the first alone
        body.weight.copy_(torch.tensor([[0.2, 1, 0, 0, 0, 0], [1, 0, 0.5, 0, 0, 0]]))
        head.weight.copy_(torch.tensor([[1.0, 0.0]]))
    term = PRADA(dropout=0.0, width=32, lam=lam)
    term.setup(2, 2, 300, seed=0)
    optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=6e-3)
    for step in range(300):
        optimizer.zero_grad()
        q = body(x)
        loss = (head(q)[:, 0] - y).square().mean()
        if lam:
            loss = loss + term.loss(q, domains, torch.tensor([128.0, 128.0]), step)
        loss.backward()
        optimizer.step()
        term.step()
    q = body(x).detach()
    found = probe(q, domains)
    assert float((head(q)[:, 0] - y).square().mean().detach()) < 0.1  # the task is learned either way
    assert found < 0.75 if falls else found > 0.95


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lam": -1.0}, "lam is -1"),
        ({"lam": float("nan")}, "lam is nan"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"adapt": "adapter"}, "choose one of prompt"),
        ({"n_virt": 0}, "n_virt is 0"),
        ({"dropout": 1.0}, "below 1"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"control": "random"}, "choose one of none"),
        ({"lambda_placement": "head"}, "choose one of loss"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PRADA(**options)
