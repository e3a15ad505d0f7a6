"""The fused layers compute what transformers and peft compute: hidden states, losses and every domain's gradient."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from isodistill.models import packed
from isodistill.models.frozen import FrozenLinear
from isodistill.models.llama import FusedDecoder, why_not_fused
from isodistill.models.lora import DomainGradients, segmented_lora

LENGTHS = [5, 19, 1, 9, 17, 19]
DOMAIN_ROWS = [0, 2, 3, 6, 6]  # three domains and one without a row
SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
Made = tuple[Tensor, Tensor, DomainGradients]


def adapted(base: PreTrainedModel, **options: Any) -> PeftModel:
    """With norms and factors away from where training begins."""
    generator = torch.Generator().manual_seed(1)
    for name, p in base.named_parameters():
        if "norm" in name or name.endswith("bias"):
            p.data += 0.3 * torch.randn(p.shape, generator=generator)
    settings: dict[str, Any] = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(base, LoraConfig(**settings | options))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return model


def llama(**options: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | options))


def qwen() -> PreTrainedModel:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES))


def batch_of(lengths: list[int], side: str = "right") -> tuple[dict[str, Tensor], Tensor]:
    """Padded ids with garbage in the padding, and the positions of all tokens but the first of longer rows."""
    generator = torch.Generator().manual_seed(2)
    width = max(lengths)
    tokens = [torch.randint(300, (n,), generator=generator) for n in lengths]
    ids, mask = torch.randint(300, (len(lengths), width)), torch.zeros(len(lengths), width, dtype=torch.long)
    chosen = torch.zeros_like(mask)
    for row, some in enumerate(tokens):
        start = 0 if side == "right" else width - len(some)
        ids[row, start : start + len(some)] = some
        mask[row, start : start + len(some)] = 1
        chosen[row, start + (len(some) > 1) : start + len(some)] = 1
    return {"input_ids": ids, "attention_mask": mask}, chosen.flatten().nonzero().squeeze(1)


def made(model: PeftModel, hidden_of: Callable[..., Tensor], gradients: DomainGradients, dtype: torch.dtype) -> Made:
    """Hidden states and losses of the batch, with the gradients of the summed losses in their buffers."""
    batch, positions = batch_of(LENGTHS)
    hidden = hidden_of(batch, positions)
    targets = torch.randint(300, (len(positions),), generator=torch.Generator().manual_seed(3))
    head = model.get_base_model().get_output_embeddings().weight.detach()
    losses = F.cross_entropy(hidden.float() @ head.T, targets, reduction="none")
    losses.sum().backward()
    return hidden.detach(), losses.detach(), gradients


def plain(model: PeftModel, dtype: torch.dtype, *, dense: bool = False) -> Made:
    gradients = DomainGradients.allocate(model, 4, dense=dense)
    gradients.row_bounds, gradients.n_tokens = DOMAIN_ROWS, len(LENGTHS) * max(LENGTHS)

    def hidden_of(batch: dict[str, Tensor], positions: Tensor) -> Tensor:
        hidden = model.get_base_model().model(**batch, use_cache=False).last_hidden_state
        return hidden.flatten(0, 1)[positions]

    with segmented_lora(model, gradients, dtype), torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        return made(model, hidden_of, gradients, dtype)


def fused(model: PeftModel, dtype: torch.dtype, *, dense: bool = False, checkpoint: bool = False) -> Made:
    gradients = DomainGradients.allocate(model, 4, dense=dense)
    gradients.row_bounds = DOMAIN_ROWS
    return made(model, FusedDecoder(model, gradients, dtype, checkpoint=checkpoint), gradients, dtype)


def assert_same(found: Made, expected: Made, tolerance: float) -> None:
    """In norm: hidden states, losses, and each domain's gradient."""
    pairs = [(found[0], expected[0]), (found[1], expected[1])]
    pairs += list(zip(found[2].flat, expected[2].flat, strict=True))
    for name, dense in expected[2].dense.items():
        pairs += list(zip(found[2].dense[name], dense, strict=True))
    for ours, theirs in pairs:
        # A row of one token has no gradient of queries and keys but rounding, hence the absolute part.
        assert torch.linalg.vector_norm(ours - theirs) <= tolerance * torch.linalg.vector_norm(theirs) + 1e-7


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-6), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("make", [llama, qwen], ids=["llama", "qwen2 with biases"])
def test_equals_the_plain_path(make: Callable[[], PreTrainedModel], dtype: torch.dtype, tolerance: float) -> None:
    model = adapted(make())
    assert why_not_fused(model.get_base_model()) is None
    assert_same(fused(model, dtype, dense=True), plain(model, dtype, dense=True), tolerance)


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["up_proj"], ["k_proj", "o_proj", "down_proj"]])
def test_only_some_linears_adapted(targets: list[str]) -> None:
    model = adapted(llama(), target_modules=targets)
    assert_same(fused(model, torch.float32), plain(model, torch.float32), 3e-6)


