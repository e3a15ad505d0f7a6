"""Penalties over a whole step against plain autograd over the model's own forward, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from isodistill import DistillConfig, DistillTrainer
from isodistill.data.rows import Row
from isodistill.errors import UserError

from .test_training_step import domain_losses, one_gradient, oracle_gradient

MakeTrainer = Callable[..., DistillTrainer]
SETTINGS = {"max_steps": 1, "max_grad_norm": 1e9}


def irm_penalty(trainer: DistillTrainer, rows: list[Row], estimator: str) -> Tensor:
    """IRMv1 as it is defined: a dummy scale of the logits, and the derivative taken with a graph."""
    halves: dict[str, list[list[Tensor]]] = {d: [[], []] for d in trainer.domains}
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    encoded = {e.row_id: e for e in trainer.train_dataset}
    seen = dict.fromkeys(trainer.domains, 0)
    for row in rows:
        e = encoded[row.id]
        logits = trainer.model(input_ids=torch.tensor([e.input_ids])).logits[0].double() * w
        losses = F.cross_entropy(logits[:-1], torch.tensor(e.labels[1:]), ignore_index=-100, reduction="none")
        half = seen[row.domain] % 2 if estimator == "split" else 0
        halves[row.domain][half] += list(losses[torch.tensor(e.labels[1:]) != -100])
        seen[row.domain] += 1
    D = []
    for parts in halves.values():
        d = [torch.autograd.grad(torch.stack(p).mean(), w, create_graph=True)[0] for p in parts if p]
        D.append(d[0] * d[-1])
    return torch.stack(D).mean()


def features(trainer: DistillTrainer, rows: list[Row]) -> dict[str, Tensor]:
    """Mean last hidden state over the prompt, by the whole model."""
    encoded = {e.row_id: e for e in trainer.train_dataset}
    found: dict[str, list[Tensor]] = {d: [] for d in trainer.domains}
    for row in rows:
        e = encoded[row.id]
        out = trainer.model(input_ids=torch.tensor([e.input_ids]), output_hidden_states=True)
        question = sum(label == -100 for label in e.labels)
        found[row.domain].append(out.hidden_states[-1][0, :question].double().mean(0))
    return {d: torch.stack(phi) for d, phi in found.items()}


def coral_penalty(trainer: DistillTrainer, rows: list[Row]) -> Tensor:
    phi = list(features(trainer, rows).values())
    pairs = []
    for i in range(len(phi)):
        for j in range(i):
            means = (phi[i].mean(0) - phi[j].mean(0)).square().mean()
            pairs.append(means + (phi[i].T.cov() - phi[j].T.cov()).square().mean())
    return torch.stack(pairs).mean()


def fishr_penalty(trainer: DistillTrainer, rows: list[Row], *, relative: bool) -> Tensor:
    """From gradients of single sequences with respect to the gain of the last norm, each taken with a graph."""
    encoded = {e.row_id: e for e in trainer.train_dataset}
    gain = torch.ones(32, requires_grad=True)
    hook = trainer.model.get_base_model().model.norm.register_forward_hook(lambda module, args, out: out * gain)
    found: dict[str, list[Tensor]] = {d: [] for d in trainer.domains}
    for row in rows:
        e = encoded[row.id]
        logits = trainer.model(input_ids=torch.tensor([e.input_ids])).logits[0]
        loss = F.cross_entropy(logits[:-1], torch.tensor(e.labels[1:]), ignore_index=-100)
        found[row.domain].append(torch.autograd.grad(loss, gain, create_graph=True)[0].double())
    hook.remove()
    v = torch.stack([torch.stack(g).var(0, correction=0) for g in found.values()])
    spread = (v - v.mean(0)).square().mean()
    return spread / v.detach().mean(0).square().mean() if relative else spread


def expected_gradient(
    trainer: DistillTrainer, rows: list[Row], penalty: Callable[[], Tensor], lam: float
) -> dict[str, Tensor]:
    trainer.model.zero_grad()
    (torch.stack(list(domain_losses(trainer, rows).values())).mean() + lam * penalty()).backward()
    return {n: p.grad.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


def in_the_order_of_the_sampler(trainer: DistillTrainer, rows: list[Row]) -> list[Row]:
    trainer.get_train_dataloader()
    order = [index for batch in trainer.sampler for index in batch]
    by_id = {row.id: row for row in rows}
    return [by_id[trainer.train_dataset[index].row_id] for index in order]


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("gradients", ["segment", "domain_major"])
@pytest.mark.parametrize(
    "alignment",
    [
        {"name": "irm", "lam": 30.0, "anneal": 0.0},
        {"name": "irm", "lam": 30.0, "anneal": 0.0, "estimator": "squared"},
        {"name": "coral", "lam": 50.0},
        {"name": "fishr", "lam": 1e9, "anneal": 0.0, "scale": "reference"},
        {"name": "fishr", "lam": 30.0, "anneal": 0.0, "ema": 0.0},
    ],
    ids=["irm-split", "irm-squared", "coral", "fishr-reference", "fishr-relative"],
)
def test_the_gradient_is_that_of_loss_and_penalty(
    make_trainer: MakeTrainer, rows: list[Row], alignment: dict[str, Any], gradients: str, steps: int
) -> None:
    common = {"method": alignment["name"], "alignment": alignment, "gradients": gradients, **SETTINGS}
    oracle = make_trainer(sets_per_batch=8, **common)
    ordered = in_the_order_of_the_sampler(oracle, rows)
    penalties: dict[str, Callable[[], Tensor]] = {
        "irm": lambda: irm_penalty(oracle, ordered, alignment.get("estimator", "split")),
        "coral": lambda: coral_penalty(oracle, ordered),
        "fishr": lambda: fishr_penalty(oracle, ordered, relative="scale" not in alignment),
    }
    expected = expected_gradient(oracle, ordered, penalties[alignment["name"]], alignment["lam"])
    plain = oracle_gradient(oracle, rows)
    found = one_gradient(make_trainer(sets_per_batch=8 // steps, gradient_accumulation_steps=steps, **common))
    largest = max(float(value.abs().max()) for value in expected.values())
    assert any(not torch.allclose(expected[n], plain[n], rtol=1e-2, atol=1e-3 * largest) for n in plain)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.float(), rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_adversary_pushes_the_student_and_learns_itself(
    make_trainer: MakeTrainer, rows: list[Row], steps: int
) -> None:
    """Two separate gradients: dL - lam dCE for the student, lam dCE for the classifier."""
    common = {"method": "dann", "alignment": {"name": "dann", "lam": 5.0}, **SETTINGS}
    trainer = make_trainer(sets_per_batch=8 // steps, gradient_accumulation_steps=steps, **common)
    trainer.alignment._step = 7  # else lam is 0 in the first step
    lam = 5.0 * (2 / (1 + torch.tensor(-70.0).exp()) - 1)  # the run has one step
    oracle = make_trainer(sets_per_batch=8, **common)
    phi = features(oracle, rows)
    trainer.alignment._total_steps, trainer.alignment._seed = 1, trainer.args.seed
    trainer.alignment._make(32, 3)
    classifier = trainer.alignment._classifier
    begin = {n: p.detach().clone() for n, p in classifier.named_parameters()}
    means = [F.cross_entropy(classifier.double()(x), torch.full((len(x),), k)) for k, x in enumerate(phi.values())]
    CE = torch.stack(means).mean()
    classifier_gradient = torch.autograd.grad(CE, list(classifier.parameters()), retain_graph=True)
    oracle.model.zero_grad()
    (torch.stack(list(domain_losses(oracle, rows).values())).mean() - lam * CE).backward()
    expected = {n: p.grad.detach().clone() for n, p in oracle.model.named_parameters() if p.requires_grad}
    classifier.float()
    found = one_gradient(trainer)
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.float(), rtol=1e-3, atol=1e-5 * largest)
    for (name, p), g in zip(classifier.named_parameters(), classifier_gradient, strict=True):
        torch.testing.assert_close(p.grad, (lam * g).float(), rtol=1e-3, atol=1e-5)
        assert not torch.equal(p.detach(), begin[name])


def test_answers_never_reach_the_features(make_trainer: MakeTrainer, rows: list[Row]) -> None:
    """What the answers are made of changes the losses, but not what CORAL compares."""
    penalties = []
    for completion in ("4 + 4 = 8. The answer is 8.", "No. No. No. No. No. No. No. No."):
        changed = [replace(row, completion=completion) for row in rows]
        trainer = make_trainer(changed, method="coral", sets_per_batch=8, **SETTINGS)
        trainer.train()
        penalties.append(next(line["penalty"] for line in trainer.state.log_history if "penalty" in line))
    assert penalties[0] == pytest.approx(penalties[1], rel=1e-4)
    assert penalties[0] > 0


def test_dropout_is_refused_since_the_passes_would_differ(make_trainer: MakeTrainer, rows: list[Row]) -> None:
    trainer = make_trainer()
    for module in trainer.model.modules():
        if hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = torch.nn.Dropout(0.1)
    args = DistillConfig(method="irm", output_dir=trainer.args.output_dir, use_cpu=True, bf16=False)
    with pytest.raises(UserError, match="irm sees every batch twice"):
        DistillTrainer(trainer.model, args=args, train_dataset=rows, processing_class=trainer.processing_class)
