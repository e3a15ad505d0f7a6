"""IGA on gradients made by hand, against loops in float64 that follow the formulas of its module and nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from isodistill.alignment import InvariantGradientAlignment
from isodistill.models.lora import DomainGradients, LoraLayer

K, LEARNING_RATE = 3, 0.5


class Two(nn.Module):
    """Two tensors of different sizes, so that normalisers per tensor show."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(9)
        self.first = nn.Parameter(torch.randn(3, 4, generator=generator))
        self.second = nn.Parameter(torch.randn(5, generator=generator))


def drawn(step: int, scale: float = 1.0) -> Tensor:
    """Domain gradients (K, 17): some entries agree, some conflict, tensors of different size."""
    generator = torch.Generator().manual_seed(step)
    shared, own = torch.randn(17, generator=generator), torch.randn(K, 17, generator=generator)
    tensor_scale = torch.cat([torch.ones(12), torch.full((5,), 7.0)])
    return scale * tensor_scale * (shared + torch.linspace(0, 2, 17) * own)


def oracle_masks(
    history: list[Tensor], presents: list[list[bool]], *, form: str, norm: str, tau: float, decay: float
) -> list[float]:
    """The mask (17,) after the last step, entry by entry."""
    averages = []
    for k in range(K):
        steps = [s for s, present in enumerate(presents) if present[k]]
        if not steps or (decay == 0 and steps[-1] != len(presents) - 1):
            continue
        ages = range(len(steps) - 1, -1, -1)
        weights = [decay**age for age in ages] if decay else [0.0] * (len(steps) - 1) + [1.0]
        averages.append(
            [
                sum(w * float(history[s][k, j]) for w, s in zip(weights, steps, strict=True)) / sum(weights)
                for j in range(17)
            ]
        )
    mean = [sum(e[j] for e in averages) / len(averages) for j in range(17)]
    V = [sum((e[j] - mean[j]) ** 2 for e in averages) / len(averages) for j in range(17)]
    mask = []
    for tensor in (range(12), range(12, 17)):
        eps = 1e-12 * sum(mean[j] ** 2 for j in tensor) / len(tensor)
        unit = sum(V[j] for j in tensor) / len(tensor)
        for j in tensor:
            if form == "ratio":
                mask.append((mean[j] ** 2 + eps) / (mean[j] ** 2 + eps + tau * V[j]))
            elif norm == "tensor_mean":
                mask.append(math.exp(-tau * V[j] / unit))
            else:
                mask.append(math.exp(-tau * V[j] / (mean[j] ** 2 + eps)))
    return mask


class Bench:
    """A module, its buffers and an alignment, stepped by plain SGD."""

    def __init__(self, total_steps: int = 10, **options: Any) -> None:
        self.module = Two()
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=LEARNING_RATE)
        self.gradients = DomainGradients.allocate(self.module, K)
        self.alignment = InvariantGradientAlignment(**{"tau_warmup": 0.0, **options})
        self.alignment.setup(layers=[], total_steps=total_steps, adaptive=False, seed=4)

    def step(self, gradients: Tensor, present: list[bool] | None = None) -> tuple[Tensor, dict[str, float]]:
        """One step; returns what was subtracted per unit of learning rate (17,), and the metrics."""
        mask = torch.tensor(present or [True] * K)
        self.gradients.flat.copy_(gradients * mask[:, None])
        before = self.parameters()
        metrics = self.alignment.update(self.gradients, mask)
        self.alignment.before_step(self.optimizer)
        self.optimizer.step()
        metrics |= self.alignment.after_step(self.optimizer)
        return (before - self.parameters()) / LEARNING_RATE, metrics

    def parameters(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.module.parameters()]).double()


FORMS: list[dict[str, Any]] = [
    {"form": "ratio", "tau": 3.0},
    {"form": "exp", "norm": "tensor_mean", "tau": 1.0},
    {"form": "exp", "norm": "relative", "tau": 0.5},
]


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f['form']}-{f.get('norm', '')}")
def test_every_step_is_the_masked_mean(form: dict[str, Any], decay: float, apply_to: str) -> None:
    bench = Bench(grad_ema=decay, apply_to=apply_to, **form)
    presents = [[True] * K, [True, False, True], [True] * K, [False, True, True]]
    history: list[Tensor] = []
    for step, present in enumerate(presents):
        history.append(drawn(step))
        found, _ = bench.step(history[-1], present)
        mask = oracle_masks(
            history, presents[: step + 1], form=form["form"], norm=form.get("norm", ""), tau=form["tau"], decay=decay
        )
        rows = [k for k in range(K) if present[k]]
        expected = [mask[j] * sum(float(history[-1][k, j]) for k in rows) / len(rows) for j in range(17)]
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=2e-4, atol=2e-5)


