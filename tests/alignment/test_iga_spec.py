"""What IGA must show, item by item; every oracle is dense float64 algebra or a loop, and shares no code with IGA.

Item 11 (several processes) is tests/distributed; items 3, 10 and 18 are shown on whole trainings too, in
tests/training: test_neutral_and_controls.py, test_training_step.py, test_resume.py.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isodistill.alignment import InvariantGradientAlignment
from isodistill.models.lora import DomainGradients, LoraLayer
from isodistill.numerics import (
    DomainMoments,
    MaskRule,
    TangentBasis,
    Thin,
    TileMask,
    axis_means,
    conflict_mask,
    domain_contrasts,
    lora_pro,
    permuted_mask,
    pull_back,
    sylvester_gauge,
    tangent_gradient,
    truncated_svd,
)

K, M, N, R, SCALE, LR = 3, 7, 9, 2, 1.5, 0.1
SPACES = ("factor", "tangent", "tangent_separable", "weight")
LAYER_SPACES = SPACES[1:]
MODES = ("gradient", "update")
KINDS = [("ratio", "tensor_mean")] + [
    ("exp", norm) for norm in ("tensor_mean", "global_mean", "relative", "bounded", "keep_rate")
]


class Bench:
    """One LoRA layer W = s B A whose domains have given gradients G_k of W, stepped by SGD or Adam."""

    def __init__(self, G: Tensor, A: Tensor, B: Tensor, *, adam: bool = False, **options: Any) -> None:
        self.module = nn.Module()
        self.module.A, self.module.B = nn.Parameter(A.float()), nn.Parameter(B.float())
        self.G, self.A, self.B = G.double(), A.double(), B.double()
        self.layer = LoraLayer("layer", self.module.A, self.module.B, SCALE)
        kind = torch.optim.Adam if adam else torch.optim.SGD
        self.optimizer = kind(self.module.parameters(), lr=LR)
        self.gradients = DomainGradients.allocate(self.module, len(G))
        self.gradients.dense["layer"] = G.float()
        self.gradients.views["A"].copy_(SCALE * B.T @ G)
        self.gradients.views["B"].copy_(SCALE * G @ A.T)
        self.alignment = InvariantGradientAlignment(**{"grad_ema": 0.0, "tau_warmup": 0.0, **options})
        self.alignment.setup(layers=[self.layer], total_steps=10, adaptive=adam, seed=5)
        self.present = torch.ones(len(G), dtype=torch.bool)

    def step(self) -> dict[str, float]:
        metrics = self.alignment.update(self.gradients, self.present)
        self.alignment.before_step(self.optimizer)
        self.optimizer.step()
        return metrics | self.alignment.after_step(self.optimizer)

    def deltas(self) -> tuple[Tensor, Tensor]:
        return self.module.A.detach().double() - self.A, self.module.B.detach().double() - self.B

    def step_of_w(self) -> Tensor:
        """First order step of W, (m, n)."""
        dA, dB = self.deltas()
        return SCALE * (self.B @ dA + dB @ self.A)


def factors(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(R, N, generator=generator).double()
    return A, torch.randn(M, R, generator=generator).double()


def gradients(seed: int = 1, domains: int = K) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(1, M, N, generator=generator).double()
    return shared + torch.randn(domains, M, N, generator=generator).double()


def projected(X: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """P_T X with dense projectors."""
    P_B, P_A = B @ torch.linalg.pinv(B), torch.linalg.pinv(A) @ A
    return P_B @ X + X @ P_A - P_B @ X @ P_A


def dense_mask(T: Tensor, space: str, tau: float = 3.0) -> Tensor:
    """The ratio mask of K dense matrices; for TS from its row and column means."""
    mean = sum(T) / len(T)
    V = sum((t - mean) ** 2 for t in T) / len(T)
    if space != "tangent_separable":
        return mean**2 / (mean**2 + tau * V)
    gates = []
    for axis in (1, 0):
        signal, noise = (mean**2).mean(axis), V.mean(axis)
        gates.append(signal / (signal + tau * noise))
    return torch.outer(gates[0], gates[1]).sqrt()


def in_space(G: Tensor, A: Tensor, B: Tensor, space: str) -> Tensor:
    return G if space == "weight" else torch.stack([projected(g, A, B) for g in G])


# ---- items 1 to 7: the mask ----


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("form", ["ratio", "exp"])
def test_item_01_equal_gradients_are_left_alone_bit_for_bit(space: str, mode: str, form: str) -> None:
    A, B = factors()
    G = gradients()[:1].expand(K, -1, -1)
    masked, plain = (Bench(G, A, B, space=space, apply_to=mode, form=form, tau=tau) for tau in (3.0, 0.0))
    metrics = masked.step()
    plain.step()
    assert metrics["mask_density"] == 1.0
    assert all(torch.equal(x, y) for x, y in zip(masked.deltas(), plain.deltas(), strict=True))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("mode", MODES)
def test_item_02_one_domain_is_left_alone_bit_for_bit(space: str, mode: str) -> None:
    A, B = factors()
    masked, plain = (Bench(gradients(domains=1), A, B, space=space, apply_to=mode, tau=tau) for tau in (3.0, 0.0))
    assert masked.step()["mask_density"] == 1.0
    plain.step()
    assert all(torch.equal(x, y) for x, y in zip(masked.deltas(), plain.deltas(), strict=True))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("mode", MODES)
def test_item_03_tau_zero_is_autograd_of_the_mean_loss(space: str, mode: str) -> None:
    A, B = factors()
    G = gradients()
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    loss = sum((g * (SCALE * b @ a)).sum() for g in G) / K
    expected = torch.autograd.grad(loss, (a, b))
    bench = Bench(G, A, B, space=space, apply_to=mode, tau=0.0)
    bench.step()
    for delta, gradient in zip(bench.deltas(), expected, strict=True):
        torch.testing.assert_close(delta, -LR * gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_item_04_masks_lie_in_the_unit_interval_and_fall_with_v_and_tau(kind: tuple[str, str]) -> None:
    generator = torch.Generator().manual_seed(0)
    mean, V = torch.randn(400, generator=generator), torch.rand(400, generator=generator) ** 4 * 50
    by_tau = [conflict_mask(mean, V, tau, *kind, global_mean=1.0) for tau in (0.0, 0.3, 1.0, 10.0)]
    for weaker, stronger in pairwise(by_tau):
        assert ((stronger > 0) & (stronger <= weaker) & (weaker <= 1)).all()
    fixed = conflict_mask(torch.ones(400), V, 1.0, *kind, global_mean=1.0)
    assert (fixed[V.argsort()].diff() <= 0).all()


@pytest.mark.parametrize(
    ("space", "kind"),
    [(s, k) for s in SPACES for k in KINDS if s != "tangent_separable" or k[1] not in ("relative", "bounded")],
)
def test_item_05_the_scale_of_the_gradients_does_not_matter(space: str, kind: tuple[str, str]) -> None:
    form, norm = kind
    A, B = factors()
    found = []
    for c in (1e-6, 1.0, 1e3):
        bench = Bench(c * gradients(), A, B, space=space, apply_to="gradient", form=form, norm=norm, tau=1.0)
        found.append(bench.step())
    for name in ("mask_density", "step_ratio", "cosine"):
        assert [f[name] for f in found] == pytest.approx([found[1][name]] * 3, rel=1e-3)
    assert found[0]["mask_density"] < 0.99


@pytest.mark.parametrize("space", SPACES)
def test_item_06_the_order_of_the_domains_does_not_matter(space: str) -> None:
    A, B = factors()
    G = gradients()
    here, there = Bench(G, A, B, space=space), Bench(G[[2, 0, 1]], A, B, space=space)
    here.step()
    there.step()
    torch.testing.assert_close(here.step_of_w(), there.step_of_w(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("seed", range(5))
def test_item_07_the_masked_direction_never_turns_against_the_mean(space: str, seed: int) -> None:
    A, B = factors(seed)
    bench = Bench(gradients(seed), A, B, space=space, apply_to="gradient", tau=10.0)
    assert bench.step()["cosine"] >= 0


# ---- items 8 to 14: the numerics ----


def test_item_08_truncation_is_idempotent_and_optimal() -> None:
    G, rank = gradients(domains=1)[0], 3
    sigma = np.linalg.svd(G.numpy(), compute_uv=False)

    def cut(X: Tensor) -> Tensor:
        U, S, Vh, _ = truncated_svd(X, rank)
        return (U * S) @ Vh

    best = cut(G)
    torch.testing.assert_close(cut(best), best)
    assert float((G - best).norm()) == pytest.approx(math.sqrt((sigma[rank:] ** 2).sum()))
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        Q = torch.linalg.qr(torch.randn(M, rank, generator=generator).double()).Q
        assert (G - best).norm() <= (G - Q @ Q.T @ G).norm()


def test_item_09_streaming_moments_and_contrasts_equal_two_passes() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 40)) + 100
    moments = DomainMoments()
    for row in rows:
        moments.update(torch.tensor(row))
    np.testing.assert_allclose(moments.variance.numpy(), rows.var(0), rtol=1e-12)
    mean, contrasts = domain_contrasts(torch.tensor(rows))
    np.testing.assert_allclose(mean.numpy(), rows.mean(0), rtol=1e-14)
    np.testing.assert_allclose(contrasts.square().sum(0).numpy() / 5, rows.var(0), rtol=1e-12)


@pytest.mark.parametrize("space", SPACES)
def test_item_10_two_micro_batches_equal_one(space: str) -> None:
    """Buffers add up before the mask is made; halves of unequal weight give the step of their sum."""
    A, B = factors()
    whole = Bench(gradients(), A, B, space=space)
    split = Bench(gradients(), A, B, space=space)
    for buffer in (split.gradients.flat, split.gradients.dense["layer"]):
        parts = 0.3 * buffer, 0.7 * buffer
        buffer.zero_().add_(parts[0]).add_(parts[1])
    whole.step()
    split.step()
    torch.testing.assert_close(split.step_of_w(), whole.step_of_w(), rtol=1e-4, atol=1e-6)


def test_item_12_hooked_gradients_equal_autograd_of_a_merged_model(peft_model: Any) -> None:
    from isodistill.models.lora import lora_layers, segmented_lora

    model = peft_model.double()
    buffers = DomainGradients.allocate(model, 2, dense=True)
    ids = torch.randint(5, 60, (4, 6), generator=torch.Generator().manual_seed(0))
    layers = lora_layers(model)
    with segmented_lora(model, buffers, torch.float64):
        buffers.row_bounds, buffers.n_tokens = [0, 1, 4], ids.numel()
        loss = F.cross_entropy(model(input_ids=ids).logits[:, :-1].reshape(-1, 64), ids[:, 1:].reshape(-1))
        loss.backward()
    modules = dict(model.named_modules())
    for module_layer in layers:
        module = modules[module_layer.name]
        module.base_layer.weight.data += module_layer.scale * (module_layer.B @ module_layer.A).detach()
        module.base_layer.weight.requires_grad_()
    with model.disable_adapter():
        loss = F.cross_entropy(model(input_ids=ids).logits[:, :-1].reshape(-1, 64), ids[:, 1:].reshape(-1))
    weights = [modules[module_layer.name].base_layer.weight for module_layer in layers]
    for module_layer, expected in zip(layers, torch.autograd.grad(loss, weights), strict=True):
        found = buffers.dense[module_layer.name].sum(0).double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def thin(G: Tensor, A: Tensor, B: Tensor) -> Thin:
    """P_T(G_j) of J dense matrices by the code under test."""
    pairs = [tangent_gradient(*pull_back(g, A, B, SCALE), A, B, SCALE) for g in G]
    return Thin(torch.stack([left for left, _ in pairs]), torch.stack([right for _, right in pairs]))


def test_item_13_tangent_gradients_their_sums_and_tiles_equal_dense_algebra(monkeypatch: pytest.MonkeyPatch) -> None:
    A, B = factors()
    T = torch.stack([projected(g, A, B) for g in gradients()])
    torch.testing.assert_close(thin(gradients(), A, B).dense(), T)
    V = ((T - T.mean(0)) ** 2).mean(0)
    mean, contrasts = domain_contrasts(gradients().flatten(1))
    c = thin(contrasts.view(-1, M, N), A, B)
    rows, columns = (axis / K for axis in axis_means(c))
    torch.testing.assert_close((rows, columns), (V.mean(1), V.mean(0)))
    torch.testing.assert_close(c.energy().sum() / K, V.sum())
    basis = TangentBasis(A, B)
    torch.testing.assert_close(basis.energy(B.T @ T[0], T[0] @ A.T), (T[0] ** 2).sum())
    m = thin(mean.view(1, M, N), A, B)
    expected = dense_mask(T, "tangent")
    mask = TileMask(m, c, MaskRule.of_moments(3.0, "ratio", "tensor_mean", m.energy()[0] / (M * N), V.mean()))
    for rows_per_tile in (1, 2, 100):  # rows of 9 entries
        monkeypatch.setattr("isodistill.numerics.moments.CHUNK_PER_THREAD", rows_per_tile * N)
        removal = mask.remove(m, A, B)
        D = (1 - expected) * T.mean(0)
        torch.testing.assert_close(mask.dense(), expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close((removal.L, removal.R), (B.T @ D, D @ A.T), rtol=1e-6, atol=1e-9)


def test_item_14_lora_pro_steps_along_the_projection_whatever_the_gauge() -> None:
    A, B = factors()
    G = gradients(domains=1)[0]
    L, R_ = B.T @ G, G @ A.T
    for X in (None, torch.randn(R, R, generator=torch.Generator().manual_seed(0)).double()):
        gA, gB = lora_pro(L, R_, A, B, SCALE, X)
        torch.testing.assert_close(SCALE * (B @ gA + gB @ A), projected(G, A, B))
    X = sylvester_gauge(L, A, B, SCALE)
    residual = B.T @ B @ X + X @ A @ A.T + torch.linalg.inv(B.T @ B) @ L @ A.T / SCALE
    assert residual.norm() < 1e-9 * (B.T @ B @ X).norm()


# ---- the steps of the tiers, against dense algebra ----


@pytest.mark.parametrize("space", LAYER_SPACES)
def test_gradients_are_masked_in_the_space_of_w(space: str) -> None:
    A, B = factors()
    bench = Bench(gradients(), A, B, space=space, apply_to="gradient")
    metrics = bench.step()
    T = in_space(gradients(), A, B, space)
    mask = dense_mask(T, space)
    masked = mask * T.mean(0)
    dA, dB = bench.deltas()
    torch.testing.assert_close(dA, -LR * SCALE * B.T @ masked, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(dB, -LR * SCALE * masked @ A.T, rtol=1e-4, atol=1e-6)
    assert metrics["mask_density"] == pytest.approx(float(mask.mean()), rel=1e-4)
    assert metrics["keep_rate"] == pytest.approx(float((mask >= 0.5).double().mean()))
    assert metrics["step_ratio"] == pytest.approx(float(masked.norm() / T.mean(0).norm()), rel=1e-4)
    kept = projected(masked, A, B).norm() ** 2 / masked.norm() ** 2
    assert metrics["tangent_kept"] == pytest.approx(float(kept), rel=1e-3)


@pytest.mark.parametrize("space", LAYER_SPACES)
@pytest.mark.parametrize("adam", [False, True])
def test_steps_are_masked_in_the_space_of_w(space: str, adam: bool) -> None:
    A, B = factors()
    bench, plain = (Bench(gradients(), A, B, adam=adam, space=space, apply_to="update", tau=t) for t in (3.0, 0.0))
    metrics = bench.step()
    plain.step()
    mask, (dA, dB) = dense_mask(in_space(gradients(), A, B, space), space), plain.deltas()
    of_A, of_B = mask * (SCALE * B @ dA), mask * (SCALE * dB @ A)
    step = B @ torch.linalg.pinv(B) @ of_A + of_B @ torch.linalg.pinv(A) @ A
    torch.testing.assert_close(bench.step_of_w(), step, rtol=1e-4, atol=1e-5)
    kept = step.norm() ** 2 / (of_A + of_B).norm() ** 2
    assert metrics["tangent_kept"] == pytest.approx(min(1.0, float(kept)), rel=1e-3)
    assert metrics["step_ratio"] == pytest.approx(float((of_A + of_B).norm() / plain.step_of_w().norm()), rel=1e-4)


@pytest.mark.parametrize("space", LAYER_SPACES)
def test_a_small_b_does_not_throw_a_away(space: str) -> None:
    """As LoRA begins: the masked step of A is about as long as Adam's own, however small B is."""
    A, B = factors()
    for size in (1.0, 1e-3, 1e-6):
        bench, plain = (
            Bench(gradients(), A, size * B, adam=True, space=space, apply_to="update", tau=t) for t in (3.0, 0.0)
        )
        bench.step()
        plain.step()
        for mine, theirs in zip(bench.deltas(), plain.deltas(), strict=True):
            assert mine.norm() < 3 * theirs.norm()


