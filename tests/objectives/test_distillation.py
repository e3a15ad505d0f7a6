"""The divergence family: float64 loops over the vocabulary, end points, extremes, chunks, top k, vocabularies."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from isodistill.models.frozen import FrozenLinear
from isodistill.numerics.divergences import DIVERGENCES, TAILS, divergence, truncated
from isodistill.objectives import JSD, OBJECTIVES, VCRD, ForwardKL, ReverseKL, Skew, StudentOutput, TrainedTokens
from isodistill.objectives.distillation import Distillation
from isodistill.teachers.logits import TopK

D, V, N = 5, 11, 21
MEMBERS = [ForwardKL(), ReverseKL(), JSD(beta=0.3), Skew(), Skew(reverse=True), VCRD(), VCRD(temperature=2.0)]
MEMBERS += [VCRD(divergence_name=name, mix=0.3) for name in DIVERGENCES[1:]]


def tokens_of(n: int = N) -> TrainedTokens:
    zeros = torch.zeros(n, dtype=torch.long)
    return TrainedTokens(torch.arange(n) % V, zeros, zeros, torch.ones(n))


def sides(seed: int = 0) -> tuple[Tensor, Tensor, StudentOutput]:
    """Student states (N, d) and head (V, d); a teacher of another width."""
    g = torch.Generator().manual_seed(seed)
    teacher, head = torch.randn(N, 7, generator=g), torch.randn(V, 7, generator=g)
    return (
        torch.randn(N, D, generator=g),
        torch.randn(V, D, generator=g),
        StudentOutput(teacher, lambda h: h @ head.T.to(h)),
    )


def looped(name: str, p: list[float], q: list[float], mix: float) -> float:
    """The table of the specification, one outcome after the other."""

    def kl(a: list[float], b: list[float]) -> float:
        return sum(x * (math.log(x) - math.log(y)) for x, y in zip(a, b, strict=True) if x > 0)

    def mixed(share: float, a: list[float], b: list[float]) -> list[float]:
        return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]

    m = mixed(mix, p, q)
    return {
        "fkl": lambda: kl(p, q), "rkl": lambda: kl(q, p), "jsd": lambda: mix * kl(p, m) + (1 - mix) * kl(q, m),
        "skl": lambda: kl(p, m), "srkl": lambda: kl(q, mixed(mix, q, p)),
    }[name]()  # fmt: skip


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(DIVERGENCES), st.integers(0, 99), st.floats(0.01, 0.99), st.sampled_from([0.1, 1.0, 8.0]))
def test_divergences_are_their_sums_over_the_vocabulary(name: str, seed: int, mix: float, scale: float) -> None:
    g = torch.Generator().manual_seed(seed)
    log_p, log_q = (F.log_softmax(scale * torch.randn(2, V, generator=g).double(), 1) for _ in range(2))
    found = divergence(name, log_p, log_q, mix)
    assert bool((found >= -1e-15).all())
    for i in range(2):
        expected = looped(name, log_p[i].exp().tolist(), log_q[i].exp().tolist(), mix)
        assert float(found[i]) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert divergence(name, log_p, log_p, mix).abs().max() < 1e-14


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("mix", [0.1, 0.5])
def test_gradients_equal_finite_differences(name: str, mix: float) -> None:
    g = torch.Generator().manual_seed(3)
    z_T, z_S = (torch.randn(3, V, generator=g).double() for _ in range(2))
    log_p = F.log_softmax(z_T, 1)
    assert torch.autograd.gradcheck(lambda z: divergence(name, log_p, F.log_softmax(z, 1), mix), z_S.requires_grad_())


def test_end_points_and_symmetry() -> None:
    g = torch.Generator().manual_seed(5)
    p, q = (F.log_softmax(torch.randn(4, V, generator=g).double(), 1) for _ in range(2))
    equal = torch.testing.assert_close
    equal(divergence("jsd", p, q, 0.0), divergence("fkl", p, q))
    equal(divergence("jsd", p, q, 1.0), divergence("rkl", p, q))
    equal(divergence("skl", p, q, 0.0), divergence("fkl", p, q))
    equal(divergence("srkl", p, q, 0.0), divergence("rkl", p, q))
    equal(divergence("jsd", p, q, 0.5), divergence("jsd", q, p, 0.5))
    assert bool((divergence("skl", p, q, 0.1) <= math.log(10)).all())


@pytest.mark.parametrize("name", DIVERGENCES)
def test_logits_of_ten_thousand_in_bf16_stay_finite(name: str) -> None:
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=torch.bfloat16).requires_grad_()
    log_p = F.log_softmax(-z.detach().float(), 1)
    found = divergence(name, log_p, F.log_softmax(z.float(), 1), 0.1)
    found.sum().backward()
    assert bool(torch.isfinite(found).all())
    assert z.grad is not None
    assert bool(torch.isfinite(z.grad).all())


@pytest.mark.parametrize("objective", MEMBERS)
@pytest.mark.parametrize("frozen", [True, False])
def test_chunked_losses_equal_the_dense_formula(objective: Distillation, frozen: bool) -> None:
    hidden, weight, teacher = sides()
    tokens, factors = tokens_of(), torch.linspace(0.1, 2, N)
    h = hidden.clone().requires_grad_()
    objective.chunk = 4
    head = FrozenLinear(weight, None, torch.float32) if frozen else lambda x: x @ weight.T
    found, _ = objective.token_losses(StudentOutput(h, head), tokens, teacher)
    (found * factors).sum().backward()

    dense = hidden.double().requires_grad_()
    z, z_T = dense @ weight.double().T, teacher.head(teacher.hidden.double())
    temp = objective.temperature
    p, q = F.log_softmax(z_T / temp, 1), F.log_softmax(z / temp, 1)
    kl = objective.divergence(p, q) * temp**2
    if isinstance(objective, VCRD):
        chosen, best = p.gather(1, z.argmax(1, keepdim=True)).squeeze(1).exp(), p.exp().amax(1)
        kl = kl * 2 / (1 + torch.exp(-4 * (1 - chosen / best))).detach()
    expected = 0.5 * F.cross_entropy(z, tokens.targets, reduction="none") + 0.5 * kl
    (expected * factors).sum().backward()
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert h.grad is not None
    torch.testing.assert_close(h.grad.double(), dense.grad, rtol=1e-4, atol=1e-5)


def top_k(teacher: StudentOutput, k: int) -> TopK:
    log_p = F.log_softmax(teacher.head(teacher.hidden), 1)
    log_probs, ids = log_p.topk(k)
    tail = (1 - log_probs.double().exp().sum(1)).clamp(min=1e-12).log().float()
    return TopK(torch.arange(N), ids.int(), log_probs, tail)


@pytest.mark.parametrize("objective", MEMBERS[:6], ids=lambda m: type(m).__name__)
def test_a_top_k_of_all_tokens_is_the_live_teacher(objective: Distillation) -> None:
    hidden, weight, teacher = sides()
    student = StudentOutput(hidden, FrozenLinear(weight, None, torch.float32))
    live, stored = (objective.token_losses(student, tokens_of(), t)[0] for t in (teacher, top_k(teacher, V)))
    torch.testing.assert_close(stored, live, rtol=1e-4, atol=1e-5)


def test_the_tail_bucket_only_loses_divergence() -> None:
    hidden, weight, teacher = sides()
    q = F.log_softmax(hidden @ weight.T, 1)
    found = []
    for k in range(1, V + 1):
        stored = top_k(teacher, k)
        found.append(divergence("fkl", *truncated(stored.log_probs, stored.log_tail, stored.ids.long(), q)))
    for fewer, more in pairwise(found):
        assert bool((fewer <= more + 1e-5).all())


@pytest.mark.parametrize("tail", TAILS)
def test_the_rules_of_the_tail_by_hand(tail: str) -> None:
    p, q = [0.5, 0.3, 0.2], [0.2, 0.1, 0.7]  # the top 2 of p are stored
    stored = TopK(torch.arange(1), torch.tensor([[0, 1]]), torch.tensor([p[:2]]).log(), torch.tensor([p[2]]).log())
    found = ForwardKL(lam_ce=0.0, lam_kd=1.0, tail=tail).token_losses(
        StudentOutput(torch.tensor([q]).log(), lambda h: h), tokens_of(1), stored
    )[0]
    expected = {
        "bucket": looped("fkl", p, q, 0.5),
        "renorm": looped("fkl", [0.625, 0.375], [2 / 3, 1 / 3], 0.5),
        "drop": 0.5 * math.log(2.5) + 0.3 * math.log(3),
    }[tail]
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_no_trace_is_imitated_where_the_student_wrote_itself() -> None:
    hidden, weight, teacher = sides()
    tokens = tokens_of()
    tokens = TrainedTokens(tokens.targets, tokens.rows, tokens.domains, tokens.weights, sampled=torch.arange(N) < 5)
    for head in (FrozenLinear(weight, None, torch.float32), lambda h: h @ weight.T):
        student = StudentOutput(hidden, head)
        both = ForwardKL().token_losses(student, tokens, teacher)[0]
        plain = ForwardKL().token_losses(student, tokens_of(), teacher)[0]
        alone = ForwardKL(lam_ce=0.0).token_losses(student, tokens_of(), teacher)[0]
        torch.testing.assert_close(both[:5], alone[:5])
        torch.testing.assert_close(both[5:], plain[5:])


def test_vocabularies_of_two_lengths() -> None:
    hidden, weight, teacher = sides()
    longer = StudentOutput(teacher.hidden, lambda h: F.pad(teacher.head(h), (0, 3), value=9.0))
    student = StudentOutput(hidden, FrozenLinear(weight, None, torch.float32))
    plain, cut = ForwardKL(), ForwardKL(vocab="truncate")
    expected = plain.token_losses(student, tokens_of(), teacher)[0]
    assert torch.equal(cut.token_losses(student, tokens_of(), longer)[0], expected)
    with pytest.raises(ValueError, match="truncate"):
        plain.token_losses(student, tokens_of(), longer)


def test_the_teachers_own_loss_on_the_trace_is_measured() -> None:
    hidden, weight, teacher = sides()
    log_p = F.log_softmax(teacher.head(teacher.hidden).double(), 1)
    own = -log_p[torch.arange(N), torch.arange(N) % V]
    last = -log_p.topk(3).values[:, -1]
    for asked, expected in ((teacher, own), (top_k(teacher, V), own), (top_k(teacher, 3), torch.minimum(own, last))):
        for head in (FrozenLinear(weight, None, torch.float32), lambda h: h @ weight.T):
            objective = ForwardKL()
            objective.token_losses(StudentOutput(hidden, head), tokens_of(), asked)
            found = objective.take_metrics()
            assert found["objective/teacher_nll"] == pytest.approx(float(expected.mean()), rel=1e-5)
            assert "objective/cut_mass" not in found


def test_what_the_cut_rows_held_is_measured() -> None:
    hidden, weight, teacher = sides()
    longer = StudentOutput(teacher.hidden, lambda h: F.pad(teacher.head(h), (0, 3), value=2.0))
    shorter = StudentOutput(teacher.hidden, lambda h: teacher.head(h)[:, :4])
    head = FrozenLinear(weight, None, torch.float32)
    for asked, whole, n in ((longer, longer.head(teacher.hidden), V), (shorter, hidden @ weight.T, 4)):
        objective = ForwardKL(vocab="truncate")
        objective.token_losses(StudentOutput(hidden, head), tokens_of(), asked)
        found = objective.take_metrics()
        cut = torch.softmax(whole.double(), 1)[:, n:].sum(1)
        assert found["objective/cut_mass"] == pytest.approx(float(cut.mean()), rel=1e-4)
        inside = torch.arange(N) % V < n  # a target past the teacher's logits has no log-prob there
        log_p = F.log_softmax(asked.head(teacher.hidden)[:, :n].double(), 1)
        own = -log_p[inside, (torch.arange(N) % V)[inside]]
        assert found["objective/teacher_nll"] == pytest.approx(float(own.mean()), rel=1e-5)


def test_what_is_refused() -> None:
    hidden, weight, teacher = sides()
    student = StudentOutput(hidden, lambda h: h @ weight.T)
    with pytest.raises(ValueError, match="none was given"):
        ForwardKL().token_losses(student, tokens_of())
    with pytest.raises(ValueError, match="cannot be tempered"):
        ForwardKL(temperature=2.0).token_losses(student, tokens_of(), top_k(teacher, 3))
    refused = [("fkl", {"temperature": 0}), ("jsd", {"beta": 2.0}), ("skew", {"alpha": -1.0})]
    refused += [("vcrd", {"beta": -1.0}), ("vcrd", {"control": "no"}), ("fkl", {"lam_kd": -1.0})]
    refused += [("fkl", {"tail": "no"}), ("fkl", {"rho": 1.5}), ("fkl", {"rho": 0.5, "lam_kd": 0.0})]
    refused += [("vcrd", {"divergence_name": "ce"}), ("label_multitask", {"alpha": 2.0})]
    for name, options in refused:
        with pytest.raises(ValueError):
            OBJECTIVES[name](**options)
