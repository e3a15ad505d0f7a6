"""Label and rationale: each mean over its own tokens, at every split; alpha = 1 is fine-tuning on the answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from isodistill.data.rows import Row
from isodistill.objectives import LabelMultitask

from .conftest import alike, gradient


def test_a_row_becomes_two_and_a_bare_answer_one() -> None:
    objective = LabelMultitask()
    full = Row(id="a", prompt="6 x 4?", completion="6 x 4 = 24. The answer is 24.", answer="24", answer_type="number")
    bare = replace(full, id="b", completion="The answer is 24.")
    chat = replace(full, id="c", prompt=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}))
    found = {row.id: (row.prompt, row.completion) for row in objective.expand([full, bare, chat])}
    assert list(found) == ["a/label", "a/rationale", "b/label", "c/label", "c/rationale"]
    assert found["a/label"] == ("predict: 6 x 4?", "The answer is 24.")
    assert found["a/rationale"] == ("explain: 6 x 4?", "6 x 4 = 24.")
    assert found["c/rationale"][0][-1] == {"role": "user", "content": "explain: ?"}
    assert objective.asked(full).prompt == "predict: 6 x 4?"


@pytest.mark.parametrize("alpha", [0.5, 0.2, 1.0, 0.0])
@pytest.mark.parametrize("method", ["erm_pooled", "erm"])
def test_the_loss_is_the_mean_of_two_means(make_trainer: Any, alpha: float, method: str) -> None:
    slot = {"name": "label_multitask", "alpha": alpha}
    common = {"method": method, "objective": slot, "max_steps": 1, "max_grad_norm": 1e9}
    trainer = make_trainer(sets_per_batch=16, **common)
    found = gradient(trainer)
    trainer = make_trainer(sets_per_batch=16, **common)
    sums: dict[tuple[str, str], list[torch.Tensor]] = {}
    for row in trainer.train_dataset:
        logits = trainer.model(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        losses = F.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="none", ignore_index=-100)
        domain = row.domain if method == "erm" else "all"
        key = (row.row_id.rpartition("/")[2], domain)
        sums.setdefault(key, []).append(losses[torch.tensor(row.labels[1:]) != -100])
    domains = {domain for _, domain in sums}
    total = sum(
        (alpha if task == "label" else 1 - alpha) * torch.cat(parts).mean() / len(domains)
        for (task, _), parts in sums.items()
    )
    total.backward()
    for name, p in trainer.model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-3, atol=1e-5)


def test_the_split_into_micro_batches_changes_nothing(make_trainer: Any) -> None:
    common = {"method": "label_multitask", "max_steps": 1, "max_grad_norm": 1e9}
    whole = gradient(make_trainer(sets_per_batch=16, **common))
    for n in (2, 8):
        split = gradient(make_trainer(sets_per_batch=16 // n, gradient_accumulation_steps=n, **common))
        alike(split, whole)