@pytest.mark.parametrize("space", LAYER_SPACES)
@pytest.mark.parametrize("rank", [0, R, 2 * R])
def test_lora_pro_and_truncation_in_every_tier(space: str, rank: int) -> None:
    A, B = factors()
    bench = Bench(
        gradients(), A, B, space=space, apply_to="gradient", project_back="lora_pro", svd_rank=rank, svd="exact"
    )
    bench.step()
    T = in_space(gradients(), A, B, space)
    G = dense_mask(T, space) * T.mean(0)
    if rank:
        U, S, Vh = torch.linalg.svd(G)
        G = (U[:, :rank] * S[:rank]) @ Vh[:rank]
    torch.testing.assert_close(bench.step_of_w(), -LR * projected(G, A, B), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("space", LAYER_SPACES)
def test_retraction_cuts_the_step_of_w_back_to_rank_r(space: str) -> None:
    A, B = factors()
    bench = Bench(gradients(), A, B, space=space, apply_to="gradient", project_back="retract", grad_ema=0.0)
    bench.step()
    T = in_space(gradients(), A, B, space)
    target = SCALE * B @ A - LR * projected(dense_mask(T, space) * T.mean(0), A, B)
    U, S, Vh = torch.linalg.svd(target)
    A1, B1 = bench.module.A.detach().double(), bench.module.B.detach().double()
    torch.testing.assert_close(SCALE * B1 @ A1, (U[:, :R] * S[:R]) @ Vh[:R], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(B1.T @ B1, A1 @ A1.T, rtol=1e-4, atol=1e-5)  # balanced


def test_the_start_of_lora_is_masked_in_the_row_space() -> None:
    A, B = factors()
    B = torch.zeros_like(B)
    bench = Bench(gradients(), A, B, space="tangent", apply_to="gradient")
    assert bench.step()["tier_fallbacks"] == 0
    T = gradients() @ (torch.linalg.pinv(A) @ A)
    dA, dB = bench.deltas()
    assert torch.equal(dA, torch.zeros_like(dA))
    torch.testing.assert_close(dB, -LR * SCALE * (dense_mask(T, "tangent") * T.mean(0)) @ A.T, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("space", LAYER_SPACES)
def test_a_failed_factorisation_falls_back_to_tier_f_and_says_so(space: str, monkeypatch: pytest.MonkeyPatch) -> None:
    A, B = factors()

    def fail(*args: Any) -> None:
        raise torch.linalg.LinAlgError

    monkeypatch.setattr("isodistill.alignment.iga_layers.TangentBasis", fail)
    bench, tier_f = Bench(gradients(), A, B, space=space), Bench(gradients(), A, B, space="factor")
    assert bench.step()["tier_fallbacks"] == 1
    tier_f.step()
    for found, expected in zip(bench.deltas(), tier_f.deltas(), strict=True):
        torch.testing.assert_close(found, expected)


# ---- items 15 to 19: properties of the method ----


@pytest.mark.parametrize("space", SPACES)
def test_item_15_the_basis_of_the_factors_does_not_matter_outside_tier_f(space: str) -> None:
    A, B = factors()
    basis = torch.randn(R, R, generator=torch.Generator().manual_seed(9)).double()
    options = {"space": space, "apply_to": "gradient"}
    if space != "factor":
        options["project_back"] = "lora_pro"
    here = Bench(gradients(), A, B, **options)
    there = Bench(gradients(), torch.linalg.inv(basis) @ A, B @ basis, **options)
    here.step()
    there.step()
    difference = float((here.step_of_w() - there.step_of_w()).norm() / here.step_of_w().norm())
    assert difference > 0.1 if space == "factor" else difference < 1e-4


def test_item_16_adam_cancels_a_fixed_mask_on_the_gradient_but_not_on_the_update() -> None:
    """200 steps on noise around a slope; a mask down to 0.0026 by entry."""
    generator = torch.Generator().manual_seed(0)
    mask, slope = torch.logspace(math.log10(0.0026), 0, 50), torch.randn(50, generator=generator)

    def run(mode: str) -> Tensor:
        noise = torch.Generator().manual_seed(1)
        p = nn.Parameter(torch.zeros(50))
        adam = torch.optim.Adam([p], lr=1e-2)
        for _ in range(200):
            g = slope + 0.5 * torch.randn(50, generator=noise)
            before = p.detach().clone()
            p.grad = mask * g if mode == "gradient" else g
            adam.step()
            if mode == "update":
                p.data = before + mask * (p.data - before)
        return p.detach()

    plain = run("none")
    assert (run("gradient") - plain).norm() < 0.002 * plain.norm()
    assert (run("update") - plain).norm() > 0.5 * plain.norm()


def test_item_16_an_unmasked_second_moment_keeps_the_mask_on_the_gradient_alive() -> None:
    """Against Adam written out, m fed by M * g and v by g; clipping shortens both."""
    A, B = factors()
    options = {"space": "factor", "apply_to": "gradient", "second_moment": "unmasked"}
    bench, mask = Bench(gradients(), A, B, adam=True, **options), []
    clip = 0.5
    for name, view in bench.gradients.views.items():
        mean = view.double().mean(0)
        V = view.double().var(0, correction=0)
        mask.append((name, mean, mean**2 / (mean**2 + 3 * V)))
    total = math.sqrt(sum(float((mean**2).sum()) for _, mean, _ in mask))
    expected = {"A": A.clone(), "B": B.clone()}
    moments = {name: (torch.zeros_like(mean), torch.zeros_like(mean)) for name, mean, _ in mask}
    for t in (1, 2, 3):
        bench.alignment.update(bench.gradients, bench.present)
        bench.alignment.before_clipping()
        nn.utils.clip_grad_norm_(bench.module.parameters(), clip * total)
        bench.alignment.before_step(bench.optimizer)
        bench.optimizer.step()
        bench.alignment.after_step(bench.optimizer)
        for name, mean, M_ in mask:
            g = clip * mean
            m, v = moments[name]
            m, v = 0.9 * m + 0.1 * M_ * g, 0.999 * v + 0.001 * g**2
            moments[name] = (m, v)
            expected[name] -= LR * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    for found, name in ((bench.module.A, "A"), (bench.module.B, "B")):
        torch.testing.assert_close(found.detach().double(), expected[name], rtol=1e-3, atol=1e-4)


def test_item_17_a_random_mask_has_the_same_entries_and_step_ratio() -> None:
    generator = torch.Generator().manual_seed(0)
    mask, x = torch.rand(M, N, generator=generator), torch.randn(M, N, generator=generator)
    random = permuted_mask(mask, x, generator)
    ratio = (random.flatten().sort().values / mask.flatten().sort().values).double()
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-5, atol=0)
    assert not torch.allclose(random / ratio.mean(), mask)
    assert float((random * x).norm()) == pytest.approx(float((mask * x).norm()), rel=1e-5)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("control", ["random", "uniform"])
def test_item_17_controls_keep_the_step_ratio_in_every_tier(space: str, mode: str, control: str) -> None:
    A, B = factors()
    found = {c: Bench(gradients(), A, B, space=space, apply_to=mode, control=c).step() for c in ("none", control)}
    assert found[control]["step_ratio"] == pytest.approx(found["none"]["step_ratio"], rel=1e-4)
    if control == "uniform":
        # One constant per tensor: in tier F, A and B have one each.
        assert found[control]["cosine"] == pytest.approx(1.0, abs=1e-3 if space == "factor" else 1e-5)
    else:
        assert found[control]["cosine"] != pytest.approx(found["none"]["cosine"], rel=1e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"space": "factor", "var_ema": 0.7},
        {"space": "tangent", "grad_ema": 0.9},
        {"space": "tangent", "refresh": 2},
        {"space": "tangent_separable", "var_ema": 0.7, "control": "random"},
        {"preset": "literal", "grad_ema": 0.5, "var_ema": 0.5},
    ],
    ids=lambda o: "-".join(map(str, o.values())),
)
def test_item_18_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(options: dict[str, Any]) -> None:
    A, B = factors()
    benches = [Bench(gradients(), A, B, **options) for _ in range(2)]
    whole, first = benches

    def go(bench: Bench, seeds: range) -> None:
        for seed in seeds:
            fresh = Bench(gradients(seed), A, B)
            bench.gradients.flat.copy_(fresh.gradients.flat)
            bench.gradients.dense["layer"].copy_(fresh.gradients.dense["layer"])
            bench.step()

    go(whole, range(6))
    go(first, range(3))
    state = {key: value.clone() for key, value in first.alignment.state_dict().items()}
    second = Bench(gradients(), A, B, **options)
    second.module.load_state_dict(first.module.state_dict())
    second.alignment.load_state_dict(state)
    go(second, range(3, 6))
    assert all(torch.equal(x, y) for x, y in zip(second.deltas(), whole.deltas(), strict=True))


