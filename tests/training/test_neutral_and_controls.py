"""IGA at tau = 0 is ERM bit for bit; its masks do something otherwise; its controls share density and step ratio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from isodistill import DistillConfig, DistillTrainer
from isodistill.errors import UserError

from .conftest import make_rows

MakeTrainer = Callable[..., DistillTrainer]

IGA_FORMS: list[dict[str, Any]] = [
    {"space": "factor"},
    {"space": "factor", "apply_to": "gradient"},
    {"space": "factor", "form": "exp", "norm": "relative", "grad_ema": 0.0},
    {"space": "weight"},
    {"space": "weight", "apply_to": "gradient"},
    {"space": "weight", "apply_to": "gradient", "form": "exp", "grad_ema": 0.0},
    {"space": "tangent"},
    {"space": "tangent", "refresh": 2},
    {"space": "tangent", "apply_to": "gradient", "second_moment": "unmasked"},
    {"space": "tangent_separable"},
    {"space": "tangent_separable", "apply_to": "gradient", "form": "exp"},
    {"space": "factor", "apply_to": "gradient", "second_moment": "unmasked"},
    {"space": "factor", "debias": True, "var_ema": 0.5},
]
SPACES = {
    "factor": "iga_factor.FactorSpace",
    "tangent": "iga_layers.LayerSpace",
    "tangent_separable": "iga_layers.LayerSpace",
    "weight": "iga_layers.LayerSpace",
}


def train(trainer: DistillTrainer) -> dict[str, torch.Tensor]:
    trainer.train()
    return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.fixture
def erm(make_trainer: MakeTrainer) -> dict[str, torch.Tensor]:
    return train(make_trainer(method="erm", weight_decay=0.1, gradients="domain_major"))


@pytest.mark.parametrize("options", IGA_FORMS, ids=lambda o: "-".join(map(str, o.values())))
def test_tau_zero_is_erm(make_trainer: MakeTrainer, erm: dict[str, torch.Tensor], options: dict[str, Any]) -> None:
    neutral = train(make_trainer(method="iga", weight_decay=0.1, alignment={"name": "iga", "tau": 0.0, **options}))
    for name, value in erm.items():
        torch.testing.assert_close(neutral[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", IGA_FORMS, ids=lambda o: "-".join(map(str, o.values())))
def test_tau_zero_equals_the_unmasked_code_path_bit_for_bit(
    make_trainer: MakeTrainer, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the same per-domain buffers averaged without any mask: not one bit may differ."""
    neutral = train(make_trainer(method="iga", weight_decay=0.1, alignment={"name": "iga", "tau": 0.0, **options}))
    plain = make_trainer(method="iga", weight_decay=0.1, alignment={"name": "iga", "tau": 0.0, **options})
    for method in ("removed_gradient", "removed_step"):
        monkeypatch.setattr(f"isodistill.alignment.{SPACES[options['space']]}.{method}", lambda *args: ([], {}))
    unmasked = train(plain)
    assert all(torch.equal(neutral[name], unmasked[name]) for name in unmasked)


@pytest.mark.parametrize("options", IGA_FORMS, ids=lambda o: "-".join(map(str, o.values())))
def test_a_positive_tau_changes_the_student(
    make_trainer: MakeTrainer, erm: dict[str, torch.Tensor], options: dict[str, Any]
) -> None:
    masked = train(make_trainer(method="iga", weight_decay=0.1, alignment={"name": "iga", "tau": 3.0, **options}))
    assert any(not torch.allclose(masked[name], erm[name], rtol=1e-3) for name in erm)


def test_svd_rank_at_full_rank_changes_nothing_and_rank_one_does(make_trainer: MakeTrainer) -> None:
    base = {"name": "iga", "space": "weight", "apply_to": "gradient"}
    results = [train(make_trainer(method="iga", alignment=base | {"svd_rank": rank})) for rank in (0, 64, 1)]
    for name in results[0]:
        torch.testing.assert_close(results[1][name], results[0][name], rtol=1e-2, atol=1e-3)
    assert any(not torch.allclose(results[2][name], results[0][name], rtol=1e-2) for name in results[0])


