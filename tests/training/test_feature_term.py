"""Flex-KD and its baselines inside training: neutral setting, masks, accumulation, domains, resume, cache, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaForCausalLM, TrainerCallback

from isodistill import DistillTrainer
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.training.forward import trained_tokens

from .conftest import alike, gradient, other_weights

wider = partial(other_weights, width=48)


@pytest.fixture
def taught(taught: Callable[..., DistillTrainer], tiny_model: LlamaForCausalLM) -> Callable[..., DistillTrainer]:
    """Trainers of a student of width 32 with a teacher of width 48."""

    def make(rows: list[Row] | None = None, teacher: Any = None, **settings: Any) -> DistillTrainer:
        return taught(wider(tiny_model) if teacher is None else teacher, rows=rows, **settings)

    return make


def flexkd(**options: Any) -> dict[str, Any]:
    return {"name": "flexkd", **options}


def metrics(tmp_path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


@pytest.mark.parametrize("name", ["flexkd", "projector", "cka"])
def test_b_0_is_the_loss_without_the_term_bit_for_bit(
    taught: Callable[..., Any], make_trainer: Any, adapter: Any, name: str
) -> None:
    plain = make_trainer(method="erm_pooled", max_steps=3)
    plain.train()
    neutral = make_trainer(method=name, term={"b": 0.0}, max_steps=3)
    neutral.train()
    added = taught(method=name, max_steps=3)
    added.train()
    expected, found, moved = adapter(plain), adapter(neutral), adapter(added)
    assert all(torch.equal(found[n], value) for n, value in expected.items())
    assert set(moved) == set(expected)  # no trainable parameter of the student is new
    assert not all(torch.equal(moved[n], value) for n, value in expected.items())


def test_gradient_is_that_of_the_formula_written_out(taught: Callable[..., Any], tiny_model: LlamaForCausalLM) -> None:
    """By autograd through transformers' own forwards, with numpy-like statistics of our own making."""
    trainer = taught(method="flexkd", term=flexkd(b=3.0), sets_per_batch=8)
    teacher = wider(tiny_model).eval()
    batch = trainer.data_collator(trainer.train_dataset)
    tokens, positions = trained_tokens(batch)
    student = trainer.model
    out = student(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True, use_cache=False
    )
    own = teacher(batch["input_ids"], attention_mask=batch["attention_mask"], output_hidden_states=True)
    h_T = own.hidden_states[-1].flatten(0, 1)[positions].detach()
    p = torch.softmax(own.logits.flatten(0, 1)[positions].detach(), 1)
    p[torch.arange(len(p)), tokens.targets] -= 1
    score = (p @ teacher.lm_head.weight.detach()).abs().sum(0)
    idx = torch.tensor(sorted(sorted(range(48), key=lambda i: (-float(score[i]), i))[:32]))
    F_S, F_T = out.hidden_states[-1].flatten(0, 1)[positions], h_T[:, idx]
    (S, T) = ((F - F.mean(0)) for F in (F_S, F_T))
    r = (S * T).sum(0) / (S.square().sum(0) * T.square().sum(0)).sqrt()
    task = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1)[positions], tokens.targets)
    named = {n: p for n, p in student.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(task + 3.0 * (1 - r).square().mean(), list(named.values()))
    alike(gradient(trainer), dict(zip(named, grads, strict=True)))


def test_statistics_of_the_step_do_not_depend_on_the_split(taught: Callable[..., Any]) -> None:
    whole = gradient(taught(method="flexkd", term=flexkd(), sets_per_batch=8))
    exact = [
        taught(method="flexkd", term=flexkd(stats="step"), sets_per_batch=8 // n, gradient_accumulation_steps=n)
        for n in (1, 2, 8)
    ]
    for each in exact:
        alike(gradient(each), whole)
    micro = gradient(taught(method="flexkd", term=flexkd(), sets_per_batch=1, gradient_accumulation_steps=8))
    apart = max(float((micro[n] - value).abs().max() / value.abs().max()) for n, value in whole.items())
    assert apart > 0.05  # the default is not exact, and says so


def test_a_micro_batch_counts_by_its_tokens(taught: Callable[..., Any]) -> None:
    """The projector's loss is a mean over tokens, so accumulation may not change its gradient."""
    term = {"name": "projector", "b": 2.0}
    whole = gradient(taught(method="projector", term=term, sets_per_batch=8))
    alike(gradient(taught(method="projector", term=term, sets_per_batch=2, gradient_accumulation_steps=4)), whole)


@pytest.mark.parametrize("stats", ["micro", "step"])
def test_a_term_is_part_of_each_domains_loss_under_iga(taught: Callable[..., Any], stats: str) -> None:
    """In update mode IGA hands the mean gradient on; it is that of the mean over domains of task + b L."""
    both = [
        taught(method="iga", term=flexkd(stats=stats), sets_per_batch=8, gradients=g) for g in ("auto", "domain_major")
    ]
    found = [gradient(trainer) for trainer in both]
    alike(found[1], found[0])
    plain = gradient(taught(method="iga", term=flexkd(b=1e-9), sets_per_batch=8))
    assert any(float((found[0][n] - value).abs().max()) > 1e-4 for n, value in plain.items())
    summed: dict[str, torch.Tensor] = {}
    for k in range(3):  # the loss of one domain, from a batch that holds the others too
        single = taught(method="iga", term=flexkd(stats=stats), sets_per_batch=8)
        single.alignment.domain_weights = lambda counts, k=k: torch.eye(3)[k].to(counts) / counts
        for n, value in gradient(single).items():
            summed[n] = summed.get(n, 0.0) + value
    alike(summed, found[0])


def test_prompts_and_padding_change_nothing(taught: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gradient(taught(method="flexkd", term=flexkd(), sets_per_batch=8))
    from isodistill.training import trainer as module

    plain = module.collate

    def padded(encoded: Any, domains: Any, pad_id: int) -> Any:
        batch = plain(encoded, domains, pad_id)
        for name, value in (("input_ids", 7), ("attention_mask", 0), ("labels", -100)):
            batch[name] = torch.nn.functional.pad(batch[name], (0, 5), value=value)
        return batch

    monkeypatch.setattr(module, "collate", padded)
    alike(gradient(taught(method="flexkd", term=flexkd(), sets_per_batch=8)), expected)


@pytest.mark.parametrize("pairs", [[[1, 1]], [[-1, -1], [1, 2]]])
def test_pairs_of_layers(taught: Callable[..., Any], tmp_path: Path, pairs: list[list[int]]) -> None:
    paths = [
        taught(method="flexkd", term=flexkd(layers=pairs), sets_per_batch=8, gradients=g)
        for g in ("auto", "domain_major")
    ]
    found = [gradient(trainer) for trainer in paths]
    alike(found[1], found[0])
    names = [name for name in metrics(tmp_path)[0] if name.startswith("flexkd/r_")]
    assert len(names) == len(pairs)
    term = paths[0].term.term
    assert all(len(idx) == 32 for idx in term.idx)


@pytest.mark.parametrize(
    "term",
    [
        flexkd(), flexkd(stats="step", refresh_every=2, examples=6), flexkd(p_mask=0.5, select="random"),
        {"name": "projector", "b": 0.1}, {"name": "cka"},
    ],
    ids=["micro", "step-refresh", "mask", "projector", "cka"],
)  # fmt: skip
def test_resume_is_bit_exact(taught: Callable[..., Any], adapter: Any, tmp_path: Path, term: Any) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = state.global_step == 3
            return control

    settings = {"method": "flexkd", "term": term, "max_steps": 5, "save_steps": 3}
    whole = taught(**settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    first = taught(**settings)
    first.add_callback(Stop())
    first.train()
    second = taught(**settings)
    second.train(resume_from_checkpoint=True)
    expected, found = adapter(whole), adapter(second)
    assert all(torch.equal(found[n], value) for n, value in expected.items())


def test_scores_are_made_once_and_read_from_disk_afterwards(
    taught: Callable[..., Any], tmp_path: Path, capsys: Any, tiny_model: LlamaForCausalLM
) -> None:
    def said(**settings: Any) -> bool:
        taught(method="flexkd", **settings).train()
        return "teacher scored on" in capsys.readouterr().out

    assert said()
    assert not said()
    assert not said(term=flexkd(b=0.5, select="lowest"))
    assert said(term=flexkd(score="squared"))
    assert said(term=flexkd(examples=4))
    other = wider(tiny_model)
    with torch.no_grad():
        other.lm_head.weight[0, 0] += 1.0
    assert said(teacher=other)
    assert len(list((tmp_path / "run" / "flexkd").glob("scores-*.safetensors"))) == 4


def test_dimensions_are_chosen_anew_when_a_refresh_is_due(taught: Callable[..., Any]) -> None:
    trainer = taught(method="flexkd", term=flexkd(refresh_every=2, examples=6), max_steps=5)
    chosen: list[tuple[int, int]] = []
    choose = trainer.term.term.choose

    def watch(scores: Any) -> None:
        chosen.append((trainer.state.global_step, trainer.term.term.refreshed))
        choose(scores)

    trainer.term.term.choose = watch
    trainer.train()
    assert chosen == [(0, 0), (2, 1), (4, 2)]


def test_the_saved_student_has_no_new_key_and_loads_in_plain_transformers(
    taught: Callable[..., Any], make_trainer: Any, tmp_path: Path, tiny_model: LlamaForCausalLM
) -> None:
    def keys(trainer: DistillTrainer, name: str) -> set[str]:
        trainer.train()
        trainer.save_model(str(tmp_path / name))
        with safe_open(tmp_path / name / "adapter_model.safetensors", framework="pt") as file:
            return set(file.keys())

    projected = taught(method="projector")
    assert keys(projected, "projector") == keys(make_trainer(method="erm_pooled", max_steps=1), "plain")
    tiny_model.save_pretrained(tmp_path / "base")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    loaded.load_adapter(str(tmp_path / "projector"))
    ids = torch.arange(5, 15)[None]
    projected.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, projected.model(ids).logits, rtol=1e-4, atol=1e-5)


def test_logit_distillation_and_flexkd_go_together(taught: Callable[..., Any], tmp_path: Path) -> None:
    kd = {"name": "fkl", "temperature": 2.0, "lam_ce": 1.0, "lam_kd": 0.5}
    taught(method="flexkd", objective=kd, max_steps=2).train()
    first = metrics(tmp_path)[0]
    assert {"objective/kd", "flexkd/loss", "flexkd/r_0", "flexkd/halves_agree_0"} <= set(first)
    assert first["flexkd/overlap_with_top_0"] == 1.0


def test_correlation_rises_with_training(taught: Callable[..., Any], tmp_path: Path) -> None:
    taught(method="flexkd", max_steps=12, term=flexkd(b=5.0)).train()
    rs = [line["flexkd/r_0"] for line in metrics(tmp_path)]
    assert rs[-1] > rs[0] + 0.1


def test_what_cannot_be_combined_is_refused_at_once(
    taught: Callable[..., Any], make_trainer: Any, tiny_model: LlamaForCausalLM, tokenizer: Any
) -> None:
    with pytest.raises(UserError, match="set teacher"):
        make_trainer(method="flexkd")
    with pytest.raises(UserError, match="would not see the rest of the step") as error:
        taught(method="fish", term=flexkd(layers=[[9, -1]]))
    assert "looks at layer 9 of the teacher, which has 2" in str(error.value)
    with pytest.raises(UserError, match="Did you mean 'flexkd'"):
        taught(method="erm", term={"name": "flexdk"})
    with pytest.raises(UserError, match="so term needs a name"):
        taught(method="erm", term={"b": 1.0})
    with pytest.raises(UserError, match="refuses its options: p_mask is 2"):
        taught(method="erm", term=flexkd(p_mask=2.0))


def test_a_teacher_with_another_tokenizer_is_refused(taught: Callable[..., Any], tokenizer: Any) -> None:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = tree["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    other = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(tree)))
    with pytest.raises(UserError, match="different tokenizers"):
        taught(method="flexkd", teacher_processing_class=other)


def test_a_teacher_whose_states_are_not_finite_is_named(
    taught: Callable[..., Any], tiny_model: LlamaForCausalLM
) -> None:
    teacher = wider(tiny_model)
    with torch.no_grad():
        teacher.model.embed_tokens.weight[50:] = torch.inf
    with pytest.raises(UserError, match=r"hidden states.* are not finite"):
        taught(teacher=teacher, method="flexkd").train()