def test_item_19_linear_toy_a_cue_that_flips_between_domains_is_left_alone() -> None:
    """y = x_inv + sign_k x_spu: IGA's error in an unseen domain is below ERM's and the random mask's."""
    signs = torch.tensor([1.0, 1.0, 1.0, -1.0, 1.0, -1.0])

    def error(**options: Any) -> float:
        p = nn.Parameter(torch.zeros(8))
        module = nn.Module()
        module.p = p
        buffers = DomainGradients.allocate(module, len(signs))
        alignment = InvariantGradientAlignment(space="factor", tau_warmup=0.0, grad_ema=0.9, **options)
        alignment.setup(layers=[], total_steps=300, adaptive=False, seed=0)
        optimizer = torch.optim.SGD([p], lr=0.05)
        generator = torch.Generator().manual_seed(0)

        def data(sign: float) -> tuple[Tensor, Tensor]:
            x = torch.randn(64, 8, generator=generator)
            return x, x[:, :4].sum(1) + sign * x[:, 4:].sum(1)

        for _ in range(300):
            for k, sign in enumerate(signs.tolist()):
                x, y = data(sign)
                buffers.flat[k] = x.T @ (x @ p.detach() - y) / len(y)
            alignment.update(buffers, torch.ones(len(signs), dtype=torch.bool))
            alignment.before_step(optimizer)
            optimizer.step()
            alignment.after_step(optimizer)
        x, y = data(-1.0)
        unseen_y = x[:, :4].sum(1) - x[:, 4:].sum(1)
        return float((x @ p.detach() - unseen_y).square().mean())

    iga, erm, random = error(), error(tau=0.0), error(control="random")
    assert iga < 0.95 * erm
    assert iga < 0.95 * random
