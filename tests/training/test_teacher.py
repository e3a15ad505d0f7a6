"""A teacher inside training: gradients under accumulation, both paths, IGA, self-distillation, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill import DistillTrainer
from isodistill.errors import UserError

NAMES = ("fkl", "rkl", "jsd", "skew", "vcrd")


@pytest.fixture
def taught(make_trainer: Any, tiny_model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Trainers whose teacher is a model of other weights, or the student itself."""

    def make(teacher: Any = None, tokenizer: Any = None, **settings: Any) -> DistillTrainer:
        if teacher is None:
            torch.manual_seed(9)
            teacher = LlamaForCausalLM(tiny_model.config)
        init = DistillTrainer.__init__
        with monkeypatch.context() as patch:
            given = {"teacher_model": teacher, "teacher_processing_class": tokenizer}
            patch.setattr(DistillTrainer, "__init__", lambda self, *a, **k: init(self, *a, **given, **k))
            trainer: DistillTrainer = make_trainer(max_steps=1, max_grad_norm=1e9, **settings)
            return trainer

    return make


def gradient(trainer: DistillTrainer) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}

    def grab(optimizer: Any, args: Any, kwargs: Any) -> None:
        seen.update({n: p.grad.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad})

    trainer.create_optimizer().register_step_pre_hook(grab)
    trainer.train()
    return seen


@pytest.mark.parametrize("name", NAMES)
def test_accumulation_and_path_never_change_the_gradient(taught: Callable[..., Any], name: str) -> None:
    whole = gradient(taught(method=name, sets_per_batch=8))
    others = [taught(method=name, sets_per_batch=8 // n, gradient_accumulation_steps=n) for n in (2, 4, 8)]
    others.append(taught(method=name, sets_per_batch=8, gradients="domain_major"))
    for other in map(gradient, others):
        for n, value in whole.items():
            torch.testing.assert_close(other[n], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["fkl", "vcrd"])
def test_the_objective_is_that_of_every_domain_under_iga(taught: Callable[..., Any], name: str) -> None:
    iga = gradient(taught(method="iga", objective={"name": name}, sets_per_batch=8))
    erm = gradient(taught(method="erm", objective={"name": name}, sets_per_batch=8))
    for n, value in erm.items():  # in update mode IGA leaves the gradient of ERM to the optimizer
        torch.testing.assert_close(iga[n], value, rtol=1e-3, atol=1e-5)


def test_self_is_the_base_without_its_adapter(taught: Callable[..., Any], tiny_model: LlamaForCausalLM) -> None:
    own = gradient(taught("self", method="fkl"))
    base = gradient(taught(tiny_model, method="fkl"))
    for n, value in base.items():
        torch.testing.assert_close(own[n], value, rtol=1e-3, atol=1e-5)


def test_what_is_refused_before_training(
    taught: Callable[..., Any], make_trainer: Any, tiny_model: Any, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(UserError, match="set teacher"):
        make_trainer(method="fkl")
    with pytest.raises(UserError, match="leave teacher_model out"):
        taught(method="erm")
    config = type(tiny_model.config)(**tiny_model.config.to_dict() | {"vocab_size": 64})
    with pytest.raises(UserError, match="truncate"):
        taught(LlamaForCausalLM(config), method="fkl")
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tree["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(tree)))
    with pytest.raises(UserError, match="different tokenizers"):
        taught(tokenizer=other, method="fkl")
