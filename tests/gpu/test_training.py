"""Training on a GPU is training on a CPU, to rounding: alignments, objectives, terms, guards, resume, bf16."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill import DistillTrainer
from isodistill.data.rows import Row
from isodistill.teachers.logits import LogitCache, fill_cache, made_by
from isodistill.validity import Action

from ..guards.conftest import finish
from ..guards.test_stages import ALL as GUARDS
from ..training.conftest import make_rows, other_weights
from ..training.test_every_alignment import METHODS as RIVALS
from ..training.test_resume import METHODS as RESUMED
from ..training.test_resume import StopAt
from ..training.test_set_term import isomers
from .conftest import weights

pytestmark = pytest.mark.gpu

Both = Callable[..., None]
MakeTrainer = Callable[..., DistillTrainer]

IGA: list[dict[str, Any]] = [
    {"space": "factor"},
    {"space": "factor", "control": "random"},
    {"space": "factor", "form": "exp", "norm": "keep_rate"},
    {"space": "factor", "apply_to": "update", "debias": True, "var_ema": 0.5},
    {"space": "tangent"},
    {"space": "tangent", "refresh": 2, "debias": True},
    {"space": "tangent", "project_back": "lora_pro", "apply_to": "gradient"},
    {"space": "tangent_separable", "control": "random", "var_ema": 0.5},
    {"space": "weight"},
    {"preset": "literal"},
    {"preset": "literal", "svd": "exact", "norm": "global_mean"},
]


def named(options: dict[str, Any]) -> str:
    return "-".join(map(str, options.values()))


@pytest.mark.parametrize("method", ["erm", "erm_pooled"])
@pytest.mark.parametrize("gradients", ["segment", "domain_major"])
def test_a_step(both: Both, method: str, gradients: str) -> None:
    both(method=method, gradients=gradients, gradient_accumulation_steps=2)


@pytest.mark.parametrize("options", IGA, ids=named)
def test_every_space_of_iga(both: Both, options: dict[str, Any]) -> None:
    both(method="iga", alignment={"name": "iga", **options})


def test_retracted_factors_have_the_same_product(make_trainer: MakeTrainer) -> None:
    """The signs of singular vectors are the library's choice, so A and B alone may differ."""
    options = {"name": "iga", "space": "tangent", "grad_ema": 0.0, "apply_to": "gradient", "project_back": "retract"}
    products = []
    for device in ("cpu", "cuda"):
        trainer = make_trainer(device, method="iga", alignment=options)
        trainer.train()
        found = weights(trainer)
        products.append([found[n.replace("lora_A", "lora_B")] @ A for n, A in found.items() if "lora_A" in n])
    for expected, there in zip(*products, strict=True):
        torch.testing.assert_close(there, expected, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("alignment", RIVALS, ids=named)
def test_every_rival(both: Both, alignment: dict[str, Any]) -> None:
    both(method=alignment["name"], alignment=alignment, learning_rate=1e-3 if alignment["name"] == "fish" else 0.1)


def test_adamw_with_the_mask_on_its_update(both: Both) -> None:
    # Adam turns the rounding of entries near zero into parts of whole steps of 1e-4.
    both(method="iga", optim="adamw_torch_fused", learning_rate=1e-4, weight_decay=0.1, atol=1e-4)
    gradient = {"name": "iga", "apply_to": "gradient", "second_moment": "unmasked"}
    both(method="iga", alignment=gradient, optim="adamw_torch_fused", learning_rate=1e-4, atol=1e-4)


def test_a_step_may_lack_a_domain(both: Both) -> None:
    rows = [row for row in make_rows(6) if row.set_id in ("set-0", "set-3") or row.domain != "law"]
    both(method="iga", rows=rows, missing_domain="subset", sets_per_batch=1, max_steps=4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fewer_activations(both: Both, checkpointing: bool) -> None:
    both(method="iga", gradient_checkpointing=checkpointing)


@pytest.mark.parametrize("method", ["fkl", "rkl", "jsd", "skew", "vcrd"])
def test_every_divergence(both: Both, tiny_model: LlamaForCausalLM, method: str) -> None:
    both(method=method, teacher_model=other_weights(tiny_model))
    both(method=method, teacher_model="self")


@pytest.mark.parametrize("control", ["permuted", "constant"])
def test_controls_of_vcrd(both: Both, tiny_model: LlamaForCausalLM, control: str) -> None:
    both(method="vcrd", objective={"name": "vcrd", "control": control}, teacher_model=other_weights(tiny_model))


def test_a_teacher_read_from_disk(
    both: Both, make_trainer: MakeTrainer, tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:  # fmt: skip
    """The cache is filled on the GPU and read on both."""
    cache = LogitCache(tmp_path / "cache", made_by("t", "1", tokenizer, len(tokenizer)), k=8)
    fill_cache(cache, other_weights(tiny_model).to("cuda"), make_trainer("cpu").train_dataset)
    both(method="fkl", teacher_model=cache)


class Length:
    """A scorer that tells steps apart by their text alone."""

    name = "length"

    def score(self, actions: list[Action]) -> list[float]:
        return [(len(a.step) * 7 % 10) / 10 for a in actions]


def test_vcrd_proposes_and_checks_steps(both: Both, tiny_model: LlamaForCausalLM) -> None:
    slot = {"name": "vcrd", "lam_ce": 0.0, "lam_kd": 1.0, "steps": {"n_prefix": 99, "max_tokens": 6}}
    both(method="vcrd", objective=slot, teacher_model=other_weights(tiny_model), scorer=Length())


@pytest.mark.parametrize(
    "term",
    [
        {"name": "flexkd"},
        {"name": "flexkd", "stats": "step"},
        {"name": "flexkd", "p_mask": 0.3, "offdiag": 0.1, "layers": [[1, 1], [-1, -1]]},
        {"name": "projector"},
        {"name": "cka"},
    ],
    ids=named,
)
def test_features_of_a_wider_teacher(both: Both, tiny_model: LlamaForCausalLM, term: dict[str, Any]) -> None:
    both(method=term["name"], term=term, teacher_model=other_weights(tiny_model, width=48))


@pytest.mark.parametrize("method", ["erm_pooled", "iga"])
def test_isomer_consistency(both: Both, method: str) -> None:
    both(method=method, term={"name": "isomer_consistency", "answers": 1.0, "states": 1.0}, rows=isomers())


@pytest.mark.parametrize("options", [{}, {"lambda_placement": "grl"}, {"adapt": "lora"}], ids=named)
def test_prada(both: Both, options: dict[str, Any]) -> None:
    target = [Row(id=f"t{i}", prompt=f"{i} cooks bake {i + 2} cakes. How many?", domain="cooking") for i in range(7)]
    term = {"name": "prada", "n_virt": 4, "width": 8, "dropout": 0.0, "learning_rate": 1e-3} | options
    both(method="prada", term=term, target_dataset=target, atol=2e-4)


@pytest.mark.parametrize("guard", GUARDS, ids=named)
def test_two_stages_under_every_guard(make_stage: Callable[..., DistillTrainer], guard: dict[str, Any]) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        where = {"use_cpu": device == "cpu", "optim": "sgd", "learning_rate": 0.1}
        first = finish(make_stage(f"{device}-1", guard, **where))
        second = make_stage(f"{device}-2", guard, first, task=1, **where)
        finish(second)
        assert torch.device(second.args.device).type == device
        ends.append(weights(second))
    for key, value in ends[0].items():
        torch.testing.assert_close(ends[1][key], value, rtol=1e-3, atol=2e-5)


STATEFUL = [*RESUMED, {"method": "group_dro"}, {"method": "dann"}, {"method": "fish"}]


def check_resumed(make_trainer: MakeTrainer, common: dict[str, Any], stop: int, tmp_path: Path) -> None:
    """A run stopped after ``stop`` steps and resumed ends as one that never stopped."""
    whole = make_trainer("cuda", **common, output_dir=str(tmp_path / "whole"))
    whole.train()
    first = make_trainer("cuda", **common)
    first.add_callback(StopAt(stop))
    first.train()
    second = make_trainer("cuda", **common)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == common["max_steps"]
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(second)[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", STATEFUL, ids=named)
def test_resumed_is_uninterrupted(make_trainer: MakeTrainer, settings: dict[str, Any], tmp_path: Path) -> None:
    common = {"optim": "adamw_torch_fused", "learning_rate": 1e-2, **settings, "max_steps": 5, "save_steps": 3}
    check_resumed(make_trainer, common, 3, tmp_path)


@pytest.mark.parametrize("name", ["prada", "projector"])
def test_what_learns_beside_the_student_is_resumed(
    make_trainer: MakeTrainer, tiny_model: LlamaForCausalLM, tmp_path: Path, name: str
) -> None:
    target = [Row(id=f"t{i}", prompt=f"{i} cooks bake {i + 2} cakes. How many?", domain="cooking") for i in range(7)]
    beside = {"prada": {"target_dataset": target}, "projector": {"teacher_model": other_weights(tiny_model, width=48)}}
    options = {"prada": {"n_virt": 4, "width": 8, "dropout": 0.0}, "projector": {}}[name]
    common = {"method": name, "term": {"name": name, **options}, "max_steps": 4, "save_steps": 2, **beside[name]}
    check_resumed(make_trainer, common, 2, tmp_path)


@pytest.mark.parametrize("method", ["erm_pooled", "iga", "vrex"])
def test_bf16_is_near_fp32(make_trainer: MakeTrainer, method: str, tmp_path: Path) -> None:
    ends = []
    for bf16 in (False, True):
        trainer = make_trainer("cuda", method=method, bf16=bf16, output_dir=str(tmp_path / str(bf16)))
        trainer.train()
        lines = [json.loads(line) for line in (tmp_path / str(bf16) / "metrics.jsonl").read_text().splitlines()]
        ends.append(next(line["loss"] for line in lines if "loss" in line))
        assert all(bool(torch.isfinite(value).all()) for value in weights(trainer).values())
    assert ends[1] == pytest.approx(ends[0], rel=2e-2)


def test_the_default_on_a_gpu_is_bf16_there(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer("cuda", bf16=None, use_cpu=None)
    assert trainer.args.n_gpu == 1
    assert torch.device(trainer.args.device).type == "cuda"
    assert str(torch.cuda.get_device_name()) in trainer.args.placement
    trainer.train()
    assert all(p.device.type == "cuda" for p in trainer.model.parameters())


def test_evaluation_loss(make_trainer: MakeTrainer) -> None:
    found = []
    for device in ("cpu", "cuda"):
        trainer = make_trainer(device)
        trainer.eval_dataset = trainer.train_dataset
        found.append(trainer.evaluate()["eval_loss"])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
