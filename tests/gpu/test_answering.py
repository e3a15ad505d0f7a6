"""What is done with a student on a GPU besides training: answers, influences, terms under any head, the verb."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainingArguments

from isodistill.data.rows import Row
from isodistill.evaluation import logical_consistency_score
from isodistill.evaluation.backends import LocalBackend
from isodistill.evaluation.generate import generate
from isodistill.influence import Fit, Influence, fit_heads
from isodistill.influence.baselines import plain_scores, positive_part, trak
from isodistill.influence.suspicion import suspect
from isodistill.models.load import add_lora
from isodistill.models.prompt import add_prompt, save_prompt, with_prompt
from isodistill.pipeline import run_recipe
from isodistill.recipe import parse_recipe
from isodistill.terms import FlexKD, Projector
from isodistill.training.feature_trainer import FeatureTrainer
from isodistill.validity import Action
from isodistill.validity.likelihood import TeacherLikelihood

from ..evaluation.test_generate import LAYER_BY_LAYER, OWN_FORWARD, make, mixed_prompts, word_tokenizer
from ..training.test_feature_trainer import built, collate, rows

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("kind", [*LAYER_BY_LAYER, *OWN_FORWARD])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_are_those_of_a_cpu_token_for_token(kind: str, temperature: float) -> None:
    model, tokenizer, prompts = make(kind), word_tokenizer(eos=2), mixed_prompts(12)
    how: dict[str, Any] = {"max_new_tokens": 16, "batch_size": 4, "temperature": temperature, "watch": [5, 7]}
    how |= {"seeds": list(range(12)), "follow": lambda index, answer: [11, 12]}
    expected = generate(model, tokenizer, prompts, **how)
    found = generate(model.to("cuda"), tokenizer, prompts, **how)
    assert [a.tokens for a in found] == [a.tokens for a in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.hidden, other.hidden, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(one.watched, other.watched, rtol=1e-3, atol=1e-3)
    names = [f"set-{i // 3}" for i in range(12)]
    scores = [logical_consistency_score(np.stack([a.hidden for a in answers]), names) for answers in (found, expected)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


def test_bf16_answers(tokenizer: PreTrainedTokenizerFast) -> None:
    model = make("llama").to("cuda", torch.bfloat16)
    found = generate(model, word_tokenizer(eos=2), mixed_prompts(6), max_new_tokens=8, batch_size=3)
    assert any(answer.tokens for answer in found)
    assert all(np.isfinite(answer.hidden).all() for answer in found)


def test_questions_behind_a_soft_prompt(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    student = add_lora(tiny_model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"), seed=0)
    causal = student.get_base_model()
    encoder = add_prompt(student, 5, seed=1)
    save_prompt(tmp_path / "prompt", encoder, causal)
    plain = LlamaForCausalLM(tiny_model.config)
    before = with_prompt(plain, tmp_path / "prompt")
    prompts, states, answers = [[7, 8, 9], [10, 11]], [], []
    for device in ("cpu", "cuda"):
        backend = LocalBackend(plain.to(device).eval(), before)
        states.append(backend.question_states(prompts))
        answers.append([a.tokens for a in backend.generate(tokenizer, prompts, max_new_tokens=6, batch_size=2)])
    np.testing.assert_allclose(states[1], states[0], rtol=1e-3, atol=1e-4)
    assert answers[1] == answers[0]


def test_influences() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(24, 6, generator=generator)
    b = a + 0.3 * torch.randn(24, 6, generator=generator)
    query = torch.randn(8, 6, generator=generator), torch.randn(8, 6, generator=generator)
    how = Fit(width=4, batch_size=8, recorded=1, epochs=3, lr=1e-2, temperature=0.3, delta=10.0)
    found: list[dict[str, torch.Tensor]] = []
    for device in ("cpu", "cuda"):
        there = tuple(x.to(device) for x in query)
        influence: Influence = fit_heads(a.to(device), b.to(device), how)
        assert influence.theta.device.type == device
        suspicion = suspect(influence, *there, n_probes=4)
        q = influence.inverse_product(influence.query_gradient(*there), tol=1e-4).q
        scores = {
            "all": influence.score_all(q),
            "first": influence.score_all(q, "first_order"),
            "positive": positive_part(influence, q),
            "trak": trak(influence, *there, rank=8),
            "removal": influence.removal_gradient(torch.arange(24) < 3),
            "suspicion": suspicion.influence,
            "similarity": suspicion.similarity,
            "confidence": plain_scores(influence).confidence,
        }
        found.append({name: value.cpu() for name, value in scores.items()})
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=2e-2, atol=1e-3 * float(value.abs().max()), msg=name)


@pytest.mark.parametrize("solver", ["exact", "cg", "lissa", "ekfac", "projected"])
def test_solvers_run(solver: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(24, 6, generator=generator).to("cuda")
    influence = fit_heads(
        a, a.roll(1, 1), Fit(width=4, batch_size=8, recorded=1, epochs=2, temperature=1.0, delta=50.0)
    )
    q = influence.inverse_product(influence.query_gradient(a[:8], a[8:16]), solver=solver).q
    assert q.device.type == "cuda"
    assert bool(torch.isfinite(q).all())


@pytest.mark.parametrize(("family", "classes"), [("bert", True), ("bart", False), ("llama", False)])
@pytest.mark.parametrize("term", [FlexKD, Projector])
def test_features_under_any_head(family: str, classes: bool, term: Any, tmp_path: Path) -> None:
    ends = []
    for device in ("cpu", "cuda"):
        student, teacher = built(family, classes, 8), built(family, classes, 16)
        args = TrainingArguments(
            str(tmp_path / device), max_steps=2, per_device_train_batch_size=4, learning_rate=0.05, optim="sgd",
            report_to="none", use_cpu=device == "cpu", save_steps=1000, disable_tqdm=True,
        )  # fmt: skip
        trainer = FeatureTrainer(student, args, rows(classes), teacher, term(), data_collator=collate, kd=0.5)
        trainer.train()
        ends.append({n: p.detach().cpu() for n, p in student.named_parameters()})
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-3, atol=1e-4)


def test_steps_scored_by_a_likelihood(tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    row = Row(id="one", prompt="2 + 3?", completion="2 + 3 = 5.")
    actions = [Action(row, "2 + 3 = ", step, "5.", ends=True) for step in ("5.", "6.", "50.")]
    values = [TeacherLikelihood(tiny_model.to(device), tokenizer).score(actions) for device in ("cpu", "cuda")]
    assert values[1] == pytest.approx(values[0], rel=1e-3)


SETTINGS: dict[str, Any] = {
    "student": "tiny",
    "method": "iga",
    "baseline": "erm",
    "isomers": {"n_sets": 20, "families": ["rates"], "domains": ["law", "medicine"]},
    "split": {"held_out_domains": ["sports"], "valid": 0.0, "test": 0.3},
    "lora": {"r": 2, "lora_alpha": 4, "target_modules": "all-linear"},
    "train": {"steps": 3, "sets_per_batch": 2, "save_steps": 2, "logging_steps": 1, "learning_rate": 0.01},
    "evaluate": {"max_new_tokens": 6, "max_sets": 4},
}


def test_a_recipe_from_data_to_report(tmp_path: Path) -> None:
    run_recipe(parse_recipe(SETTINGS, []), tmp_path / "run", "isodistill run recipe.yaml")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert (tmp_path / "run" / "report.html").read_text().rstrip().endswith("</html>")
    assert _finite(results)


def _finite(value: Any) -> bool:
    """Every number is finite; what cannot be measured is null."""
    if isinstance(value, dict):
        return all(map(_finite, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(map(_finite, value))
    return not isinstance(value, float) or bool(np.isfinite(value))
