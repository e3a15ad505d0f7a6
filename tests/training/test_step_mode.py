"""VCRD in step mode through the trainer: deltas reach the gradient, whatever the split, the rank or an interruption."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from isodistill import DistillTrainer
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.validity import Action

from .conftest import alike, gradient

STEPS = {"n_prefix": 99, "max_tokens": 6}


class Says:
    """A scorer of fixed values for the reference and for everything else; NaN where told."""

    def __init__(self, reference: float, other: float) -> None:
        self.name, self.values = f"says {reference} {other}", (other, reference)

    def score(self, actions: Sequence[Action]) -> list[float]:
        return [self.values[a.step == a.reference] for a in actions]


class Length:
    """A scorer that tells steps apart by their text alone."""

    name = "length"

    def score(self, actions: Sequence[Action]) -> list[float]:
        return [(len(a.step) * 7 % 10) / 10 for a in actions]


@pytest.fixture
def stepwise(taught: Callable[..., DistillTrainer]) -> Callable[..., DistillTrainer]:
    def make(scorer: Any, steps: dict[str, Any] | None = None, **given: Any) -> DistillTrainer:
        slot = {"name": "vcrd", "lam_ce": 0.0, "lam_kd": 1.0, "steps": STEPS | (steps or {}), **given.pop("slot", {})}
        return taught(**{"method": "vcrd", "objective": slot, "sets_per_batch": 8, "scorer": scorer} | given)

    return make


def lines(trainer: DistillTrainer) -> list[dict[str, Any]]:
    file = Path(trainer.args.output_dir) / "validity" / "steps.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def metrics(trainer: DistillTrainer) -> dict[str, float]:
    file = Path(trainer.args.output_dir) / "metrics.jsonl"
    return json.loads(file.read_text().splitlines()[0])


def oracle(trainer: DistillTrainer, records: list[dict[str, Any]], w_of: Callable[[float], float]) -> None:
    """Leave in ``.grad`` that of the mean of w KL over all trained tokens, row by row, by whole forwards."""
    found = {record["row"]: record for record in records}
    total, n = torch.zeros(()), 0
    for row in trainer.train_dataset:
        ids, length = torch.tensor([row.input_ids]), sum(label != -100 for label in row.labels)
        p, q = (
            torch.log_softmax(model(input_ids=ids).logits[0, -length - 1 : -1].double(), 1)
            for model in (trainer.readers.teacher()[0], trainer.model)
        )
        record = found[row.row_id]
        borders = [*record["firsts"], length]
        w = [w_of(d) for d, a, b in zip(record["deltas"], borders[:-1], borders[1:], strict=True) for _ in range(b - a)]
        total = total + (torch.tensor(w) * (p.exp() * (p - q)).sum(1)).sum()
        n += length
    trainer.model.zero_grad()
    (total / n).backward()


@pytest.mark.parametrize("values", [(1.0, 0.0), (0.0, 1.0)])
def test_every_step_pulls_with_the_weight_of_its_delta(
    stepwise: Callable[..., DistillTrainer], values: tuple[float, float]
) -> None:
    weighted = stepwise(Says(*values))
    found = gradient(weighted)
    records = lines(weighted)
    deltas = [d for record in records for d in record["deltas"]]
    assert sum(d == values[0] - values[1] for d in deltas) > 0.8 * len(deltas)  # the rest proposed nothing
    assert set(deltas) <= {values[0] - values[1], 0.0}
    again = stepwise(Says(*values))
    oracle(again, records, lambda d: 2 / (1 + math.exp(-2 * d)))
    alike(found, {n: p.grad for n, p in again.model.named_parameters() if p.requires_grad})
    assert sum(len(r["drawn"]) for r in records) == sum(len(r["firsts"]) for r in records) > 24


@pytest.mark.parametrize("scorer", [Says(float("nan"), 0.5), Says(0.5, 2.0)])
def test_steps_without_a_score_weigh_one_and_are_counted(stepwise: Any, scorer: Says) -> None:
    failing = stepwise(scorer, {"max_failed": 1.0})
    found = gradient(failing)
    assert metrics(failing)["validity/failed"] > 20
    alike(found, gradient(stepwise(Says(0.5, 0.5))))
    with pytest.raises(UserError, match=r"failed at \d+ of \d+ steps"):
        stepwise(scorer).train()


def test_a_raising_scorer_loses_nothing(stepwise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = Length()
    monkeypatch.setattr(scorer, "score", lambda actions: 1 / 0, raising=False)
    raising = stepwise(scorer, {"max_failed": 1.0})
    alike(gradient(raising), gradient(stepwise(Says(0.5, 0.5))))


def test_a_hanging_scorer_loses_nothing(stepwise: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, score = Length(), Length().score
    hung: list[str] = []

    def hangs(actions: Sequence[Action]) -> list[float]:
        if any(a.row.id == "set-0/law" for a in actions):
            hung.extend(a.step for a in actions if len(actions) == 1)
            threading.Event().wait(60)
        return score(actions)

    monkeypatch.setattr(scorer, "score", hangs)
    trainer = stepwise(scorer, {"limit": 0.02})
    trainer.train()
    by_row = {line["row"]: line["deltas"] for line in lines(trainer)}
    assert hung
    assert set(by_row.pop("set-0/law")) == {0.0}
    stepwise(Length(), output_dir=trainer.args.output_dir + "-whole").train()
    whole = Path(trainer.args.output_dir + "-whole") / "validity" / "steps.jsonl"
    expected = {line["row"]: line["deltas"] for line in map(json.loads, whole.read_text().splitlines())}
    assert by_row == {row: deltas for row, deltas in expected.items() if row != "set-0/law"}
    assert metrics(trainer)["validity/failed"] == len(hung) / 2


def test_a_prefix_that_leaves_no_room_is_counted(stepwise: Any) -> None:
    trainer = stepwise(Length())
    lengths = sorted(len(row.input_ids) for row in trainer.train_dataset)
    trainer.model.config.max_position_embeddings = lengths[len(lengths) // 2]
    trainer.train()
    found = metrics(trainer)
    assert 0 < found["validity/no_room"] < found["validity/compared"]
    assert found["validity/failed"] == 0


@pytest.mark.parametrize(
    "slot", [{}, {"control": "permuted"}, {"w_norm": "mean"}, {"rho": 1.0, "sample_tokens": 8}], ids=str
)
def test_the_split_into_micro_batches_changes_nothing(stepwise: Any, slot: dict[str, Any]) -> None:
    whole = gradient(stepwise(Length(), slot=slot))
    for n in (2, 8):
        alike(gradient(stepwise(Length(), slot=slot, sets_per_batch=8 // n, gradient_accumulation_steps=n)), whole)
    alike(gradient(stepwise(Length(), slot=slot, gradients="domain_major")), whole)


def test_drawn_prefixes_hang_on_seed_and_row_alone(stepwise: Any) -> None:
    one, other = stepwise(Length(), {"n_prefix": 2}), stepwise(Length(), {"n_prefix": 2}, sets_per_batch=4)
    one.train()
    first = {line["row"]: line for line in lines(one)}
    other.train()
    second = {line["row"]: line for line in lines(other)}
    assert second
    assert all(first[row] == line for row, line in second.items())
    assert all(len(line["drawn"]) == min(2, len(line["firsts"])) for line in first.values())
    undrawn = [d for line in first.values() for j, d in enumerate(line["deltas"]) if j not in line["drawn"]]
    assert undrawn
    assert set(undrawn) == {0.0}


@pytest.mark.parametrize("slot", [{}, {"rho": 0.5, "sample_tokens": 8}, {"divergence_name": "ce"}], ids=str)
def test_interrupted_and_resumed_is_uninterrupted(
    stepwise: Any, adapter: Any, tmp_path: Path, slot: dict[str, Any]
) -> None:
    common = {"sets_per_batch": 2, "slot": slot, "save_steps": 3, "lr_scheduler_type": "constant", "max_steps": 6}
    if slot.get("divergence_name") == "ce":
        common["teacher_model"] = None
    whole = stepwise(Length(), {"every": 2}, output_dir=str(tmp_path / "whole"), **common)
    whole.train()
    parts = stepwise(Length(), {"every": 2}, output_dir=str(tmp_path / "parts"), **common | {"max_steps": 5})
    parts.train()
    again = stepwise(Length(), {"every": 2}, output_dir=str(tmp_path / "parts"), **common)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoints" / "checkpoint-3"))
    for name, value in adapter(whole).items():
        assert torch.equal(adapter(again)[name], value), name
    assert lines(again) == lines(whole)
    assert {line["made"] for line in lines(whole)} > {0, 2}
    for line in lines(whole):
        assert line["weights"] == pytest.approx([2 / (1 + math.exp(-2 * d)) for d in line["deltas"]], abs=1e-5)


def test_the_students_own_traces_are_compared_with_the_teacher(stepwise: Any) -> None:
    trainer = stepwise(Says(1.0, 0.25), slot={"rho": 1.0, "sample_tokens": 12})
    trainer.train()
    found = lines(trainer)
    assert all(line["own"] for line in found)
    measured = [line["deltas"][j] for line in found for j in line["drawn"]]
    assert set(measured) <= {0.75, 0.0}  # the teacher's step is the reference; 0 where both agree or one is empty
    assert 0.75 in measured


def test_under_iga_it_is_the_domain_loss(stepwise: Any) -> None:
    slots = {"method": "iga", "alignment": None}
    iga, erm = (gradient(stepwise(Length(), **slots | {"method": method})) for method in ("iga", "erm"))
    alike(iga, erm)  # in update mode IGA leaves the gradient of ERM to the optimizer


def test_a_trace_of_one_step_and_one_of_nothing_but_points(make_trainer: Any, stepwise: Any) -> None:
    texts = ["The answer is 4.", "...", ". . .", "4\n\n\n5"]
    rows = [Row(id=str(i), prompt="2 + 2?", completion=text) for i, text in enumerate(texts)]
    trainer = stepwise(Length(), rows=rows, sets_per_batch=4, method="vcrd")
    trainer.train()
    by_row = {line["row"]: line for line in lines(trainer)}
    assert [len(by_row[str(i)]["firsts"]) for i in range(4)] == [1, 1, 1 if len(by_row["2"]["firsts"]) == 1 else 3, 2]
    assert metrics(trainer)["validity/one_step"] >= 2


def test_what_is_missing_is_said_before_training(
    make_trainer: Any, stepwise: Any, tokenizer: PreTrainedTokenizerFast, tiny_model: LlamaForCausalLM
) -> None:
    with pytest.raises(UserError, match="how valid steps are"):
        make_trainer(method="vcrd", objective={"name": "vcrd", "divergence_name": "ce", "steps": {}})
    with pytest.raises(UserError, match=r"Unknown key n_prefi.*Did you mean n_prefix"):
        make_trainer(method="vcrd", objective={"name": "vcrd", "steps": {"n_prefi": 3}})
    with pytest.raises(UserError, match="leave teacher_model out"):
        stepwise(None, slot={"divergence_name": "ce", "steps": {"scorer": {"name": "rule"}}})
    # A teacher with another tokenizer may score through text, where its logits are not asked for.
    other = stepwise(None, slot={"divergence_name": "ce"}, teacher_processing_class=tokenizer)
    other.train()
    assert lines(other)
