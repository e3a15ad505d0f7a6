"""Isomer consistency in real trainings: against autograd over the model's own forward, set by set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from isodistill import DistillTrainer
from isodistill.data.rows import Row
from isodistill.errors import UserError

from .conftest import DOMAINS
from .test_resume import StopAt
from .test_training_step import domain_losses, one_gradient

MakeTrainer = Callable[..., DistillTrainer]
Adapter = Callable[[DistillTrainer], dict[str, Tensor]]
TERM = {"name": "isomer_consistency", "answers": 2.0, "states": 0.7}
ONE_STEP = {"max_steps": 1, "max_grad_norm": 1e9}


def isomers(n_sets: int = 8) -> list[Row]:
    """Sets with one answer each, of one or two digits, behind traces whose lengths differ by set and domain."""
    rows = []
    for s in range(n_sets):
        answer = str(3 * s + 4)
        for k, domain in enumerate(DOMAINS):
            steps = " ".join(f"{s} and {i} is {s + i}." for i in range(1 + (s + 2 * k) % 4))
            rows.append(
                Row(
                    id=f"set-{s}/{domain}",
                    prompt=f"In {domain}, {s + 2} clerks file {k + 3} briefs. How many?",
                    completion=f"{steps} The answer is {answer}.",
                    answer=answer,
                    answer_type="number",
                    set_id=f"set-{s}",
                    domain=domain,
                )
            )
    return rows


def read_member(trainer: DistillTrainer, row: Row) -> tuple[Tensor, list[Tensor]]:
    """State (d,) at the last token of the prompt, and distributions (V,) of the answer's tokens, by the whole model."""
    assert row.answer is not None
    encoded = {e.row_id: e for e in trainer.train_dataset}[row.id]
    out = trainer.model(input_ids=torch.tensor([encoded.input_ids]), output_hidden_states=True)
    question = sum(label == -100 for label in encoded.labels)
    ids, decode = encoded.input_ids, trainer.processing_class.decode
    start = max(t for t in range(question, len(ids)) if row.answer in decode(ids[t:]))
    stop = min(t for t in range(start, len(ids) + 1) if row.answer in decode(ids[start:t]))
    places = range(start, stop)
    return out.hidden_states[-1][0, question - 1].double(), [out.logits[0, t - 1].double().softmax(-1) for t in places]


def omega(trainer: DistillTrainer, rows: list[Row]) -> Tensor:
    """answers JS + states LCS, the mean over the sets: entropies and pairs."""

    def entropy(p: Tensor) -> Tensor:
        return -torch.special.xlogy(p, p).sum()

    values = []
    for name in sorted({str(row.set_id) for row in rows}):
        z, pi = zip(*[read_member(trainer, row) for row in rows if row.set_id == name], strict=True)
        JS = torch.stack(
            [
                entropy(torch.stack(p).mean(0)) - torch.stack([entropy(q) for q in p]).mean()
                for p in zip(*pi, strict=True)
            ]
        ).mean()
        LCS = torch.stack([1 - torch.cosine_similarity(a, b, dim=0) for a, b in combinations(z, 2)]).mean()
        values.append(TERM["answers"] * JS + TERM["states"] * LCS)  # type: ignore[operator]
    return torch.stack(values).mean()


