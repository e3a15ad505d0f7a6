"""One optimizer step against plain autograd, and everything that must not change it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from isodistill import DistillTrainer
from isodistill.data.rows import Row

MakeTrainer = Callable[..., DistillTrainer]


def one_gradient(trainer: DistillTrainer) -> dict[str, torch.Tensor]:
    """The gradient that the optimizer sees in the first step (no clipping)."""
    seen: dict[str, torch.Tensor] = {}

    def grab(optimizer: Any, args: Any, kwargs: Any) -> None:
        if not seen:
            for name, p in trainer.model.named_parameters():
                if p.requires_grad:
                    seen[name] = p.grad.detach().clone()

    trainer.create_optimizer().register_step_pre_hook(grab)
    trainer.train()
    return seen


def domain_losses(trainer: DistillTrainer, rows: list[Row]) -> dict[str, torch.Tensor]:
    """Mean token loss of each domain, by the model's own forward, row by row: the oracle."""
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    encoded = {e.row_id: e for e in trainer.train_dataset}
    for row in rows:
        e = encoded[row.id]
        logits = trainer.model(input_ids=torch.tensor([e.input_ids])).logits[0]
        for t in range(1, len(e.input_ids)):
            if e.labels[t] != -100:
                loss = F.cross_entropy(logits[t - 1].double(), torch.tensor(e.labels[t])) * e.weight
                sums[row.domain] = sums.get(row.domain, 0) + loss
                counts[row.domain] = counts.get(row.domain, 0) + 1
    return {domain: sums[domain] / counts[domain] for domain in sums}


def oracle_gradient(trainer: DistillTrainer, rows: list[Row], pooled: bool = False) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    if pooled:
        encoded = {e.row_id: e for e in trainer.train_dataset}
        n = {
            d: sum(sum(x != -100 for x in encoded[r.id].labels) for r in rows if r.domain == d) for d in trainer.domains
        }
        losses = domain_losses(trainer, rows)
        sum(losses[d] * n[d] for d in losses).div(sum(n.values())).backward()
    else:
        losses = domain_losses(trainer, rows)
        torch.stack(list(losses.values())).mean().backward()
    grads = {n: p.grad.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.model.zero_grad()
    return grads


@pytest.mark.parametrize("method", ["erm", "erm_pooled", "iga"])
@pytest.mark.parametrize("gradients", ["segment", "domain_major"])
def test_first_gradient_is_that_of_plain_autograd(
    make_trainer: MakeTrainer, rows: list[Row], method: str, gradients: str
) -> None:
    # In update mode IGA leaves the gradient of ERM to the optimizer.
    settings = {"method": method, "gradients": gradients, "sets_per_batch": 8, "max_grad_norm": 1e9, "max_steps": 1}
    expected = oracle_gradient(make_trainer(**settings), rows, pooled=method == "erm_pooled")
    found = one_gradient(make_trainer(**settings))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.float(), rtol=2e-4, atol=2e-6)


def test_erm_and_pooled_erm_differ_when_lengths_do(make_trainer: MakeTrainer) -> None:
    settings = {"sets_per_batch": 8, "max_steps": 1}
    first, second = (one_gradient(make_trainer(method=m, **settings)) for m in ("erm", "erm_pooled"))
    assert any(not torch.allclose(first[n], second[n], rtol=1e-2) for n in first)


@pytest.mark.parametrize("method", ["erm", "erm_pooled", "iga"])
def test_accumulation_never_changes_the_gradient(make_trainer: MakeTrainer, method: str) -> None:
    whole = one_gradient(make_trainer(method=method, sets_per_batch=8, max_steps=1, max_grad_norm=1e9))
    for steps in (2, 4, 8):
        split = one_gradient(
            make_trainer(
                method=method, sets_per_batch=8 // steps, gradient_accumulation_steps=steps, max_steps=1,
                max_grad_norm=1e9,
            )
        )  # fmt: skip
        for name, value in whole.items():
            torch.testing.assert_close(split[name], value, rtol=1e-4, atol=1e-6, msg=f"{steps} micro-batches, {name}")


def test_accumulated_iga_steps_equal_whole_ones(make_trainer: MakeTrainer, adapter: Callable[..., Any]) -> None:
    trained = []
    for steps in (1, 4):
        trainer = make_trainer(method="iga", sets_per_batch=8 // steps, gradient_accumulation_steps=steps, max_steps=3)
        trainer.train()
        trained.append(adapter(trainer))
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-3, atol=1e-4)


def test_garbage_in_masked_positions_changes_nothing(make_trainer: MakeTrainer) -> None:
    clean = make_trainer(sets_per_batch=8, max_steps=1)
    soiled = make_trainer(sets_per_batch=8, max_steps=1)
    collate = soiled.data_collator

    def garbage(rows: Any) -> dict[str, torch.Tensor]:
        batch = collate(rows)
        padding = batch["attention_mask"] == 0
        batch["input_ids"][padding] = torch.randint(5, 300, (int(padding.sum()),))
        return batch

    soiled.data_collator = garbage
    first, second = one_gradient(clean), one_gradient(soiled)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_prompt_tokens_carry_no_loss(make_trainer: MakeTrainer, rows: list[Row]) -> None:
    """Only the completion is predicted: the oracle sums over it alone, and a longer prompt does not count."""
    trainer = make_trainer(sets_per_batch=8, max_steps=1)
    counts = trainer._get_num_items_in_batch([trainer.data_collator(trainer.train_dataset)], torch.device("cpu"))
    expected = [
        sum(sum(x != -100 for x in e.labels) for e in trainer.train_dataset if e.domain == d) for d in trainer.domains
    ]
    assert counts.tolist() == expected


def test_row_weights_scale_their_own_rows(make_trainer: MakeTrainer, rows: list[Row]) -> None:
    weighted = [replace(row, weight=0.0) if row.set_id == "set-0" else row for row in rows]
    settings = {"sets_per_batch": 8, "max_steps": 1, "max_grad_norm": 1e9}
    expected = oracle_gradient(make_trainer(weighted, **settings), weighted)
    found = one_gradient(make_trainer(weighted, **settings))
    plain = one_gradient(make_trainer(**settings))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.float(), rtol=2e-4, atol=2e-6)
    assert any(not torch.allclose(found[name], plain[name]) for name in plain)


def test_a_domain_missing_from_a_step_is_left_out_of_the_mean(make_trainer: MakeTrainer, rows: list[Row]) -> None:
    kept = [row for row in rows if row.set_id in ("set-0", "set-1") and row.domain != "law"]
    kept += [row for row in rows if row.set_id == "set-2"]
    for method in ("erm", "iga"):
        settings = {"method": method, "missing_domain": "subset", "sets_per_batch": 1, "max_steps": 3}
        trainer = make_trainer(kept, **settings)
        trainer.train()
        losses = [line["loss/law"] for line in trainer.state.log_history if "loss/law" in line]
        assert losses.count(0.0) == 2
        assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@pytest.mark.parametrize("method", ["erm", "iga"])
def test_fused_layers_and_plain_ones_train_alike(
    make_trainer: MakeTrainer,
    adapter: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    method: str,
) -> None:
    trained = []
    for obstacle in (None, "this test wants the plain layers"):
        monkeypatch.setattr("isodistill.training.forward.why_not_fused", lambda model, obstacle=obstacle: obstacle)
        trainer = make_trainer(method=method, max_steps=3)
        trainer.train()
        trained.append(adapter(trainer))
        assert ("this test wants the plain layers" in capsys.readouterr().out) == (obstacle is not None)
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-3, atol=1e-4)
    assert not hasattr(trainer, "student")  # the packed weights are let go