def test_an_own_head_size_and_one_key_head() -> None:
    model = adapted(llama(head_dim=16, num_key_value_heads=1))
    assert_same(fused(model, torch.float32), plain(model, torch.float32), 3e-6)


def test_attention_weights_made_again_and_rows_in_several_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(llama())
    expected = fused(model, torch.float32)
    monkeypatch.setattr(packed, "_KEPT_WIDTH", 16)
    monkeypatch.setattr(packed, "_SCORES", 1)
    assert_same(fused(model, torch.float32), expected, 1e-6)


def test_checkpointing_changes_no_bit() -> None:
    model = adapted(llama())
    for dtype in (torch.float32, torch.bfloat16):
        first, second = fused(model, dtype), fused(model, dtype, checkpoint=True)
        assert torch.equal(first[2].flat, second[2].flat)
        assert first[2].flat.any()


def test_separate_backwards_of_each_domain() -> None:
    """Against peft's own layers, one domain at a time."""
    model = adapted(llama())
    found = fused(model, torch.float32)[2]
    batch, positions = batch_of(LENGTHS)
    targets = torch.randint(300, (len(positions),), generator=torch.Generator().manual_seed(3))
    rows = positions // max(LENGTHS)
    for k, (start, stop) in enumerate(pairwise(DOMAIN_ROWS)):
        model.zero_grad()
        mine = (rows >= start) & (rows < stop)
        if mine.any():
            logits = model(**batch).logits.flatten(0, 1)[positions[mine]]
            F.cross_entropy(logits, targets[mine], reduction="sum").backward()
        for name, p in model.named_parameters():
            if p.requires_grad:
                expected = torch.zeros_like(p) if p.grad is None else p.grad
                torch.testing.assert_close(found.views[name][k], expected, rtol=1e-4, atol=1e-5)


def test_padding_on_either_side_changes_nothing() -> None:
    model = adapted(llama())
    gradients = DomainGradients.allocate(model, 4)
    gradients.row_bounds = DOMAIN_ROWS
    decoder = FusedDecoder(model, gradients, torch.float32)
    right, left = (decoder(*batch_of(LENGTHS, side)) for side in ("right", "left"))
    assert torch.equal(right, left)
    with torch.no_grad():
        torch.testing.assert_close(decoder(*batch_of(LENGTHS)), right, rtol=1e-5, atol=1e-5)


def test_micro_batches_add_up() -> None:
    model = adapted(llama())
    gradients = DomainGradients.allocate(model, 4)
    gradients.row_bounds = DOMAIN_ROWS
    decoder = FusedDecoder(model, gradients, torch.float32)
    made(model, decoder, gradients, torch.float32)
    once = gradients.flat.clone()
    made(model, decoder, gradients, torch.float32)
    torch.testing.assert_close(gradients.flat, 2 * once)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"hidden_act": "gelu"}, "activation is gelu"),
        ({"attention_dropout": 0.1}, "attention dropout"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "changes with the length"),
    ],
)
def test_what_cannot_be_fused_is_said(options: dict[str, Any], reason: str) -> None:
    assert reason in str(why_not_fused(llama(**options)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_linear_is_a_linear(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = (torch.randn(*shape, generator=generator) for shape in ((7, 5), (7,)))
    x = torch.randn(2, 3, 5, generator=generator).requires_grad_()
    y = FrozenLinear(weight, bias, dtype)(x)
    expected = F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=1e-5 if dtype is torch.float32 else 2e-2)
    factors = torch.randn(y.shape, generator=generator).to(dtype)
    (found,) = torch.autograd.grad(y, x, factors)
    torch.testing.assert_close(found.to(dtype), factors @ weight.to(dtype), rtol=2e-2, atol=5e-2)
