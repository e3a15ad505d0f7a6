"""What every alignment besides IGA owes in real trainings: neutral settings, accumulation, absent domains, resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from isodistill import DistillTrainer
from isodistill.alignment import ALIGNMENTS

from .conftest import make_rows
from .test_resume import StopAt

MakeTrainer = Callable[..., DistillTrainer]
Adapter = Callable[[DistillTrainer], dict[str, torch.Tensor]]

METHODS: list[dict[str, Any]] = [
    {"name": "and_mask"},
    {"name": "and_mask", "apply_to": "gradient", "renorm": True, "control": "random"},
    {"name": "sand_mask"},
    {"name": "pcgrad", "reduction": "sum"},
    {"name": "cagrad"},
    {"name": "upgrad"},
    {"name": "vrex", "anneal": 0.5},
    {"name": "group_dro", "eta": 0.5},
    {"name": "irm", "anneal": 0.5},
    {"name": "irm", "lam": 10.0, "anneal": 0.0, "estimator": "squared"},
    {"name": "coral"},
    {"name": "dann"},
    {"name": "fishr", "anneal": 0.3},
    {"name": "fish"},
    {"name": "mldg", "n_test": 1, "inner_lr": 1e-2},
    {"name": "iga2020", "lam": 0.1},
]
NEUTRAL: list[dict[str, Any]] = [
    {"name": "and_mask", "t": 0.0},
    {"name": "cagrad", "c": 0.0},
    {"name": "vrex", "lam": 0.0},
    {"name": "group_dro", "eta": 0.0},
    {"name": "irm", "lam": 0.0},
    {"name": "coral", "lam": 0.0},
    {"name": "dann", "lam": 0.0},
    {"name": "fishr", "lam": 0.0},
    {"name": "iga2020", "lam": 0.0},
]


def name_of(alignment: dict[str, Any]) -> str:
    return "-".join(str(v) for v in alignment.values())


every = pytest.mark.parametrize("alignment", METHODS, ids=name_of)


@pytest.fixture
def train(make_trainer: MakeTrainer, adapter: Adapter) -> Callable[..., dict[str, torch.Tensor]]:
    """What a method, named by its alignment's options, makes of the adapter."""

    def run(alignment: dict[str, Any], **settings: Any) -> dict[str, torch.Tensor]:
        trainer = make_trainer(method=alignment["name"], alignment=alignment, **settings)
        trainer.train()
        return adapter(trainer)

    return run


def test_no_alignment_is_left_out() -> None:
    elsewhere = {"erm", "erm_pooled", "iga"}
    assert {method["name"] for method in METHODS} == ALIGNMENTS.keys() - elsewhere


@pytest.mark.parametrize("alignment", NEUTRAL, ids=name_of)
def test_the_neutral_setting_is_erm(train: Callable[..., Any], alignment: dict[str, Any]) -> None:
    expected = train({"name": "erm"}, weight_decay=0.1)
    found = train(alignment, weight_decay=0.1)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


@every
def test_the_default_trains_and_is_not_erm(
    make_trainer: MakeTrainer, adapter: Adapter, train: Callable[..., Any], alignment: dict[str, Any]
) -> None:
    start, erm, found = adapter(make_trainer()), train({"name": "erm"}), train(alignment)
    assert all(torch.isfinite(value).all() for value in found.values())
    assert sum(float((found[name] - start[name]).norm()) for name in start) > 0.1
    if alignment["name"] != "upgrad":  # which is ERM where no pair of domains conflicts, as here
        assert any(not torch.allclose(found[name], erm[name], rtol=1e-3, atol=1e-6) for name in erm)


@every
def test_accumulation_never_changes_the_steps(train: Callable[..., Any], alignment: dict[str, Any]) -> None:
    # Plain SGD: Adam, which Fish has inside, would blow the rounding of entries near zero up to whole steps.
    common = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.001 if alignment["name"] == "fish" else 0.5}
    whole = train(alignment, sets_per_batch=8, **common)
    for steps in (2, 8):
        split = train(alignment, sets_per_batch=8 // steps, gradient_accumulation_steps=steps, **common)
        for name, value in whole.items():
            torch.testing.assert_close(split[name], value, rtol=1e-3, atol=1e-5)


@every
@pytest.mark.parametrize("gradients", ["segment", "domain_major"])
def test_a_step_may_lack_a_domain(train: Callable[..., Any], alignment: dict[str, Any], gradients: str) -> None:
    rows = [row for row in make_rows(6) if row.set_id in ("set-0", "set-3") or row.domain != "law"]
    found = train(alignment, rows=rows, missing_domain="subset", sets_per_batch=1, max_steps=6, gradients=gradients)
    assert all(torch.isfinite(value).all() for value in found.values())


@every
def test_resume_is_bit_exact(
    make_trainer: MakeTrainer, adapter: Adapter, alignment: dict[str, Any], tmp_path: Path
) -> None:
    common = {"method": alignment["name"], "alignment": alignment, "max_steps": 6, "save_steps": 3}
    whole = make_trainer(**common, output_dir=str(tmp_path / "whole"))
    whole.train()
    first = make_trainer(**common)
    first.add_callback(StopAt(3))
    first.train()
    second = make_trainer(**common)
    second.train(resume_from_checkpoint=True)
    expected, found = adapter(whole), adapter(second)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
