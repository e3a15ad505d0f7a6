"""Theta beyond a head: LoRA in an encoder, a named subset, the temperature; one-sided losses and hard negatives."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel

from isodistill.influence import Fit, Influence, fit_encoder, segment

N, D = 12, 4


class Heads(nn.Module):
    """u = a W', v = b; ``logit_scale`` is log(1 / temperature), as CLIP has it."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.W = nn.Parameter(torch.randn(D, D, generator=generator, dtype=torch.float64))
        self.logit_scale = nn.Parameter(torch.tensor(1.2, dtype=torch.float64))

    def encode_a(self, items: torch.Tensor) -> torch.Tensor:
        return items @ self.W.T

    def encode_b(self, items: torch.Tensor) -> torch.Tensor:
        return items


class Bert(nn.Module):
    """Token ids to token ids: one BERT with LoRA on its queries and values reads both sides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            attn_implementation="eager", initializer_range=0.5,
        )  # fmt: skip
        lora = LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
        self.model = inject_adapter_in_model(lora, BertModel(config)).double()

    def encode_a(self, items: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=items).last_hidden_state.mean(1)

    encode_b = encode_a


def features(seed: int, n: int = N) -> torch.Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(seed: int, n: int = N) -> torch.Tensor:
    return torch.randint(0, 20, (n, 5), generator=torch.Generator().manual_seed(seed))


def loss_without(influence: Influence, theta: torch.Tensor, removed: torch.Tensor, sides: str = "both") -> torch.Tensor:
    """The summed loss of the batches without the removed pairs, by cross-entropies of the smaller logits."""
    total = torch.zeros((), dtype=torch.float64)
    for batch in influence.segments:
        rest = batch[~removed[batch]]
        if not len(rest):
            continue
        S, target = influence.batch_logits(theta, rest), torch.arange(len(rest))
        rows = F.cross_entropy(S, target, reduction="sum")
        columns = F.cross_entropy(S[:, : len(rest)].T, target, reduction="sum")
        total = total + {"both": rows + columns, "a_to_b": rows, "b_to_a": columns}[sides]
    return total


def by_differences(influence: Influence, q: torch.Tensor, n: int, sides: str = "both") -> float:
    """d/dt of [L(theta + t q) - L without pair n (theta + t q)], by central differences."""
    nobody, one = torch.zeros(N, dtype=torch.bool), torch.arange(N) == n

    def gain(t: float) -> torch.Tensor:
        theta = influence.theta + t * q
        return loss_without(influence, theta, nobody, sides) - loss_without(influence, theta, one, sides)

    h = 1e-4
    with torch.no_grad():
        return float(gain(h) - gain(-h)) / (2 * h)


def cases() -> dict[str, tuple[Influence, str]]:
    head, a, b = {"delta": 1.0}, features(1), features(2)
    batches = segment(N, 5, 0)  # of five, five and two
    clip = {"temperature": "logit_scale", **head}
    return {
        "temperature in theta": (Influence(Heads(), ["*"], a, b, batches, **clip), "both"),
        "temperature alone": (Influence(Heads(), ["logit_scale"], a, b, batches, **clip), "both"),
        "frozen temperature": (Influence(Heads(), ["W"], a, b, batches, **clip), "both"),
        "a to b": (Influence(Heads(), ["W"], a, b, batches, temperature=0.3, sides="a_to_b", **head), "a_to_b"),
        "b to a": (Influence(Heads(), ["W"], a, b, batches, temperature=0.3, sides="b_to_a", **head), "b_to_a"),
        "hard negatives": (
            Influence(Heads(), ["W"], a, b, batches, temperature=0.3, negatives=features(3), **head), "both",
        ),
        "hard negatives, a to b": (
            Influence(Heads(), ["*"], a, b, batches, sides="a_to_b", negatives=features(3), **clip), "a_to_b",
        ),
        "LoRA": (Influence(Bert(), ["*lora_*"], tokens(1), tokens(2), batches, temperature=0.2, **head), "both"),
        "LoRA of one layer's values": (
            Influence(Bert(), ["*value.lora_A*"], tokens(1), tokens(2), batches, temperature=0.2, **head), "both",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", list(cases()))
def test_scores_are_those_of_the_gradient_of_each_pair_and_of_finite_differences(case: str) -> None:
    influence, sides = cases()[case]
    q = torch.randn(influence.theta.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for mode in ("exact", "first_order"):
        scores = influence.score_all(q, mode)
        for n in (0, 5, 11):
            one_by_one = influence.removal_gradient(torch.arange(N) == n, mode) @ q
            assert scores[n] == pytest.approx(float(one_by_one), rel=1e-8, abs=1e-10)
            if mode == "exact":
                assert scores[n] == pytest.approx(by_differences(influence, q, n, sides), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("case", ["temperature in theta", "hard negatives", "LoRA"])
def test_the_hessian_is_that_of_autograd_and_the_gauss_newton_is_positive(case: str) -> None:
    influence, _ = cases()[case]
    nobody = torch.zeros(N, dtype=torch.bool)
    x = torch.randn(influence.theta.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    theta = influence.theta.clone().requires_grad_()
    g = torch.autograd.grad(loss_without(influence, theta, nobody), theta, create_graph=True)[0]
    expected = torch.autograd.grad(g @ x, theta)[0] + influence.delta * x
    assert torch.allclose(influence.hessian_product(x), expected, rtol=1e-6, atol=1e-8)
    assert x @ influence.gauss_newton_product(x) >= influence.delta * x @ x


def test_theta_is_what_the_patterns_name() -> None:
    found = {name: influence for name, (influence, _) in cases().items()}
    assert list(found["temperature in theta"].named(found["temperature in theta"].theta)) == ["W", "logit_scale"]
    assert len(found["temperature alone"].theta) == 1
    assert all("lora_" in name for name in found["LoRA"].named(found["LoRA"].theta))
    frozen = found["frozen temperature"]
    assert frozen.temperature_at(frozen.theta) == pytest.approx(torch.tensor(-1.2).exp().item())
    moved = found["temperature alone"]
    assert moved.temperature_at(moved.theta + 1) == pytest.approx(torch.tensor(-2.2).exp().item())


def test_lora_is_fitted_and_the_rest_of_the_encoder_stays() -> None:
    encoder = Bert()
    before = {name: p.clone() for name, p in encoder.named_parameters()}
    a, b = tokens(1), tokens(2)
    start = Influence(encoder, ["*lora_*"], a, b, [torch.arange(N)], temperature=0.3)
    unfitted = start.query_loss(start.theta, a, b)
    influence = fit_encoder(
        encoder, ["*lora_*"], a, b, Fit(epochs=4, batch_size=6, lr=1e-2, temperature=0.3, delta=0.1, recorded=1)
    )
    assert influence.query_loss(influence.theta, a, b) < unfitted
    for name, p in encoder.named_parameters():
        assert torch.equal(p, before[name]) == ("lora_" not in name), name


def test_what_does_not_fit_together_is_refused() -> None:
    a, b = features(1), features(2)
    with pytest.raises(ValueError, match="names no parameter"):
        Influence(Heads(), ["W"], a, b, segment(N, 4, 0), temperature="scale")
    with pytest.raises(ValueError, match="3 hard negatives"):
        Influence(Heads(), ["W"], a, b, segment(N, 4, 0), temperature=1.0, negatives=b[:3])
    with pytest.raises(ValueError, match="delta must be positive"):
        Influence(Heads(), ["W"], a, b, segment(N, 4, 0), temperature=1.0, delta=0.0)
    with pytest.raises(ValueError, match="at least 2"):
        fit_encoder(Heads(), ["W"], a, b, Fit(batch_size=1))


def test_a_batch_of_one_has_no_influence() -> None:
    influence = Influence(Heads(), ["W"], features(1), features(2), segment(N, 1, 0), temperature=0.3)
    assert torch.equal(influence.score_all(influence.theta), torch.zeros(N, dtype=torch.float64))
    assert torch.equal(influence.removal_gradient(torch.ones(N, dtype=torch.bool)), torch.zeros(D * D).double())
