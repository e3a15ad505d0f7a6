"""IGA's presets, refusals, noise correction, telemetry and the masks that outlive a step."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from isodistill.alignment import InvariantGradientAlignment
from isodistill.errors import UserError
from isodistill.models.lora import DomainGradients, LoraLayer, half_bounds
from isodistill.numerics import axis_means, domain_contrasts, separable_mask
from isodistill.numerics.tangent import Thin

M, N, R, SCALE = 6, 8, 2, 2.0


def bench(
    rows: int, seed: int = 0, total_steps: int = 10, **options: Any
) -> tuple[InvariantGradientAlignment, DomainGradients, nn.Module]:
    """IGA on one LoRA layer, its buffers with ``rows`` rows, and the module."""
    generator = torch.Generator().manual_seed(seed)
    module, block = nn.Module(), nn.Module()
    module.q_proj = block
    block.lora_A = nn.Parameter(torch.randn(R, N, generator=generator))
    block.lora_B = nn.Parameter(torch.randn(M, R, generator=generator))
    layer = LoraLayer("q_proj", block.lora_A, block.lora_B, SCALE)
    alignment = InvariantGradientAlignment(**{"grad_ema": 0.0, "tau_warmup": 0.0, **options})
    alignment.setup(layers=[layer], total_steps=total_steps, adaptive=False, seed=0)
    return alignment, DomainGradients.allocate(module, rows), module


def fill(buffers: DomainGradients, G: Tensor, module: nn.Module) -> None:
    """Put gradients of W (rows, m, n) in."""
    A, B = module.q_proj.lora_A.detach(), module.q_proj.lora_B.detach()
    buffers.views["q_proj.lora_A"].copy_(SCALE * B.T @ G)
    buffers.views["q_proj.lora_B"].copy_(SCALE * G @ A.T)
    buffers.dense["q_proj"] = G.clone()


def all_present(k: int) -> Tensor:
    return torch.ones(k, dtype=torch.bool)


RATIO = {"form": "ratio", "norm": "tensor_mean", "tau": 3.0, "grad_ema": 0.95, "svd_rank": 0, "apply_to": "auto"}
LITERAL = {"form": "exp", "norm": "tensor_mean", "tau": 1.0, "grad_ema": 0.0, "svd_rank": "r", "apply_to": "gradient"}


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("default", {"space": "tangent", **RATIO}),
        ("fast", {"space": "factor", **RATIO}),
        ("literal", {"space": "weight", **LITERAL}),
    ],
)
def test_presets_fill_what_is_not_given(preset: Any, expected: dict[str, Any]) -> None:
    iga = InvariantGradientAlignment(preset=preset)
    assert {name: getattr(iga, name) for name in expected} == expected
    given = InvariantGradientAlignment(preset=preset, tau=0.5, space="tangent")
    assert (given.tau, given.space, given.form) == (0.5, "tangent", expected["form"])


def test_the_rank_of_preset_literal_is_that_of_lora() -> None:
    gradients = {}
    for rank in ("r", R, 1):
        alignment, buffers, module = bench(2, preset="literal", svd_rank=rank)
        fill(buffers, torch.randn(2, M, N, generator=torch.Generator().manual_seed(0)), module)
        alignment.update(buffers, all_present(2))
        gradients[rank] = module.q_proj.lora_A.grad.clone()
    assert torch.equal(gradients["r"], gradients[R])
    assert not torch.equal(gradients["r"], gradients[1])


def test_a_gradient_mask_under_adam_warns() -> None:
    iga = InvariantGradientAlignment(apply_to="gradient")
    with pytest.warns(UserWarning, match="optimizer is Adam-like"):
        iga.setup(layers=[], total_steps=1, adaptive=True, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iga.setup(layers=[], total_steps=1, adaptive=False, seed=0)
        InvariantGradientAlignment().setup(layers=[], total_steps=1, adaptive=True, seed=0)


def test_masks_on_weights_need_lora_layers() -> None:
    """Trainable tensors alone would be masked as in tier F, under the name of another tier."""
    for space in ("tangent", "tangent_separable", "weight"):
        with pytest.raises(UserError, match="has no LoRA linears"):
            InvariantGradientAlignment(space=space).setup(layers=[], total_steps=1, adaptive=True, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "paper"}, "preset is 'paper'; choose one of default, fast, literal"),
        ({"svd_rank": 4}, "space factor has none"),
        ({"space": "tangent", "svd_rank": 4}, "set alignment.apply_to to gradient"),
        ({"space": "tangent", "project_back": "lora_pro"}, "project_back lora_pro"),
        ({"second_moment": "unmasked"}, "set apply_to to gradient"),
        ({"space": "weight", "refresh": 2}, "refresh is for space tangent"),
        ({"space": "tangent", "var_ema": 0.5}, "use grad_ema"),
        ({"space": "tangent_separable", "form": "exp", "norm": "relative"}, "does not split"),
        ({"refresh": 0}, "refresh is 0"),
        ({"var_ema": 1.0}, "var_ema is 1.0"),
        ({"svd": "half"}, "svd is 'half'"),
        ({"space": "tangent", "apply_to": "gradient", "project_back": "retract"}, "set alignment.grad_ema to 0"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InvariantGradientAlignment(**options)


def test_retract_is_for_plain_sgd() -> None:
    iga = InvariantGradientAlignment(space="tangent", apply_to="gradient", project_back="retract", grad_ema=0.0)
    with pytest.raises(UserError, match="optim: sgd"):
        iga.setup(layers=[], total_steps=1, adaptive=True, seed=0)
    iga, _, _ = bench(2, space="tangent", apply_to="gradient", project_back="retract", grad_ema=0.0)
    with pytest.raises(UserError, match="without momentum"):
        iga.before_step(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9))


def test_unmasked_second_moment_is_for_adam() -> None:
    alignment, buffers, module = bench(2, apply_to="gradient", second_moment="unmasked")
    fill(buffers, torch.randn(2, M, N), module)
    alignment.update(buffers, all_present(2))
    with pytest.raises(UserError, match="adamw_torch"):
        alignment.before_step(torch.optim.SGD(module.parameters(), lr=0.1))


# ---- noise ----


def test_halves_take_turns_with_the_odd_row() -> None:
    assert half_bounds([0, 2, 5, 5], 0) == [0, 1, 2, 3, 5, 5, 5]
    assert half_bounds([0, 2, 5, 5], 1) == [0, 1, 2, 4, 5, 5, 5]


@pytest.mark.parametrize("space", ["factor", "tangent", "tangent_separable", "weight"])
def test_halves_are_summed_where_nothing_is_corrected(space: str) -> None:
    """At tau 0 the 2 K rows are ERM of their sums."""
    alignment, buffers, module = bench(6, space=space, tau=0.0, debias=True)
    G = torch.randn(6, M, N, generator=torch.Generator().manual_seed(1))
    fill(buffers, G, module)
    buffers.half_tokens = torch.tensor([[3.0, 1.0], [2.0, 2.0], [1.0, 5.0]])
    alignment.update(buffers, all_present(3))
    expected = SCALE * module.q_proj.lora_B.detach().T @ G.view(3, 2, M, N).sum(1).mean(0)
    torch.testing.assert_close(module.q_proj.lora_A.grad, expected)


def test_the_noise_estimate_is_right_on_average_and_the_correction_is_the_formula() -> None:
    """Tier F against V - ((K - 1) / K) mean w with w from the halves' means, one domain without a second half."""
    alignment, buffers, module = bench(6, debias=True, apply_to="gradient", tau=2.0)
    generator = torch.Generator().manual_seed(3)
    halves = torch.randn(3, 2, buffers.flat.shape[1], generator=generator).double() + 1
    tokens = torch.tensor([[3.0, 1.0], [2.0, 2.0], [4.0, 0.0]]).double()
    share = tokens / tokens.sum(1, keepdim=True)
    halves[2, 1] = 0
    buffers.flat.copy_((share[:, :, None] * halves).flatten(0, 1))
    buffers.half_tokens = tokens
    metrics = alignment.update(buffers, all_present(3))
    g = (share[:, :, None] * halves).sum(1).numpy()
    w = [((halves[k, 0] - halves[k, 1]) ** 2 * share[k, 0] * share[k, 1]).numpy() for k in (0, 1)]
    V = g.var(0)
    corrected = np.maximum(0, V - 2 / 3 * (w[0] + w[1]) / 2)
    mask = g.mean(0) ** 2 / (g.mean(0) ** 2 + 2 * corrected)
    found = torch.cat([p.grad.flatten() for p in module.parameters()]).double().numpy()
    np.testing.assert_allclose(found, mask * g.mean(0), rtol=1e-4, atol=1e-6)
    assert metrics["noise_share"] == pytest.approx(1 - corrected.sum() / V.sum(), rel=1e-4)


