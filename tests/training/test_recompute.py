"""Gradients of a domain asked for again, at the same and at moved parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from isodistill import DistillTrainer
from isodistill.alignment import IGA2020
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.models.lora import DomainGradients

from .test_training_step import domain_losses, one_gradient

MakeTrainer = Callable[..., DistillTrainer]


@pytest.mark.parametrize("gradients", ["segment", "domain_major"])
@pytest.mark.parametrize("steps", [1, 4])
def test_at_the_same_parameters_it_is_the_same_gradient(
    make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch, gradients: str, steps: int
) -> None:
    apart: list[float] = []

    def update(self: IGA2020, given: DomainGradients, present: Tensor) -> dict[str, float]:
        rows = given.flat.clone()
        p = next(iter(given.parameters.values()))
        p.grad = marked = torch.full_like(p, 3.0)
        apart.extend(float((given.recompute(k) - rows[k]).norm() / rows[k].norm()) for k in (2, 0, 1))
        assert p.grad is marked
        return {}

    monkeypatch.setattr(IGA2020, "update", update)
    make_trainer(
        method="iga2020", gradients=gradients, max_steps=1, sets_per_batch=8 // steps, gradient_accumulation_steps=steps
    ).train()
    assert len(apart) == 3
    assert max(apart) < 1e-5


@pytest.mark.parametrize("gradients", ["segment", "domain_major"])
def test_iga2020_is_the_double_backward_of_the_model(
    make_trainer: MakeTrainer, rows: list[Row], gradients: str
) -> None:
    lam, settings = 0.3, {"sets_per_batch": 8, "max_steps": 1, "max_grad_norm": 1e9}
    oracle = make_trainer(method="erm", **settings)
    oracle.model.config._attn_implementation = "eager"  # the fused attention has no double backward
    parameters = {n: p for n, p in oracle.model.named_parameters() if p.requires_grad}
    losses = list(domain_losses(oracle, rows).values())
    g = [torch.autograd.grad(L, list(parameters.values()), create_graph=True) for L in losses]
    spread = sum(((torch.stack(parts) - torch.stack(parts).mean(0)) ** 2).sum() for parts in zip(*g, strict=True))
    total = torch.stack(losses).mean() + lam * spread
    expected = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
    plain = dict(zip(parameters, [sum(parts) / len(parts) for parts in zip(*g, strict=True)], strict=True))
    found = one_gradient(
        make_trainer(method="iga2020", alignment={"name": "iga2020", "lam": lam}, gradients=gradients, **settings)
    )
    largest = max(float(value.abs().max()) for value in expected.values())
    assert any(not torch.allclose(expected[n], plain[n].detach(), atol=0.1 * largest) for n in plain)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.float(), rtol=2e-2, atol=3e-3 * largest)


def test_bf16_is_refused_where_differences_would_be_noise(make_trainer: MakeTrainer) -> None:
    with pytest.raises(UserError, match=r"iga2020 subtracts gradients that nearly agree: set train\.bf16 to false"):
        make_trainer(method="iga2020", bf16=True)


def test_an_alignment_that_did_not_ask_gets_nothing() -> None:
    given: Any = DomainGradients.allocate(torch.nn.Linear(2, 2), 2)
    with pytest.raises(ValueError, match="domain 1 were asked for again"):
        given.recompute(1)
