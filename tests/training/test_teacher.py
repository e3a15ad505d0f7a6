"""A teacher inside training: gradients under accumulation, both paths, IGA, self-distillation, and what is refused."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill.errors import UserError
from isodistill.numerics.divergences import TAILS
from isodistill.teachers.logits import LogitCache, TopK, fill_cache, made_by, top_k

from .conftest import alike, gradient, other_weights

NAMES = ("fkl", "rkl", "jsd", "skew", "vcrd")
WHOLE = [{"control": "permuted"}, {"control": "constant"}, {"w_norm": "mean"}]


@pytest.mark.parametrize("name", NAMES)
def test_accumulation_and_path_never_change_the_gradient(taught: Callable[..., Any], name: str) -> None:
    whole = gradient(taught(method=name, sets_per_batch=8))
    others = [taught(method=name, sets_per_batch=8 // n, gradient_accumulation_steps=n) for n in (2, 4, 8)]
    others.append(taught(method=name, sets_per_batch=8, gradients="domain_major"))
    for other in map(gradient, others):
        alike(other, whole)


@pytest.mark.parametrize("options", WHOLE, ids=str)
def test_weights_of_the_whole_step_do_not_depend_on_its_split(
    taught: Callable[..., Any], options: dict[str, str]
) -> None:
    slot = {"name": "vcrd", "lam_ce": 0.0, **options}
    whole = gradient(taught(method="vcrd", objective=slot, sets_per_batch=8))
    for n in (2, 4, 8):
        split = taught(method="vcrd", objective=slot, sets_per_batch=8 // n, gradient_accumulation_steps=n)
        alike(gradient(split), whole)
    plain = gradient(taught(method="vcrd", objective={"name": "vcrd", "lam_ce": 0.0}, sets_per_batch=8))
    assert any(not torch.allclose(plain[name], value, rtol=1e-2) for name, value in whole.items())


@pytest.mark.parametrize("options", [{}, *WHOLE], ids=str)
def test_traces_for_the_report_weigh_as_one_step_under_every_control(
    taught: Callable[..., Any], options: dict[str, str]
) -> None:
    def traces(given: dict[str, str]) -> list[dict[str, Any]]:
        trainer = taught(method="vcrd", objective={"name": "vcrd", **given}, learning_rate=1e-12)
        trainer.train()
        file = Path(trainer.args.output_dir) / "validity" / "traces.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()]

    plain, found = traces({}), traces(options)
    assert len(found) == 24
    assert all(len(trace["firsts"]) > 1 and trace["firsts"][0] == 0 for trace in found)
    assert [trace["delta"] for trace in found] == [trace["delta"] for trace in plain]
    before, after = ([w for trace in one for w in trace["weight"]] for one in (plain, found))
    mean = sum(before) / len(before)
    if options.get("control") == "permuted":
        assert sorted(found[0]["weight"]) != sorted(plain[0]["weight"])
        assert sum(a in before for a in after) > 0.95 * len(after)  # the end-of-text tokens are not shown
    elif options.get("control") == "constant":
        assert len(set(after)) == 1
        assert after[0] == pytest.approx(mean, abs=0.05)
    elif options.get("w_norm") == "mean":
        ratios = [b / a for a, b in zip(after, before, strict=True)]
        assert ratios == pytest.approx([ratios[0]] * len(ratios), rel=1e-2)
        assert ratios[0] == pytest.approx(mean, abs=0.05)


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


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_cache_teaches_as_the_truncated_live_teacher(
    taught: Callable[..., Any], tiny_model: LlamaForCausalLM, tokenizer: Any, tmp_path: Path, name: str, tail: str
) -> None:
    slot = {"name": name, "tail": tail}
    teacher, made = other_weights(tiny_model), made_by("t", "1", tokenizer, len(tokenizer))
    live = taught(teacher, method=name, objective=slot, sets_per_batch=2)
    states = live.teacher

    def truncated_teacher(batch: Any, positions: torch.Tensor) -> TopK:
        logits = teacher.lm_head(states(batch, positions).hidden)
        return top_k(logits, positions, 8, n_vocab=len(tokenizer))

    live.teacher = truncated_teacher
    cache = LogitCache(tmp_path / "cache", made, k=8)
    fill_cache(cache, teacher, live.train_dataset)
    cached = gradient(taught(cache, method=name, objective=slot, sets_per_batch=2))
    for parameter, value in gradient(live).items():  # float16 keeps a log-prob to 1 part in 2,048
        torch.testing.assert_close(cached[parameter], value, rtol=1e-2, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_padding_and_what_lies_in_it_change_nothing(
    taught: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    expected = gradient(taught(method=name, sets_per_batch=8))
    padded = taught(method=name, sets_per_batch=8)
    collator = padded.data_collator

    def wider(rows: Any) -> dict[str, torch.Tensor]:
        batch = collator(rows)
        for column, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
            batch[column] = torch.nn.functional.pad(batch[column], (0, 9), value=fill)
        batch["input_ids"][batch["attention_mask"] == 0] = 77
        return batch

    monkeypatch.setattr(padded, "data_collator", wider)
    alike(gradient(padded), expected)


@pytest.mark.parametrize("name", [*NAMES, "from disk"])
def test_interrupted_and_resumed_is_uninterrupted(
    taught: Callable[..., Any], adapter: Any, tiny_model: LlamaForCausalLM, tokenizer: Any, tmp_path: Path, name: str
) -> None:
    """Four batches an epoch: step 5 lies in the second one."""
    teacher: Any = None
    if name == "from disk":
        name, teacher = "fkl", LogitCache(tmp_path / "cache", made_by("t", "1", tokenizer, len(tokenizer)), k=8)
        fill_cache(teacher, other_weights(tiny_model), taught(method="fkl").train_dataset)
    common = {"method": name, "lr_scheduler_type": "constant", "sets_per_batch": 2, "save_steps": 3}
    whole = taught(teacher, **common, max_steps=6, output_dir=str(tmp_path / "whole"))
    whole.train()
    taught(teacher, **common, max_steps=4).train()
    again = taught(teacher, **common, max_steps=6)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoints" / "checkpoint-3"))
    for parameter, value in adapter(whole).items():
        assert torch.equal(adapter(again)[parameter], value), parameter


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


def test_a_teacher_that_is_not_finite_names_row_and_position(
    taught: Callable[..., Any], tiny_model: LlamaForCausalLM, tokenizer: Any
) -> None:
    teacher = other_weights(tiny_model)
    (seven,) = tokenizer("7", add_special_tokens=False)["input_ids"]
    teacher.model.embed_tokens.weight.data[seven] = torch.nan
    trainer = taught(teacher, method="fkl", sets_per_batch=8)
    with pytest.raises(UserError, match=r"not finite at position (\d+) of row (\S+)\. .*load it in float32") as error:
        trainer.train()
    named = re.search(r"of row (\S+)\.", str(error.value))
    (row,) = [row for row in trainer.train_dataset if named and row.row_id == named[1]]
    assert seven in row.input_ids


def test_a_teacher_whose_tokenizer_nobody_named_is_warned_about(
    taught: Callable[..., Any],
) -> None:
    with pytest.warns(UserWarning, match="teacher_processing_class"):
        taught(method="fkl", teacher_processing_class=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        taught(method="fkl")
        taught("self", method="fkl", teacher_processing_class=None)


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
