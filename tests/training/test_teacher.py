"""A teacher inside training: gradients under accumulation, both paths, IGA, self-distillation, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill.errors import UserError
from isodistill.teachers.logits import LogitCache, fill_cache, made_by

from .conftest import alike, gradient, other_weights

NAMES = ("fkl", "rkl", "jsd", "skew", "vcrd")
WHOLE = [{"control": "permuted"}, {"control": "constant"}, {"w_norm": "mean"}]


@pytest.mark.parametrize("name", NAMES)
def test_accumulation_and_path_never_change_the_gradient(taught: Callable[..., Any], name: str) -> None:
    whole = gradient(taught(method=name, sets_per_batch=8))
    others = [taught(method=name, sets_per_batch=8 // n, gradient_accumulation_steps=n) for n in (2, 8)]
    others.append(taught(method=name, sets_per_batch=8, gradients="domain_major"))
    for other in map(gradient, others):
        alike(other, whole)


@pytest.mark.parametrize("options", WHOLE, ids=str)
def test_weights_of_the_whole_step_do_not_depend_on_its_split(
    taught: Callable[..., Any], options: dict[str, str]
) -> None:
    slot = {"name": "vcrd", "lam_ce": 0.0, **options}
    whole = gradient(taught(method="vcrd", objective=slot, sets_per_batch=8))
    for n in (2, 8):
        split = taught(method="vcrd", objective=slot, sets_per_batch=8 // n, gradient_accumulation_steps=n)
        alike(gradient(split), whole)
    plain = gradient(taught(method="vcrd", objective={"name": "vcrd", "lam_ce": 0.0}, sets_per_batch=8))
    assert any(not torch.allclose(plain[name], value, rtol=1e-2) for name, value in whole.items())


@pytest.mark.parametrize("k", [8, 10_000])
def test_what_is_read_from_disk_teaches_as_the_live_teacher(
    taught: Callable[..., Any], tiny_model: LlamaForCausalLM, tokenizer: Any, tmp_path: Path, k: int
) -> None:
    teacher = other_weights(tiny_model)
    cache = LogitCache(tmp_path / "cache", made_by("t", "1", tokenizer, len(tokenizer)), k=k)
    live = taught(teacher, method="fkl", sets_per_batch=4, gradient_accumulation_steps=2)
    fill_cache(cache, teacher, live.train_dataset)
    expected = gradient(live)
    cached = gradient(taught(cache, method="fkl", sets_per_batch=4, gradient_accumulation_steps=2))
    close = [torch.allclose(cached[n], value, rtol=1e-2, atol=1e-4) for n, value in expected.items()]
    assert all(close) == (k > 8)  # float16 keeps a log-prob to 1 part in 2,048; eight tokens are not all of them


def test_a_cache_that_cannot_serve_is_refused(
    taught: Callable[..., Any], tiny_model: LlamaForCausalLM, tokenizer: Any, tmp_path: Path
) -> None:
    def cache(name: str, temperature: float = 1.0, fill: bool = True) -> LogitCache:
        made = LogitCache(tmp_path / name, made_by("t", "1", tokenizer, len(tokenizer), temperature), k=4)
        if fill:
            fill_cache(made, tiny_model, taught(method="fkl").train_dataset)
        return made

    with pytest.raises(UserError, match="cannot be tempered again"):
        taught(cache("hot", 2.0), method="fkl")
    with pytest.raises(UserError, match="lacks 24 of 24 rows"):
        taught(cache("empty", fill=False), method="fkl")
    with pytest.raises(UserError, match="need a model, not stored log-probs"):
        taught(cache("full"), method="fkl", objective={"name": "fkl", "rho": 0.5})


@pytest.mark.parametrize("name", ["fkl", "vcrd"])
def test_the_objective_is_that_of_every_domain_under_iga(taught: Callable[..., Any], name: str) -> None:
    iga = gradient(taught(method="iga", objective={"name": name}, sets_per_batch=8))
    erm = gradient(taught(method="erm", objective={"name": name}, sets_per_batch=8))
    alike(iga, erm)  # in update mode IGA leaves the gradient of ERM to the optimizer


def test_self_is_the_base_without_its_adapter(taught: Callable[..., Any], tiny_model: LlamaForCausalLM) -> None:
    own = gradient(taught("self", method="fkl"))
    base = gradient(taught(tiny_model, method="fkl"))
    alike(own, base)


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
        taught(teacher_processing_class=other, method="fkl")
    short = type(tiny_model.config)(**tiny_model.config.to_dict() | {"max_position_embeddings": 16})
    with pytest.raises(UserError, match=r"the longest row has \d+ tokens and the teacher reads 16"):
        taught(LlamaForCausalLM(short), method="fkl")
