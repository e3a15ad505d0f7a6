"""The arithmetic of each penalty against loops and autograd that share no code with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isodistill import DistillTrainer
from isodistill.data.collate import collate
from isodistill.guards import EWC, L2, SI, LwF, OLoRA
from isodistill.models.lora import lora_layers
from isodistill.objectives import StudentOutput, TrainedTokens

from .conftest import DOMAINS, adapter, finish


class Samples:
    """Gradients that a test made up, as a finished stage hands them out."""

    rows = ()

    def __init__(self, gradients: list[Tensor]) -> None:
        self.given = gradients

    def gradients(self, n: int, *, sampled: bool) -> Iterator[Mapping[str, Tensor]]:
        yield from ({"w": g} for g in self.given[:n])


class Toy(nn.Module):
    def __init__(self, w: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))


def test_l2_adds_the_gradient_of_its_penalty() -> None:
    toy, guard = Toy([1.0, -2.0]), L2(lam=3.0)
    guard.begin(toy, {}, seed=0)
    toy.w.data += torch.tensor([0.5, 0.25])
    toy.w.grad = torch.tensor([10.0, 20.0])
    told = guard.after_backward()
    torch.testing.assert_close(toy.w.grad, torch.tensor([10.0 + 3 * 0.5, 20.0 + 3 * 0.25]))
    assert told["guard/penalty"] == pytest.approx(3 / 2 * (0.25 + 0.0625))


def test_nothing_is_pulled_in_the_first_stage() -> None:
    toy, guard = Toy([1.0]), L2()
    guard.begin(toy, None, seed=0)
    toy.w.data += 1
    toy.w.grad = torch.zeros(1)
    assert guard.after_backward() == {}
    assert float(toy.w.grad) == 0


@pytest.mark.parametrize("merge", ["separate", "online"])
def test_ewc_of_two_stages_is_the_sum_of_their_quadratics(merge: str) -> None:
    toy, past = Toy([1.0, 0.0]), None
    given = [[torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.0])], [torch.tensor([0.0, 4.0])]]
    stars = [torch.tensor([2.0, 1.0]), torch.tensor([-1.0, 5.0])]
    for gradients, star in zip(given, stars, strict=True):
        guard = EWC(lam=2.0, merge=merge, gamma=0.5)  # type: ignore[arg-type]
        guard.begin(toy, past, seed=0)
        toy.w.data = star.clone()
        guard.end(Samples(gradients))
        past = guard.carried()
    guard = EWC(lam=2.0, merge=merge, gamma=0.5)  # type: ignore[arg-type]
    guard.begin(toy, past, seed=0)
    toy.w.data = torch.tensor([0.5, 0.5])
    toy.w.grad = torch.zeros(2)
    guard.after_backward()
    fishers = [torch.tensor([5.0, 2.0]), torch.tensor([0.0, 16.0])]  # means of squares, by hand
    w = torch.tensor([0.5, 0.5], requires_grad=True)
    if merge == "separate":
        loss = sum((f * (w - star) ** 2).sum() for f, star in zip(fishers, stars, strict=True))
    else:
        loss = ((0.5 * fishers[0] + fishers[1]) * (w - stars[1]) ** 2).sum()
    torch.testing.assert_close(toy.w.grad, torch.autograd.grad(loss, w)[0])  # lam / 2 is 1


def test_si_sums_the_path_of_a_descent() -> None:
    """On L = sum a_k theta_k^2 / 2 with plain SGD, w = lr sum over steps of (a theta)^2: a geometric series."""
    a, lr, steps = torch.tensor([1.0, 3.0]), 0.1, 7
    toy, guard = Toy([2.0, -1.0]), SI(c=0.5, xi=0.2)
    guard.begin(toy, None, seed=0)
    start = toy.w.detach().clone()
    for _ in range(steps):
        toy.w.grad = a * toy.w.detach()
        guard.after_backward()
        toy.w.grad *= 0.5  # clipping, which the path integral does not see
        toy.w.data -= 2 * lr * toy.w.grad
        guard.after_step()
    guard.end(Samples([]))
    q = (1 - lr * a) ** 2
    w = lr * (a * start) ** 2 * (1 - q**steps) / (1 - q)
    delta = start * ((1 - lr * a) ** steps - 1)
    torch.testing.assert_close(guard.carried()["Om/w"], w / (delta**2 + 0.2))
    later = SI(c=0.5, xi=0.2)
    later.begin(toy, guard.carried(), seed=0)
    toy.w.data += 1.0
    toy.w.grad = torch.zeros(2)
    later.after_backward()
    torch.testing.assert_close(toy.w.grad, 2 * 0.5 * guard.carried()["Om/w"] * 1.0)


def test_si_importance_is_never_negative() -> None:
    toy, guard = Toy([0.0]), SI()
    guard.begin(toy, None, seed=0)
    toy.w.grad = torch.ones(1)
    guard.after_backward()
    toy.w.data += 1.0  # uphill
    guard.after_step()
    guard.end(Samples([]))
    assert float(guard.carried()["Om/w"]) == 0


def test_lwf_is_the_tempered_divergence_and_rests_at_the_old_student() -> None:
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    hidden, old = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    tokens = TrainedTokens(torch.arange(5) % 7, torch.zeros(5).long(), torch.zeros(5).long(), torch.ones(5))
    guard = LwF(alpha=0.7, T=2.0)

    def run(h: Tensor) -> tuple[Tensor, Tensor]:
        h = h.clone().requires_grad_()
        sides = (StudentOutput(x, lambda z: z @ head.T) for x in (h, old))
        student, teacher = sides
        losses = guard.token_losses(student, tokens, teacher)
        return losses.detach(), torch.autograd.grad(losses.sum(), h)[0]

    p, q = ((x @ head.T / 2).softmax(1) for x in (old, hidden))
    expected = 0.7 * 2**2 * torch.stack([(p[n] * (p[n] / q[n]).log()).sum() for n in range(5)])
    losses, gradient = run(hidden)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-6)
    assert float(gradient.abs().max()) > 1e-2
    losses, gradient = run(old)
    assert float(losses.abs().max()) < 1e-6
    assert float(gradient.abs().max()) < 1e-6


def test_o_lora_adds_the_gradient_of_the_dense_overlap(make_stage: Callable[..., DistillTrainer]) -> None:
    trainer = make_stage("new", None)
    layers = lora_layers(trainer.model)
    generator = torch.Generator().manual_seed(2)
    past = {f"A/{x.name}": torch.randn(5, x.A.shape[1], generator=generator) for x in layers}
    guard = OLoRA(l1=0.5, l2=0.3)
    guard.begin(trainer.model, past, seed=0)
    for layer in layers:
        layer.A.grad, layer.B.grad = torch.zeros_like(layer.A), torch.zeros_like(layer.B)
    told = guard.after_backward()
    total = 0.0
    for layer in layers:
        A, B = (x.detach().double().requires_grad_() for x in (layer.A, layer.B))
        old = past[f"A/{layer.name}"].double()
        overlap = sum((old[i] @ A[j]).abs() for i in range(5) for j in range(3))
        penalty = 0.5 * overlap + 0.3 * (A.square().sum().sqrt() + B.square().sum().sqrt())
        for p, g in zip((layer.A, layer.B), torch.autograd.grad(penalty, (A, B)), strict=True):
            torch.testing.assert_close(p.grad.double(), g, rtol=1e-4, atol=1e-5)
        total += float(overlap.detach())
    assert told["guard/overlap"] == pytest.approx(total, rel=1e-5)
    assert guard.carried()[f"A/{layers[0].name}"].shape == (8, layers[0].A.shape[1])


def log_likelihood_gradients(trainer: DistillTrainer, chosen: list[Any]) -> list[dict[str, Tensor]]:
    """By peft's own forward and autograd, row by row."""
    found = []
    named = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    pad = trainer.processing_class.pad_token_id
    for row in chosen:
        batch = collate([row], DOMAINS, pad)
        logits = trainer.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[0, :-1]
        loss = F.cross_entropy(logits, batch["labels"][0, 1:], ignore_index=-100, reduction="sum")
        found.append(dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)))
    return found