def test_debiased_variance_is_that_between_domains_on_average() -> None:
    """Domains that agree up to noise have a corrected V of mean 0; without the correction it is the noise."""
    generator = torch.Generator().manual_seed(0)
    n = 200_000
    halves = torch.randn(4, 2, n, generator=generator).double()  # means of two equal halves, variance 1 each
    g, d = halves.mean(1), (halves[:, 0] - halves[:, 1]) / 2
    V = g.var(0, correction=0)
    assert float(V.mean()) == pytest.approx(0.75 * 0.5, rel=0.02)
    assert float((V - 0.75 * d.square().mean(0)).mean()) == pytest.approx(0.0, abs=0.005)


@pytest.mark.parametrize("space", ["tangent", "tangent_separable", "weight"])
@pytest.mark.parametrize("grad_ema", [0.0, 0.8])
def test_pure_noise_opens_the_mask_when_it_is_subtracted(space: str, grad_ema: float) -> None:
    """Halves that differ by noise alone: the corrected mask keeps more, and says how much of V was noise."""
    density = {}
    for debias in (False, True):
        alignment, buffers, module = bench(8 if debias else 4, space=space, debias=debias, grad_ema=grad_ema)
        generator = torch.Generator().manual_seed(5)
        shared = torch.randn(1, M, N, generator=generator)
        for _ in range(5):
            halves = 0.5 * (shared + torch.randn(8, M, N, generator=generator))
            fill(buffers, halves if debias else halves.view(4, 2, M, N).sum(1), module)
            if debias:
                buffers.half_tokens = torch.full((4, 2), 3.0)
            metrics = alignment.update(buffers, all_present(4))
        density[debias] = metrics["mask_density"]
    assert density[True] > density[False] + 0.1
    assert metrics["noise_share"] > 0.3