@pytest.mark.parametrize("space", list(SPACES))
@pytest.mark.parametrize("apply_to", ["gradient", "update"])
def test_controls_keep_the_step_ratio_of_the_first_step(make_trainer: MakeTrainer, space: str, apply_to: str) -> None:
    logged = {}
    for control in ("none", "random", "uniform"):
        alignment = {"name": "iga", "space": space, "apply_to": apply_to, "control": control, "tau_warmup": 0.0}
        trainer = make_trainer(method="iga", max_steps=1, warmup_steps=0, alignment=alignment)
        trainer.train()
        logged[control] = next(line for line in trainer.state.log_history if "step_ratio" in line)
    assert logged["none"]["step_ratio"] < 0.99
    for control in ("random", "uniform"):
        assert logged[control]["step_ratio"] == pytest.approx(logged["none"]["step_ratio"], rel=1e-3)
    assert logged["uniform"]["cosine"] == pytest.approx(1.0, abs=1e-2)


def test_random_control_depends_on_the_seed_only(make_trainer: MakeTrainer) -> None:
    alignment = {"name": "iga", "control": "random"}
    runs = [train(make_trainer(method="iga", alignment=alignment)) for _ in range(2)]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_decay_of_adamw_is_outside_the_mask(make_trainer: MakeTrainer) -> None:
    """With a mask of zero nearly everywhere only the decoupled decay is left of a step."""
    alignment = {"name": "iga", "tau": 1e30, "tau_warmup": 0.0, "grad_ema": 0.0}
    trainer = make_trainer(
        method="iga", alignment=alignment, max_steps=1, weight_decay=0.5, warmup_steps=0, lr_scheduler_type="constant"
    )
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    after = train(trainer)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value * (1 - 1e-2 * 0.5), rtol=1e-5, atol=1e-6)


def test_options_without_a_name_go_to_the_part_of_the_preset(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(method="iga", alignment={"tau": 7.0})
    assert (type(trainer.alignment).__name__, trainer.alignment.tau) == ("InvariantGradientAlignment", 7.0)
    with pytest.raises(UserError, match="erm"):
        make_trainer(method="erm", alignment={"tau": 7.0})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fp16": True}, "fp16 scales the loss"),
        ({"fsdp": "full_shard"}, "sharded by FSDP or DeepSpeed cannot be trained"),
    ],
)
def test_what_no_alignment_can_do_is_refused(make_trainer: MakeTrainer, given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_trainer(method="erm", **given)


def test_masks_of_weights_need_plain_lora(tiny_model: Any, tokenizer: Any, tmp_path: Path) -> None:
    dora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", use_dora=True)
    alignment = {"name": "iga", "space": "tangent"}
    args = DistillConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, method="iga", alignment=alignment)
    with pytest.raises(UserError, match=r"masks W = W0 \+ s B A, but .* is Dora"):
        DistillTrainer(tiny_model, args, make_rows(), tokenizer, peft_config=dora)


def test_svd_rank_is_refused_where_it_would_do_nothing(make_trainer: MakeTrainer) -> None:
    with pytest.raises(UserError, match="apply_to"):
        make_trainer(method="iga", alignment={"space": "weight", "svd_rank": 4})


def test_a_teacher_that_nobody_would_ask_is_refused(
    make_trainer: MakeTrainer, rows: list[Any], tiny_model: Any
) -> None:
    trainer = make_trainer()
    with pytest.raises(UserError, match="teacher_model"):
        DistillTrainer(trainer.model, trainer.args, rows, trainer.processing_class, teacher_model=tiny_model)


def test_sgd_is_masked_on_the_gradient_and_adam_on_the_update(make_trainer: MakeTrainer) -> None:
    for optim, on_update in (("sgd", False), ("adamw_torch", True)):
        trainer = make_trainer(method="iga", optim=optim, max_steps=1)
        trainer.train()
        assert trainer.alignment._mask_update is on_update


@pytest.mark.parametrize(
    ("alignment", "message"),
    [
        ({"name": "iga", "tau": -1.0}, "tau is -1.0"),
        ({"name": "iga", "form": "log"}, "form is 'log'"),
        ({"name": "iga", "taw": 1.0}, "Did you mean 'tau'"),
        ({"name": "igaa"}, "Did you mean 'iga'"),
        ({"name": "iga", "svd_rank": 4}, "svd_rank"),
    ],
)
def test_bad_options_are_named(make_trainer: MakeTrainer, alignment: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_trainer(method="iga", alignment=alignment)
