"""Isomer sets, selection splits and the term in the laboratory."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from isodistill.alignment import ERM, Alignment, PCGrad
from isodistill.errors import UserError
from isodistill.lab.evaluate import evaluate
from isodistill.lab.settings import TaskOptions
from isodistill.lab.task import Task
from isodistill.lab.train import backward
from isodistill.models.lora import DomainGradients
from isodistill.terms import IsomerConsistency

from .test_training import PROMPT, TRACE, made, small

K = 3
TERM = {"name": "isomer_consistency", "answers": 2.0, "states": 0.5}


def problems_of(told: torch.Tensor) -> torch.Tensor:
    """(K, rows, 3) digits c, a, b."""
    return told[..., [3, 5, 6]]


def test_sets_are_the_same_problems_on_every_surface_with_words_of_their_own() -> None:
    generator = torch.Generator().manual_seed(1)
    told = Task(TaskOptions(domains=K, sets=True), 0).training_batch(50, generator)
    assert (problems_of(told) == problems_of(told)[:1]).all()
    assert len({tuple(p) for p in problems_of(told)[0].tolist()}) > 30
    assert (told[0, :, 0] != told[1, :, 0]).all()
    alone = Task(TaskOptions(domains=K), 0).training_batch(50, generator)
    assert (problems_of(alone)[0] != problems_of(alone)[1]).any()


def test_problems_to_select_by_are_neither_trained_nor_tested() -> None:
    plain, kept = (Task(TaskOptions(valid_problems=n), 0) for n in (0, 100))
    assert torch.equal(plain.test_problems, kept.test_problems)
    sets = [{tuple(p) for p in getattr(kept, f"{name}_problems").tolist()} for name in ("train", "valid", "test")]
    assert [len(s) for s in sets] == [700, 100, 200]
    assert not any(a & b for a, b in combinations(sets, 2))
    assert len(plain.valid_problems) == 0


def test_a_surface_that_is_left_out_is_never_trained() -> None:
    task = Task(TaskOptions(domains=K, without=1), 0)
    told = task.training_batch(400, torch.Generator().manual_seed(1))
    assert told.shape[0] == K - 1
    surfaces = (told[..., 0] - told[..., 0].min()) // 40
    assert surfaces[0].unique().tolist() == [0]
    assert surfaces[1].unique().tolist() == [2]


@pytest.mark.parametrize("without", [-1, 1])
def test_the_split_to_select_by_is_of_the_trained_surfaces_or_of_the_one_left_out(
    without: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(TaskOptions(domains=K, valid_problems=60, without=without), 0)
    monkeypatch.setattr("isodistill.lab.evaluate._scores", lambda model, task, told: told)
    told: dict[str, Any] = evaluate(made()[0], task, torch.Generator().manual_seed(0))
    surfaces = {split: ((rows[..., 0] - 21) // 40).unique().tolist() for split, rows in told.items()}
    trained = [0, 1, 2] if without < 0 else [0, 2]
    assert surfaces == {
        "id": trained, "cue_random": trained, "ood": [3, 4, 5], "valid": trained if without < 0 else [1],
    }  # fmt: skip
    for split, rows in told.items():
        problems = {tuple(p) for p in problems_of(rows).flatten(0, 1).tolist()}
        kept = task.valid_problems if split == "valid" else task.test_problems
        assert problems == {(c, a, b) for a, b, _, c in kept.tolist()}
        if split in ("valid", "id"):  # the cue as in training
            cues = {(k, answer): cue for k, row in enumerate(rows) for cue, answer in row[:, [1, -1]].tolist()}
            assert all(cue == cues[k, answer] for k, row in enumerate(rows) for cue, answer in row[:, [1, -1]].tolist())


def test_without_them_a_run_is_what_it_was() -> None:
    record = small("erm", overrides=["task.valid_problems=0"])
    again = small("erm")
    assert record["splits"] == again["splits"]
    assert list(record["splits"]) == ["id", "cue_random", "ood"]


@pytest.mark.parametrize("alignment", [ERM(), PCGrad()], ids=["summed", "by domain"])
def test_the_term_reaches_all_weights_as_autograd_says(alignment: Alignment) -> None:
    """The mean of the domains' gradients is that of Omega, by entropies and pairs over the sets."""
    model, _ = made()
    tokens = Task(TaskOptions(domains=K, sets=True), 0).training_batch(4, torch.Generator().manual_seed(2))
    rows = K if alignment.needs_domain_gradients else 1
    gradients = DomainGradients.allocate(model, rows)
    gradients.losses = torch.zeros(K, dtype=torch.float64)
    options = {name: value for name, value in TERM.items() if name != "name"}
    backward(model, gradients, tokens, TRACE, alignment, IsomerConsistency(**options))  # type: ignore[arg-type]

    leaves = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    views = {name: leaf[None] for name, leaf in leaves.items()}
    logits, states = model(views, tokens.flatten(0, 1)[None, :, :-1], last=TRACE)
    L = F.cross_entropy(logits.flatten(0, -2), tokens[..., -TRACE:].flatten())
    logits, states = logits.view(K, 4, TRACE, -1), states.view(K, 4, TRACE, -1)

    def entropy(p: torch.Tensor) -> torch.Tensor:
        return -torch.special.xlogy(p, p).sum(-1)

    p = logits[:, :, -1].softmax(-1)
    JS = (entropy(p.mean(0)) - entropy(p).mean(0)).mean()
    z = states[:, :, 0]  # the state at the last prompt token
    pairs = [1 - torch.cosine_similarity(z[i], z[j], dim=-1) for i, j in combinations(range(K), 2)]
    total = L + 2.0 * JS + 0.5 * torch.stack(pairs).mean()
    for name, expected in zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True):
        found = gradients.views[name].mean(0).double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert tokens.shape[-1] == PROMPT + TRACE
    assert gradients.losses.mean().item() == pytest.approx(total.item(), rel=1e-5)


@pytest.mark.parametrize("method", ["erm", "iga", "irm"])
def test_weight_zero_is_no_term_and_more_is_something_else(method: str) -> None:
    def run(**term: Any) -> dict[str, Any]:
        overrides = ["task.sets=true"]
        if term:
            overrides += ["term.name=isomer_consistency", *(f"term.{name}={value}" for name, value in term.items())]
        return small(method, overrides=overrides)

    plain, neutral, strong = run(), run(answers=0.0, states=0.0), run(answers=1.0, states=10.0)
    assert neutral["splits"] == plain["splits"]
    assert neutral["training"] == plain["training"]
    assert strong["training"]["loss"] != pytest.approx(plain["training"]["loss"], rel=1e-4)
    assert strong["term"] == {"name": "isomer_consistency", "answers": 1.0, "states": 10.0}


def test_what_cannot_be_had_is_refused() -> None:
    with pytest.raises(UserError, match=r"set task\.sets to true"):
        small("isomer_consistency")
    with pytest.raises(UserError, match="one domain alone"):
        small("fish", overrides=["task.sets=true", "term.name=isomer_consistency"])
    with pytest.raises(UserError, match=r"task\.without is 3; it is a surface, 0 to 2"):
        small("erm", overrides=["task.without=3"])
    with pytest.raises(UserError, match=r"task\.valid_problems is -1"):
        small("erm", overrides=["task.valid_problems=-1"])