# ---- telemetry ----


def test_conflict_cosines_per_kind_of_layer() -> None:
    alignment, buffers, module = bench(3, tau=0.0)
    G = torch.randn(3, M, N, generator=torch.Generator().manual_seed(2))
    fill(buffers, G, module)
    metrics = alignment.update(buffers, all_present(3))
    x = buffers.flat.double().numpy()
    pairs = [x[i] @ x[j] / np.linalg.norm(x[i]) / np.linalg.norm(x[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert metrics["conflict_cosine/q_proj"] == pytest.approx(np.mean(pairs), rel=1e-5)


def test_a_mask_that_stays_shut_is_warned_about_once() -> None:
    alignment, buffers, module = bench(2, tau=1e12)
    fill(buffers, torch.randn(2, M, N, generator=torch.Generator().manual_seed(2)), module)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(19):
            alignment.update(buffers, all_present(2))
    with pytest.warns(UserWarning, match="below 0.001 for 20 steps"):
        alignment.update(buffers, all_present(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alignment.update(buffers, all_present(2))


# ---- masks of T and TS ----


def test_a_refreshed_mask_serves_the_steps_in_between() -> None:
    def densities(refresh: int) -> list[float]:
        alignment, buffers, module = bench(3, space="tangent", refresh=refresh)
        found = []
        for seed in range(4):
            fill(buffers, torch.randn(3, M, N, generator=torch.Generator().manual_seed(seed)), module)
            found.append(alignment.update(buffers, all_present(3))["mask_density"])
        return found

    every, second = densities(1), densities(2)
    assert second[0] == second[1] == pytest.approx(every[0], rel=5e-3)
    assert second[2] == second[3] == pytest.approx(every[2], rel=5e-3)
    assert second[1] != pytest.approx(every[1], rel=5e-3)


def test_a_layer_without_a_mask_gets_one_before_the_next_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its factorisation failed in the step of the refresh, and that step was masked in tier F."""
    alignment, buffers, module = bench(3, space="tangent", refresh=4)

    def failing(A: Tensor, B: Tensor) -> Any:
        raise torch.linalg.LinAlgError("by hand")

    found = []
    for seed in range(3):
        fill(buffers, torch.randn(3, M, N, generator=torch.Generator().manual_seed(seed)), module)
        with monkeypatch.context() as patch:
            if seed == 0:
                patch.setattr("isodistill.alignment.iga_layers.TangentBasis", failing)
            found.append(alignment.update(buffers, all_present(3)))
    assert [metrics["tier_fallbacks"] for metrics in found] == [1.0, 0.0, 0.0]
    assert found[1]["mask_density"] == pytest.approx(found[2]["mask_density"], rel=5e-3)


def test_what_a_guard_adds_does_not_scale_what_the_mask_removes() -> None:
    """The removals of an unclipped step stay as they are, whatever was added to the direction."""
    alignment, buffers, module = bench(2, apply_to="gradient", second_moment="unmasked")
    fill(buffers, torch.randn(2, M, N, generator=torch.Generator().manual_seed(0)), module)
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    alignment.update(buffers, all_present(2))
    held = [part.clone() for _, part in alignment._second_moment._removed]
    for p in module.parameters():
        p.grad.add_(100.0)
    alignment.before_clipping()
    alignment.before_step(optimizer)
    for (_, part), before in zip(alignment._second_moment._removed, held, strict=True):
        assert torch.equal(part, before)


def projected(X: Tensor, A: Tensor, B: Tensor) -> Tensor:
    P_B, P_A = B @ torch.linalg.pinv(B), torch.linalg.pinv(A) @ A
    return P_B @ X + X @ P_A - P_B @ X @ P_A


@pytest.mark.parametrize("norm", ["none", "tensor_mean", "global_mean", "relative", "bounded", "keep_rate"])
def test_every_normaliser_in_tangent_space(norm: str) -> None:
    alignment, buffers, module = bench(3, space="tangent", form="exp", norm=norm, tau=1.0)
    G = torch.randn(3, M, N, generator=torch.Generator().manual_seed(0))
    fill(buffers, G, module)
    metrics = alignment.update(buffers, all_present(3))
    A, B = module.q_proj.lora_A.detach().double(), module.q_proj.lora_B.detach().double()
    T = torch.stack([projected(g, A, B) for g in G.double()]).numpy()
    mean, V = T.mean(0), T.var(0)
    quantile = np.quantile(V, 0.7, method="inverted_cdf")
    unit = {"none": 1.0, "relative": mean**2, "bounded": mean**2 + V, "keep_rate": quantile / math.log(2)}
    mask = np.exp(-V / unit.get(norm, V.mean()))
    assert metrics["mask_density"] == pytest.approx(mask.mean(), rel=1e-4)
    assert metrics["keep_rate"] == pytest.approx((mask >= 0.5).mean())


@pytest.mark.parametrize("norm", ["none", "tensor_mean", "global_mean", "keep_rate"])
def test_separable_masks_in_the_exponential_form(norm: str) -> None:
    generator = torch.Generator().manual_seed(0)
    X, Y = torch.randn(3, M, 4, generator=generator).double(), torch.randn(3, 4, N, generator=generator).double()
    mean, contrasts = domain_contrasts((X @ Y).flatten(1))
    V = contrasts.square().sum(0).view(M, N).numpy() / 3
    thin = Thin(contrasts.view(2, M, N), torch.eye(N).double().expand(2, -1, -1))
    axes = [axis / 3 for axis in axis_means(thin)]
    np.testing.assert_allclose(axes[0].numpy(), V.mean(1))
    signal = (mean.view(M, N).square().mean(1), mean.view(M, N).square().mean(0))
    shared = torch.tensor(2.5).double() if norm == "global_mean" else None
    mask = separable_mask(signal, tuple(axes), 0.4, "exp", norm, global_mean=shared)
    read = V.mean(1)[:, None] + V.mean(0) - V.mean()
    read -= min(0.0, read.min())
    quantile = np.quantile(read, 0.7, method="inverted_cdf") / math.log(2)
    unit = {"none": 1.0, "tensor_mean": V.mean(), "global_mean": 2.5, "keep_rate": quantile}[norm]
    np.testing.assert_allclose(mask.dense().numpy(), np.exp(-0.4 * read / unit), rtol=1e-5)
    assert float(mask.dense().max()) <= 1.0


def test_tensors_that_are_no_lora_factor_are_masked_in_their_own_space() -> None:
    module = nn.Module()
    generator = torch.Generator().manual_seed(0)
    module.A, module.B = nn.Parameter(torch.randn(R, N)), nn.Parameter(torch.randn(M, R))
    module.bias = nn.Parameter(torch.zeros(M))
    alignment = InvariantGradientAlignment(space="tangent", grad_ema=0.0, tau_warmup=0.0, apply_to="gradient")
    layers = [LoraLayer("layer", module.A, module.B, SCALE)]
    alignment.setup(layers=layers, total_steps=1, adaptive=False, seed=0)
    buffers = DomainGradients.allocate(module, 3)
    buffers.flat.copy_(torch.randn(buffers.flat.shape, generator=generator))
    alignment.update(buffers, all_present(3))
    g = buffers.views["bias"].double()
    mask = g.mean(0) ** 2 / (g.mean(0) ** 2 + 3 * g.var(0, correction=0))
    torch.testing.assert_close(module.bias.grad.double(), mask * g.mean(0), rtol=1e-4, atol=1e-6)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, Tensor):
                Largest.numel = max(Largest.numel, x.numel())
        return out


@pytest.mark.parametrize("space", ["tangent", "tangent_separable"])
def test_nothing_of_the_size_of_w_is_ever_formed(space: str) -> None:
    m, n, K = 900, 1100, 3
    generator = torch.Generator().manual_seed(0)
    module = nn.Module()
    module.A = nn.Parameter(torch.randn(R, n, generator=generator))
    module.B = nn.Parameter(torch.randn(m, R, generator=generator))
    alignment = InvariantGradientAlignment(space=space, tau_warmup=0.0, apply_to="update")
    alignment.setup(layers=[LoraLayer("l", module.A, module.B, SCALE)], total_steps=1, adaptive=False, seed=0)
    buffers = DomainGradients.allocate(module, K)
    buffers.flat.copy_(torch.randn(buffers.flat.shape, generator=generator))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    Largest.numel = 0
    with Largest():
        alignment.update(buffers, all_present(K))
        alignment.before_step(optimizer)
        optimizer.step()
        alignment.after_step(optimizer)
    assert Largest.numel <= 65536 * torch.get_num_threads() < m * n
