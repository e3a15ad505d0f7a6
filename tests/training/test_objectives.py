"""What every objective besides cross-entropy owes in trainings: padding, reductions, resume, all alignments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from isodistill import DistillTrainer
from isodistill.alignment import ALIGNMENTS
from isodistill.numerics.divergences import DIVERGENCES
from isodistill.objectives import OBJECTIVES

from .conftest import alike, gradient
from .test_resume import StopAt

Taught = Callable[..., DistillTrainer]

OWN: list[dict[str, Any]] = [
    {"name": "label_multitask", "alpha": 0.3},
    {"name": "fkl"},
    {"name": "rkl", "temperature": 2.0},
    {"name": "jsd"},
    {"name": "skew", "reverse": True},
    *({"name": "vcrd", "divergence_name": name} for name in DIVERGENCES),
    {"name": "vcrd", "control": "permuted"},
    {"name": "vcrd", "control": "constant"},
    {"name": "vcrd", "control": "reversed"},
    {"name": "vcrd", "w_norm": "mean"},
]


def name_of(objective: dict[str, Any]) -> str:
    return "-".join(str(v) for v in objective.values())


every = pytest.mark.parametrize("objective", OWN, ids=name_of)


@pytest.fixture
def under(taught: Taught, make_trainer: Taught) -> Taught:
    """A trainer of an objective, its teacher beside it where it asks one."""

    def make(objective: dict[str, Any], **settings: Any) -> DistillTrainer:
        asks = OBJECTIVES[objective["name"]]().needs_teacher
        settings = {"method": "erm_pooled", "max_steps": 1, "max_grad_norm": 1e9} | settings
        return (taught if asks else make_trainer)(objective=objective, **settings)

    return make


def test_no_objective_is_left_out() -> None:
    assert {objective["name"] for objective in OWN} == OBJECTIVES.keys() - {"ce"}


@every
def test_padding_changes_nothing(under: Taught, objective: dict[str, Any]) -> None:
    clean, soiled = (under(objective, sets_per_batch=4) for _ in range(2))
    collate = soiled.data_collator

    def padded(rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        """Three columns more, and garbage wherever nothing is read."""
        batch = collate(rows)
        n = len(batch["labels"])
        for name, fill in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
            batch[name] = torch.cat([batch[name], torch.full((n, 3), fill)], 1)
        hidden = batch["attention_mask"] == 0
        batch["input_ids"][hidden] = torch.randint(5, 300, (int(hidden.sum()),))
        return batch

    soiled.data_collator = padded
    alike(gradient(soiled), gradient(clean))


@pytest.mark.parametrize("objective", [OWN[0], {"name": "jsd"}, {"name": "vcrd"}, OWN[-4]], ids=name_of)
def test_means_of_domains_do_not_depend_on_the_split(under: Taught, objective: dict[str, Any]) -> None:
    sets = 8 if objective["name"] == "label_multitask" else 4
    whole = gradient(under(objective, method="erm", sets_per_batch=sets))
    alike(gradient(under(objective, method="erm", sets_per_batch=sets // 4, gradient_accumulation_steps=4)), whole)
    pooled = gradient(under(objective, sets_per_batch=sets))
    assert any(not torch.allclose(pooled[name], value, rtol=1e-2) for name, value in whole.items())


@pytest.mark.parametrize("objective", [OWN[0], {"name": "jsd"}, {"name": "vcrd"}, *OWN[-4:]], ids=name_of)
def test_interrupted_and_resumed_is_uninterrupted(
    under: Taught, adapter: Any, tmp_path: Path, objective: dict[str, Any]
) -> None:
    common = {"max_steps": 5, "save_steps": 3, "sets_per_batch": 2}
    whole = under(objective, **common, output_dir=str(tmp_path / "whole"))
    whole.train()
    first = under(objective, **common)
    first.add_callback(StopAt(3))
    first.train()
    second = under(objective, **common)
    second.train(resume_from_checkpoint=True)
    expected, found = adapter(whole), adapter(second)
    assert second.state.global_step == 5
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("more", [{}, {"gradients": "domain_major"}, {"method": "iga"}], ids=str)
def test_the_norm_of_each_terms_gradient_is_measured_and_changes_nothing(
    under: Taught, adapter: Any, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    common = {"max_steps": 4, "sets_per_batch": 2, "gradient_accumulation_steps": 2, "logging_steps": 2}
    trained = []
    monkeypatch.setattr("isodistill.training.term_norms.EVERY", 2)
    for _ in range(2):
        trainer = under({"name": "vcrd", "lam_ce": 0.3}, **common | more)
        trainer.train()
        trained.append((adapter(trainer), [line for line in trainer.state.log_history if "loss" in line]))
        monkeypatch.setattr("isodistill.training.trainer.term_norms", lambda *given: {})
    (measured, lines), (plain, without) = trained
    assert all(torch.equal(measured[name], value) for name, value in plain.items())
    assert [("objective/kd_norm" in line, "objective/ce_norm" in line) for line in lines] == [(True, True)] * 2
    assert not any("objective/kd_norm" in line for line in without)
    assert [line["objective/kd"] for line in lines] == [line["objective/kd"] for line in without]
    monkeypatch.undo()
    for name, factors in (("ce", {"lam_ce": 0.3, "lam_kd": 0.0}), ("kd", {"lam_ce": 0.0})):
        alone = gradient(under({"name": "vcrd", **factors}, **common | {"max_steps": 1}))
        expected = math.sqrt(sum(float(value.square().sum()) for value in alone.values()))
        assert lines[0][f"objective/{name}_norm"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_vcrd_at_beta_0_is_its_divergence_alone(under: Taught, adapter: Any, name: str) -> None:
    plain = {"fkl": {"name": "fkl"}, "rkl": {"name": "rkl"}, "jsd": {"name": "jsd", "beta": 0.3}}
    plain |= {"skl": {"name": "skew", "alpha": 0.3}, "srkl": {"name": "skew", "alpha": 0.3, "reverse": True}}
    trained = []
    for objective in (plain[name], *({"name": "vcrd", "divergence_name": name, "mix": 0.3, "beta": b} for b in (0, 4))):
        trainer = under(objective, max_steps=2)
        trainer.train()
        trained.append(adapter(trainer))
    expected, neutral, weighted = trained
    assert all(torch.equal(neutral[n], value) for n, value in expected.items())
    assert not all(torch.equal(weighted[n], value) for n, value in expected.items())


@pytest.mark.parametrize("name", ALIGNMENTS)
def test_vcrd_stands_inside_every_alignment(under: Taught, adapter: Any, name: str) -> None:
    """At beta 0 it is forward KL under the same alignment, bit for bit; else it is not."""
    trained = []
    for objective in ({"name": "fkl"}, {"name": "vcrd", "beta": 0.0}, {"name": "vcrd", "beta": 4.0}):
        trainer = under(objective, alignment={"name": name})
        trainer.train()
        trained.append(adapter(trainer))
    expected, neutral, weighted = trained
    assert all(torch.equal(neutral[n], value) for n, value in expected.items())
    assert not all(torch.equal(weighted[n], value) for n, value in expected.items())
    assert all(bool(torch.isfinite(value).all()) for value in weighted.values())
