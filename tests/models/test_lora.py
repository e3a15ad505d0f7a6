"""Per-domain gradients from one backward equal K plain backward passes; dense ones those of a merged dense model."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from isodistill.models.lora import DomainGradients, lora_layers, row_bounds, segment_obstacles, segmented_lora

DOMAIN_OF_ROW = [0, 0, 1, 2, 2, 2]
K = 4  # the last domain has no row


@pytest.fixture
def model(tiny_model: LlamaForCausalLM) -> PeftModel:
    return adapted(tiny_model)


def adapted(base: LlamaForCausalLM, **options: Any) -> PeftModel:
    settings: dict[str, Any] = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    with torch.random.fork_rng():  # peft draws A from the global stream, which other tests move
        torch.manual_seed(0)
        model = get_peft_model(base, LoraConfig(**settings | options))
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data = 0.1 * torch.randn(p.shape, generator=generator)
    return model


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(0, 300, (len(DOMAIN_OF_ROW), 9), generator=torch.Generator().manual_seed(2))


def loss(model: nn.Module, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum")


def separate_gradients(model: nn.Module, ids: Tensor, names: list[str]) -> dict[str, Tensor]:
    """The oracle: one plain forward and backward per domain; (K, *shape) per parameter."""
    parameters = dict(model.named_parameters())
    found = {name: torch.zeros(K, *parameters[name].shape) for name in names}
    for k in range(K):
        rows = [i for i, domain in enumerate(DOMAIN_OF_ROW) if domain == k]
        if rows:
            model.zero_grad()
            loss(model, ids[rows]).backward()
            for name in names:
                found[name][k] = parameters[name].grad
    model.zero_grad()
    return found


def trainable(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def assert_close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """In the norm of each domain's gradient."""
    for k in range(K):
        assert torch.linalg.vector_norm(found[k] - expected[k]) <= tolerance * torch.linalg.vector_norm(expected[k])


@contextmanager
def opened(model: PeftModel, dtype: torch.dtype, *, dense: bool = False) -> Iterator[DomainGradients]:
    gradients = DomainGradients.allocate(model, K, dense=dense)
    gradients.row_bounds, gradients.n_tokens = row_bounds(DOMAIN_OF_ROW, K), len(DOMAIN_OF_ROW) * 9
    with segmented_lora(model, gradients, dtype):
        yield gradients


def test_row_bounds_cut_sorted_rows() -> None:
    assert row_bounds(DOMAIN_OF_ROW, K) == [0, 2, 3, 6, 6]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.05)])
def test_segments_equal_separate_backwards(model: PeftModel, ids: Tensor, dtype: torch.dtype, tolerance: float) -> None:
    expected = separate_gradients(model, ids, trainable(model))
    with opened(model, dtype) as gradients, torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        loss(model, ids).backward()
    assert gradients.views.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(gradients.views[name], value, tolerance)
        assert not gradients.views[name][K - 1].any()
    assert all(p.grad is None for p in model.parameters() if p.requires_grad)


def test_layers_with_a_bias_and_an_own_scale(ids: Tensor, tiny_model: LlamaForCausalLM) -> None:
    config = copy.deepcopy(tiny_model.config)
    config.attention_bias = True
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    for name, p in base.named_parameters():
        if name.endswith("bias"):
            p.data.normal_()
    model = adapted(base, use_rslora=True)
    expected = separate_gradients(model, ids, trainable(model))
    with opened(model, torch.float32) as gradients:
        loss(model, ids).backward()
    for name, value in expected.items():
        assert_close(gradients.views[name], value, 2e-4)


def test_micro_batches_add_up(model: PeftModel, ids: Tensor) -> None:
    expected = separate_gradients(model, ids, trainable(model))
    with opened(model, torch.float32) as gradients:
        for rows in ([0, 2, 3], [1, 4, 5]):
            gradients.row_bounds = row_bounds([DOMAIN_OF_ROW[i] for i in rows], K)
            gradients.n_tokens = len(rows) * 9
            loss(model, ids[rows]).backward()
    for name, value in expected.items():
        assert_close(gradients.views[name], value, 2e-5)
    gradients.zero()
    assert not gradients.flat.any()


def test_folding_plain_backwards_fills_the_same_buffers(model: PeftModel, ids: Tensor) -> None:
    expected = separate_gradients(model, ids, trainable(model))
    gradients = DomainGradients.allocate(model, K)
    for k in range(K - 1):
        loss(model, ids[[i for i, domain in enumerate(DOMAIN_OF_ROW) if domain == k]]).backward()
        gradients.fold(k)
    for name, value in expected.items():
        assert torch.equal(gradients.views[name], value)


