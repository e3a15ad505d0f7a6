"""VCRD: the weight function, token mode against a loop, its neutral setting and its controls."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from isodistill.models.frozen import FrozenLinear
from isodistill.objectives import VCRD, ForwardKL, StudentOutput, TrainedTokens, token_delta, validity_weight
from isodistill.teachers.logits import TopK

N, D, V = 19, 4, 9


def drawn(seed: int = 0) -> tuple[StudentOutput, StudentOutput, TrainedTokens]:
    g = torch.Generator().manual_seed(seed)
    hidden, other = torch.randn(N, D, generator=g), torch.randn(N, D, generator=g)
    heads = [FrozenLinear(torch.randn(V, D, generator=g), None, torch.float32) for _ in range(2)]
    zeros = torch.zeros(N, dtype=torch.long)
    tokens = TrainedTokens(torch.randint(V, (N,), generator=g), zeros, zeros, torch.ones(N))
    return StudentOutput(hidden, heads[0]), StudentOutput(other, heads[1]), tokens


def losses(objective: Any, deltas: Tensor | None = None, seed: int = 0) -> tuple[Tensor, Tensor]:
    student, teacher, tokens = drawn(seed)
    tokens = TrainedTokens(tokens.targets, tokens.rows, tokens.domains, tokens.weights, deltas)
    h = student.hidden.clone().requires_grad_()
    found, _ = objective.token_losses(StudentOutput(h, student.head), tokens, teacher)
    found.sum().backward()
    assert h.grad is not None
    return found.detach(), h.grad


def test_weight_is_one_at_equal_validity_and_grows_inside_the_clip() -> None:
    delta = torch.linspace(-1, 1, 41, requires_grad=True)
    w = validity_weight(delta, 4.0)
    assert not w.requires_grad
    assert float(w[20]) == 1.0
    assert bool((w.diff() > 0).all())
    clipped = validity_weight(delta, 4.0, 0.5, 1.5)
    assert (float(clipped.min()), float(clipped.max())) == (0.5, 1.5)
    assert float(w[0]) == pytest.approx(2 / (1 + math.exp(4)), rel=1e-6)


def test_token_delta_is_that_of_a_loop() -> None:
    student, teacher, _ = drawn()
    z, z_T = student.head(student.hidden), teacher.head(teacher.hidden)
    for found, s, t in zip(token_delta(z, z_T).tolist(), z.tolist(), z_T.tolist(), strict=True):
        p = [math.exp(x) for x in t]
        assert found == pytest.approx(1 - p[max(range(V), key=s.__getitem__)] / max(p), abs=1e-6)


def test_token_delta_outside_the_top_k_takes_the_last_one_as_bound() -> None:
    log_probs = torch.tensor([[0.5, 0.3]]).log()
    stored = TopK(torch.arange(1), torch.tensor([[2, 0]]), log_probs, torch.tensor([0.2]).log())
    z = torch.eye(4)
    found = [float(token_delta(z[i : i + 1], stored)) for i in (2, 0, 3)]
    assert found == pytest.approx([0.0, 0.4, 0.4])


@pytest.mark.parametrize("neutral", [{"beta": 0.0}, {"control": "ones"}])
def test_neutral_settings_are_plain_forward_kl(neutral: dict[str, Any]) -> None:
    for found, expected in zip(losses(VCRD(**neutral)), losses(ForwardKL()), strict=True):
        assert torch.equal(found, expected)


def test_without_the_divergence_it_is_fine_tuning() -> None:
    for found, expected in zip(losses(VCRD(lam_kd=0)), losses(ForwardKL(lam_kd=0)), strict=True):
        assert torch.equal(found, expected)


def test_student_equal_to_teacher_leaves_the_cross_entropy() -> None:
    student, _, tokens = drawn()
    with_teacher = VCRD().token_losses(student, tokens, student)[0]
    alone = VCRD(lam_kd=0).token_losses(student, tokens, student)[0]
    torch.testing.assert_close(with_teacher, alone)


def test_a_token_of_weight_zero_has_no_gradient_of_the_divergence() -> None:
    deltas = torch.zeros(N)
    deltas[3] = -1.0
    objective = VCRD(lam_ce=0.0, lam_kd=1.0, beta=200.0)
    values, gradient = losses(objective, deltas)
    assert float(values[3]) == 0
    assert float(gradient[3].abs().max()) == 0
    assert float(gradient[4].abs().max()) > 0


def test_deltas_from_outside_make_the_weights() -> None:
    deltas = torch.linspace(-1, 1, N)
    weighted = losses(VCRD(lam_ce=0.0, lam_kd=1.0, beta=2.0), deltas)
    plain = losses(ForwardKL(lam_ce=0.0, lam_kd=1.0))
    w = 2 / (1 + torch.exp(-2.0 * deltas))
    torch.testing.assert_close(weighted[0], w * plain[0])
    torch.testing.assert_close(weighted[1], w[:, None] * plain[1])


def weights(control: str, deltas: Tensor | None, **options: Any) -> Tensor:
    weighted = losses(VCRD(lam_ce=0.0, lam_kd=1.0, control=control, **options), deltas)[0]
    return weighted / losses(ForwardKL(lam_ce=0.0, lam_kd=1.0))[0]


@pytest.mark.parametrize("deltas", [None, torch.linspace(-1, 1, N)])
def test_controls_take_the_idea_out_and_keep_the_rest(deltas: Tensor | None) -> None:
    w = weights("none", deltas)
    torch.testing.assert_close(weights("permuted", deltas).sort()[0], w.sort()[0], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(weights("permuted", deltas), w)
    torch.testing.assert_close(weights("constant", deltas), torch.full((N,), float(w.mean())), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(weights("reversed", deltas), 2 - w, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(weights("none", deltas, w_norm="mean"), w / w.mean(), rtol=1e-3, atol=1e-5)


def test_metrics_say_where_the_weight_goes() -> None:
    objective = VCRD(beta=2.0)
    losses(objective, torch.tensor([-0.5] * 5 + [0.0] * 10 + [1.0] * 4))
    metrics = objective.take_metrics()
    assert metrics["objective/student_beats_teacher"] == pytest.approx(5 / N)
    assert metrics["objective/delta"] == pytest.approx(1.5 / N)
    for name in ("delta", "weight"):
        bins = [v for key, v in metrics.items() if key.startswith(f"objective/{name}_") and "_at_" not in key]
        assert sum(bins) == pytest.approx(1)
    by_tenth = [metrics[f"objective/delta_at_{i}"] for i in range(10)]  # 19 tokens of one row: two a tenth, then one
    assert by_tenth == pytest.approx([-0.5, -0.5, -0.25, 0, 0, 0, 0, 0.5, 1, 1])
    assert objective.take_metrics() == {}


@pytest.mark.parametrize("control", ["teacher_confidence", "student_confidence"])
def test_controls_of_confidence_alone(control: str) -> None:
    student, teacher, _ = drawn()
    side = teacher if control == "teacher_confidence" else student
    best = torch.softmax(side.head(side.hidden), 1).amax(1)
    torch.testing.assert_close(weights(control, None), 2 / (1 + torch.exp(-4 * (1 - best))), rtol=1e-3, atol=1e-5)


def test_step_mode_is_gentler_and_leaves_unmeasured_tokens_at_one() -> None:
    objective = VCRD(steps={"scorer": {"name": "rule"}, "n_prefix": 2})
    assert objective.beta == 2.0
    assert VCRD().beta == 4.0
    for found, expected in zip(losses(objective), losses(ForwardKL()), strict=True):
        assert torch.equal(found, expected)


def test_with_cross_entropy_for_a_divergence_no_teacher_is_asked() -> None:
    student, _, tokens = drawn()
    objective = VCRD(divergence_name="ce", lam_ce=0.0, lam_kd=1.0, steps={})
    assert not objective.needs_teacher
    deltas = torch.linspace(-1, 1, N)
    weighted = TrainedTokens(tokens.targets, tokens.rows, tokens.domains, tokens.weights, deltas)
    found = objective.token_losses(student, weighted)[0]
    ce = torch.nn.functional.cross_entropy(student.head(student.hidden), tokens.targets, reduction="none")
    torch.testing.assert_close(found, ce * 2 / (1 + torch.exp(-2 * deltas)))