def test_metrics_tell_what_the_mask_did() -> None:
    bench = Bench(grad_ema=0.0, apply_to="gradient", tau=3.0)
    g = drawn(0)
    _, metrics = bench.step(g)
    mask = oracle_masks([g], [[True] * K], form="ratio", norm="", tau=3.0, decay=0.0)
    mean = g.double().mean(0)
    masked = torch.tensor(mask, dtype=torch.float64) * mean
    assert metrics["mask_density"] == pytest.approx(sum(mask) / 17, rel=1e-4)
    assert metrics["keep_rate"] == pytest.approx(sum(m >= 0.5 for m in mask) / 17)
    assert metrics["step_ratio"] == pytest.approx(float(masked.norm() / mean.norm()), rel=1e-4)
    assert metrics["cosine"] == pytest.approx(float(masked @ mean / masked.norm() / mean.norm()), rel=1e-4)
    assert metrics["tau"] == 3.0


def test_tau_rises_over_the_warm_up() -> None:
    bench = Bench(total_steps=8, tau_warmup=0.5, tau=2.0)
    assert [bench.step(drawn(s))[1]["tau"] for s in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f['form']}-{f.get('norm', '')}")
def test_domains_that_agree_are_not_masked_at_all(form: dict[str, Any], apply_to: str) -> None:
    bench, plain = Bench(grad_ema=0.0, apply_to=apply_to, **form), Bench(tau=0.0)
    g = drawn(0)[:1].expand(K, -1)
    _, metrics = bench.step(g)
    plain.step(g)
    assert metrics["mask_density"] == 1.0
    assert torch.equal(bench.parameters(), plain.parameters())


@pytest.mark.parametrize("present", [[True, False, False], [False, False, True]])
def test_one_domain_is_not_masked_at_all(present: list[bool]) -> None:
    for decay in (0.0, 0.9):
        bench, plain = Bench(grad_ema=decay), Bench(tau=0.0)
        for step in range(3):
            _, metrics = bench.step(drawn(step), present)
            plain.step(drawn(step), present)
            assert metrics["mask_density"] == 1.0
        assert torch.equal(bench.parameters(), plain.parameters())


@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_domains_that_only_conflict_stop_the_step(apply_to: str) -> None:
    pushes = torch.tensor([[1.0], [-1.0], [1e-4]]).expand(K, 17)
    bench = Bench(grad_ema=0.0, apply_to=apply_to)
    found, metrics = bench.step(pushes)
    assert 0 < metrics["mask_density"] < 1e-6
    assert float(found.abs().max()) < 1e-6


@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("form", FORMS, ids=lambda f: f"{f['form']}-{f.get('norm', '')}")
def test_the_mask_does_not_depend_on_the_scale(form: dict[str, Any], decay: float) -> None:
    densities = []
    for exponent in range(-10, 4):
        bench = Bench(grad_ema=decay, apply_to="gradient", **form)
        found, metrics = bench.step(drawn(0, 10.0**exponent))
        bench.step(drawn(1, 10.0**exponent))
        densities.append(metrics["mask_density"])
        assert torch.isfinite(found).all()
    assert densities == pytest.approx([densities[0]] * len(densities), rel=1e-5)


def test_the_order_of_the_domains_does_not_matter() -> None:
    first, second = Bench(), Bench()
    for step in range(3):
        found, _ = first.step(drawn(step))
        permuted, _ = second.step(drawn(step).flip(0))
        torch.testing.assert_close(found, permuted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"control": "random"}, {"apply_to": "update", "grad_ema": 0.0}])
def test_state_makes_a_resume_exact(options: dict[str, Any], tmp_path: Path) -> None:
    whole, first = Bench(**options, tau_warmup=0.5), Bench(**options, tau_warmup=0.5)
    for step in range(6):
        whole.step(drawn(step), [True, step != 1, True])
    for step in range(3):
        first.step(drawn(step), [True, step != 1, True])
    save_file(first.alignment.state_dict(), tmp_path / "state.safetensors")
    second = Bench(**options, tau_warmup=0.5)
    second.module.load_state_dict(first.module.state_dict())
    second.alignment.load_state_dict(load_file(tmp_path / "state.safetensors"))
    for step in range(3, 6):
        second.step(drawn(step), [True, True, True])
    assert torch.equal(second.parameters(), whole.parameters())