def test_dense_gradients_are_those_of_a_merged_dense_model(model: PeftModel, ids: Tensor) -> None:
    merged = copy.deepcopy(model).merge_and_unload().requires_grad_(True)
    names = {layer.name: layer.name.removeprefix("base_model.model.") + ".weight" for layer in lora_layers(model)}
    expected = separate_gradients(merged, ids, list(names.values()))
    with opened(model, torch.float32, dense=True) as gradients:
        loss(model, ids).backward()
    assert gradients.dense.keys() == names.keys()
    for name, dense_name in names.items():
        assert_close(gradients.dense[name], expected[dense_name], 2e-4)


def test_factor_gradients_follow_from_the_dense_ones(model: PeftModel, ids: Tensor) -> None:
    """dL/dA = s B'G and dL/dB = s G A'."""
    with opened(model, torch.float32, dense=True) as gradients:
        loss(model, ids).backward()
    for layer in lora_layers(model):
        for k in range(K - 1):
            G, A, B = gradients.dense[layer.name][k].double(), layer.A.detach().double(), layer.B.detach().double()
            found_A = gradients.views[f"{layer.name}.lora_A.default.weight"][k].double()
            found_B = gradients.views[f"{layer.name}.lora_B.default.weight"][k].double()
            torch.testing.assert_close(found_A, layer.scale * B.T @ G, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found_B, layer.scale * G @ A.T, rtol=1e-4, atol=1e-4)


def test_layers_are_restored(model: PeftModel, ids: Tensor) -> None:
    model.eval()
    before = model(input_ids=ids).logits
    with pytest.raises(RuntimeError, match="on purpose"), opened(model, torch.bfloat16):
        raise RuntimeError("on purpose")
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]
    assert torch.equal(model(input_ids=ids).logits, before)
    loss(model, ids).backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_disabled_adapters_and_no_grad_inside(model: PeftModel, ids: Tensor) -> None:
    model.eval()
    with torch.no_grad():
        whole = model(input_ids=ids).logits
        with model.disable_adapter():
            bare = model(input_ids=ids).logits
        with opened(model, torch.float32) as gradients:
            assert torch.equal(model(input_ids=ids).logits, whole)
            with torch.enable_grad(), model.disable_adapter():
                assert torch.equal(model(input_ids=ids).logits, bare)
    assert not torch.allclose(bare, whole, atol=1e-3)
    assert not gradients.flat.any()


def test_gradient_checkpointing_changes_nothing(model: PeftModel, ids: Tensor) -> None:
    model.train()
    found = []
    for enabled in (False, True):
        if enabled:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with opened(model, torch.float32) as gradients:
            loss(model, ids).backward()
        found.append(gradients.flat)
    assert torch.equal(found[0], found[1])
    assert found[0].any()


def test_lora_layers_give_scale_and_shape(model: PeftModel) -> None:
    layers = {layer.name: layer for layer in lora_layers(model)}
    assert len(layers) == 2 * 7
    down = next(layer for name, layer in layers.items() if name.endswith("layers.0.mlp.down_proj"))
    assert (down.scale, down.shape, down.A.shape, down.B.shape) == (5 / 3, (32, 64), (3, 64), (32, 3))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lora_dropout": 0.1}, "has LoRA dropout"),
        ({"use_dora": True}, "is not plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.*is trained but is not a LoRA factor"),
        ({"bias": "lora_only", "lora_bias": True}, "has a LoRA bias"),
    ],
    ids=["dropout", "dora", "modules_to_save", "lora_bias"],
)
def test_obstacles_are_named(tiny_model: LlamaForCausalLM, options: dict[str, Any], reason: str) -> None:
    target = ["q_proj", "down_proj"]
    model = adapted(tiny_model, target_modules=target, **options)
    assert segment_obstacles(model)
    with (
        pytest.raises(ValueError, match=reason),
        segmented_lora(model, DomainGradients.allocate(model, 2), torch.float32),
    ):
        pass


def test_two_active_adapters_are_an_obstacle(model: PeftModel) -> None:
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert segment_obstacles(model) == []
    model.base_model.set_adapter(["default", "second"])
    assert any("q_proj has several active adapters" in reason for reason in segment_obstacles(model))


def test_plain_lora_has_no_obstacles(model: PeftModel) -> None:
    assert segment_obstacles(model) == []


def test_a_layer_that_sees_only_some_tokens_is_refused(model: PeftModel, ids: Tensor) -> None:
    """As an expert of a mixture would: its tokens cannot be told apart by domain."""
    with opened(model, torch.float32) as gradients:
        gradients.n_tokens += 1
        value = loss(model, ids)
        with pytest.raises(ValueError, match="domain_major"):
            value.backward()