@pytest.mark.parametrize("gradients", ["segment", "domain_major"])
def test_the_fisher_is_of_single_rows_and_not_of_a_batch(
    make_stage: Callable[..., DistillTrainer], gradients: str
) -> None:
    trainer = make_stage("first", {"name": "ewc", "n_samples": 100}, gradients=gradients)
    folder = finish(trainer)
    from safetensors.torch import load_file

    state = load_file(folder / "guard" / "state.safetensors")
    each = log_likelihood_gradients(trainer, list(trainer.train_dataset))
    for name in each[0]:
        stacked = torch.stack([g[name].double() for g in each])
        single = (stacked**2).mean(0)
        torch.testing.assert_close(state[f"F/{name}"].double(), single, rtol=2e-3, atol=1e-6 * float(single.max()))
        batched = stacked.mean(0) ** 2
        assert float(batched.sum()) < 0.9 * float(single.sum())
    now = adapter(trainer)
    assert all(torch.equal(state[f"theta/{name}"], now[name]) for name in now)


def test_sampled_labels_give_another_fisher(make_stage: Callable[..., DistillTrainer]) -> None:
    from safetensors.torch import load_file

    traces = []
    for fisher in ("empirical", "sampled", "sampled"):
        folder = finish(make_stage(f"run-{len(traces)}", {"name": "ewc", "fisher": fisher}))
        state: dict[str, Tensor] = load_file(Path(folder) / "guard" / "state.safetensors")
        traces.append(sum(float(value.sum()) for key, value in state.items() if key.startswith("F/")))
    assert traces[1] == traces[2]
    assert abs(traces[0] - traces[1]) > 1e-3 * traces[0]