def expected_gradient(trainer: DistillTrainer, rows: list[Row], *, term: bool = True) -> dict[str, Tensor]:
    trainer.model.zero_grad()
    loss = torch.stack(list(domain_losses(trainer, rows).values())).mean()
    (loss + omega(trainer, rows) if term else loss).backward()
    return {n: p.grad.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("method", ["erm", "iga", "coral"])  # IGA leaves ERM's gradient to the optimizer
def test_the_gradient_is_that_of_loss_and_term(make_trainer: MakeTrainer, method: str, steps: int) -> None:
    rows = isomers()
    common = {"method": method, "term": TERM, **ONE_STEP}
    if method == "coral":
        common["alignment"] = {"lam": 0.0}  # the penalty has tests of its own; this is its way through two passes
    oracle = make_trainer(rows, **common)
    expected, plain = expected_gradient(oracle, rows), expected_gradient(oracle, rows, term=False)
    found = one_gradient(make_trainer(rows, sets_per_batch=8 // steps, gradient_accumulation_steps=steps, **common))
    largest = max(float(value.abs().max()) for value in expected.values())
    assert any(not torch.allclose(expected[n], plain[n], rtol=1e-2, atol=1e-3 * largest) for n in plain)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.float(), rtol=1e-3, atol=1e-5 * largest)


def test_a_domains_loss_holds_the_part_of_its_members(make_trainer: MakeTrainer) -> None:
    """V-REx weighs the domains by their losses; with the term these are L_k and the mean part of the members."""
    rows, lam = isomers(4), 3.0
    common = {"method": "vrex", "alignment": {"name": "vrex", "lam": lam, "anneal": 0.0}, "term": TERM, **ONE_STEP}
    oracle = make_trainer(rows, **common)
    losses = domain_losses(oracle, rows)
    members = {row.id: read_member(oracle, row) for row in rows}
    for row in rows:
        z, pi = members[row.id]
        others = [members[other.id] for other in rows if other.set_id == row.set_id]
        centre = torch.stack([state / state.norm() for state, _ in others]).mean(0).detach()
        part = TERM["states"] * 1.5 * (z / z.norm() - centre).square().sum()  # type: ignore[operator]
        for j, p in enumerate(pi):
            mixture = torch.stack([theirs[j] for _, theirs in others]).mean(0).detach()
            part = part + TERM["answers"] / len(pi) * (p * (p / mixture).log()).sum()  # type: ignore[operator]
        assert row.domain is not None
        losses[row.domain] = losses[row.domain] + part / 4
    L = torch.stack(list(losses.values()))
    oracle.model.zero_grad()
    (L.mean() + lam * (L - L.mean()).square().mean()).backward()
    expected = {n: p.grad.detach().clone() for n, p in oracle.model.named_parameters() if p.requires_grad}
    found = one_gradient(make_trainer(rows, sets_per_batch=4, **common))
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.float(), rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("method", ["erm", "iga"])
def test_weight_zero_is_no_term_bit_for_bit(make_trainer: MakeTrainer, adapter: Adapter, method: str) -> None:
    trained = []
    for term in (None, {"name": "isomer_consistency", "answers": 0.0, "states": 0.0}, TERM):
        trainer = make_trainer(isomers(), method=method, term=term)
        trainer.train()
        trained.append(adapter(trainer))
    assert all(torch.equal(trained[1][name], trained[0][name]) for name in trained[0])
    assert any(not torch.allclose(trained[2][name], trained[0][name], rtol=1e-3) for name in trained[0])


def test_padding_never_reaches_the_term(make_trainer: MakeTrainer) -> None:
    gradients = []
    for garbage in (False, True):
        trainer = make_trainer(isomers(), term=TERM, sets_per_batch=8, **ONE_STEP)
        collate = trainer.data_collator

        def soiled(rows: Any, collate: Any = collate, garbage: bool = garbage) -> dict[str, Tensor]:
            batch = collate(rows)
            if garbage:
                padding = batch["attention_mask"] == 0
                batch["input_ids"][padding] = torch.randint(5, 300, (int(padding.sum()),))
            return batch

        trainer.data_collator = soiled
        gradients.append(one_gradient(trainer))
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_fused_layers_and_plain_ones_have_one_term(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for obstacle in (None, "this test wants the plain layers"):
        monkeypatch.setattr("isodistill.training.forward.why_not_fused", lambda model, obstacle=obstacle: obstacle)
        found.append(one_gradient(make_trainer(isomers(), method="iga", term=TERM, **ONE_STEP)))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-3, atol=1e-5)


def test_the_preset_trains_its_members_together_and_resumes(
    make_trainer: MakeTrainer, adapter: Adapter, tmp_path: Path
) -> None:
    common = {"method": "iga_consistency", "max_steps": 6, "save_steps": 3, "term": {"states": 1.0}}
    whole = make_trainer(isomers(), **common, output_dir=str(tmp_path / "whole"))
    whole.train()
    first = make_trainer(isomers(), **common)
    first.add_callback(StopAt(3))
    first.train()
    second = make_trainer(isomers(), **common)
    second.train(resume_from_checkpoint=True)
    assert all(torch.equal(adapter(second)[name], value) for name, value in adapter(whole).items())
    logged = [line for line in whole.state.log_history if "consistency_lcs" in line]
    assert len(logged) == 6
    assert logged[-1]["consistency_lcs"] < logged[0]["consistency_lcs"]
    assert {"consistency_js", "mask_density"} <= logged[0].keys()


def test_a_set_of_one_member_and_an_absent_domain_do_no_harm(make_trainer: MakeTrainer, adapter: Adapter) -> None:
    rows = [row for row in isomers(6) if row.set_id in ("set-0", "set-3") or row.domain == "law"]
    trainer = make_trainer(rows, missing_domain="subset", sets_per_batch=1, max_steps=6, term=TERM)
    trainer.train()
    assert all(torch.isfinite(value).all() for value in adapter(trainer).values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "fish"}, "the alignment of fish takes the gradient of one domain alone"),
        ({"method": "mldg"}, "leave the term out, or take another alignment"),
        ({"method": "iga", "alignment": {"debias": True}}, "set it to false beside a term"),
        ({"method": "iga", "gradients": "domain_major"}, "must be in one forward"),
        ({"term": TERM | {"control": "shuffled"}, "sets_per_batch": 1}, "set sets_per_batch to 2 or more"),
        ({"term": {"answers": 1.0}}, "erm has no term, so term needs a name"),
        ({"term": {"name": "isomer_consistancy"}}, "Did you mean 'isomer_consistency'"),
        ({"term": TERM | {"answer": 1.0}}, "Did you mean 'answers'"),
        ({"term": TERM | {"states": -1.0}}, "term.states is -1.0"),
    ],
)
def test_what_cannot_stand_together_is_refused(
    make_trainer: MakeTrainer, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_trainer(isomers(), **{"term": TERM} | settings)


def test_rows_that_make_no_whole_sets_are_refused(make_trainer: MakeTrainer) -> None:
    rows = isomers(4)
    with pytest.raises(UserError, match="1 of 12 training rows have no set_id"):
        make_trainer([replace(rows[0], set_id=None), *rows[1:]], term=TERM)
    with pytest.raises(UserError, match="no set has rows of two domains"):
        make_trainer([replace(row, set_id=row.id) for row in rows], term=TERM)
    unanswered = [replace(row, completion="I cannot say.") for row in rows]
    with pytest.raises(UserError, match=r"set term\.answers to 0"):
        make_trainer(unanswered, term=TERM)
    make_trainer(unanswered, term=TERM | {"answers": 0.0}, **ONE_STEP).train()