# ---- space weight ----


class WeightBench:
    """One LoRA layer W = W0 + s B A with dense domain gradients, in the weight space."""

    def __init__(self, **options: Any) -> None:
        generator = torch.Generator().manual_seed(3)
        self.module = nn.Module()
        self.module.A = nn.Parameter(torch.randn(2, 6, generator=generator))
        self.module.B = nn.Parameter(torch.randn(5, 2, generator=generator))
        self.layer = LoraLayer("layer", self.module.A, self.module.B, 1.5)
        self.G = torch.randn(1, 5, 6, generator=generator) + torch.randn(K, 5, 6, generator=generator)
        self.gradients = DomainGradients.allocate(self.module, K)
        self.gradients.dense["layer"] = self.G.clone()
        A, B, s = self.module.A.detach(), self.module.B.detach(), self.layer.scale
        self.gradients.views["A"].copy_(s * B.T @ self.G)
        self.gradients.views["B"].copy_(s * self.G @ A.T)
        self.alignment = InvariantGradientAlignment(space="weight", grad_ema=0.0, tau_warmup=0.0, **options)
        self.alignment.setup(layers=[self.layer], total_steps=10, adaptive=False, seed=0)
        mean = self.G.double().mean(0)
        V = (self.G.double() - mean).square().mean(0)
        self.mask = mean**2 / (mean**2 + 3 * V)
        self.mean = mean


def test_weight_space_masks_the_gradient_of_the_effective_weight() -> None:
    bench = WeightBench(apply_to="gradient")
    A, B, s = bench.module.A.detach().double(), bench.module.B.detach().double(), bench.layer.scale
    bench.alignment.update(bench.gradients, torch.ones(K, dtype=torch.bool))
    torch.testing.assert_close(bench.module.A.grad.double(), s * B.T @ (bench.mask * bench.mean), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(bench.module.B.grad.double(), s * (bench.mask * bench.mean) @ A.T, rtol=1e-4, atol=1e-5)


def test_weight_space_truncates_the_masked_gradient() -> None:
    bench = WeightBench(apply_to="gradient", svd_rank=2)
    B, s = bench.module.B.detach().double(), bench.layer.scale
    U, S, Vh = torch.linalg.svd(bench.mask * bench.mean)
    truncated = (U[:, :2] * S[:2]) @ Vh[:2]
    bench.alignment.update(bench.gradients, torch.ones(K, dtype=torch.bool))
    torch.testing.assert_close(bench.module.A.grad.double(), s * B.T @ truncated, rtol=1e-4, atol=1e-5)


def test_weight_space_masks_the_step_of_the_effective_weight() -> None:
    bench = WeightBench(apply_to="update")
    A, B, s = bench.module.A.detach().double(), bench.module.B.detach().double(), bench.layer.scale
    optimizer = torch.optim.SGD(bench.module.parameters(), lr=0.1)
    bench.alignment.update(bench.gradients, torch.ones(K, dtype=torch.bool))
    dA, dB = (-0.1 * p.grad.double() for p in (bench.module.A, bench.module.B))
    bench.alignment.before_step(optimizer)
    optimizer.step()
    bench.alignment.after_step(optimizer)
    dA_kept, dB_kept = bench.module.A.detach().double() - A, bench.module.B.detach().double() - B
    of_A, of_B = bench.mask * (s * B @ dA), bench.mask * (s * dB @ A)
    expected = B @ torch.linalg.pinv(B) @ of_A + of_B @ torch.linalg.pinv(A) @ A
    torch.testing.assert_close(s * (B @ dA_kept + dB_kept @ A), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": -0.1}, r"alignment\.tau is -0\.1"),
        ({"grad_ema": 1.0}, r"alignment\.grad_ema is 1\.0"),
        ({"tau_warmup": 1.5}, r"alignment\.tau_warmup is 1\.5"),
        ({"keep_rate": 0.0}, r"alignment\.keep_rate is 0\.0"),
        ({"space": "moon"}, r"alignment\.space is 'moon'; choose one of factor, tangent"),
        ({"svd_rank": -1, "space": "weight", "apply_to": "gradient"}, r"alignment\.svd_rank is -1"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InvariantGradientAlignment(**options)
