"""The term against entropies and pair loops, in values and in gradients."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isodistill.terms import IsomerConsistency, SetMembers


def entropy(p: Tensor) -> Tensor:
    return -torch.special.xlogy(p, p).sum()


def js_of(logits: list[Tensor]) -> Tensor:
    """JS of members (J, V) each, as entropy of the mixture less the mean entropy, the mean over the J places."""
    places = []
    for j in range(len(logits[0])):
        p = [torch.softmax(member[j], 0) for member in logits]
        places.append(entropy(torch.stack(p).mean(0)) - torch.stack([entropy(q) for q in p]).mean())
    return torch.stack(places).mean()


def lcs_of(states: list[Tensor]) -> Tensor:
    pairs = [1 - torch.cosine_similarity(a, b, dim=0) for a, b in combinations(states, 2)]
    return torch.stack(pairs).mean()


def draw(n_sets: int, members: int, places: int, seed: int = 0, scale: float = 1.0) -> dict[str, Any]:
    """Sets whose members stand domain by domain, as in a batch; states and logits are leaves."""
    generator = torch.Generator().manual_seed(seed)
    R = n_sets * members
    rows = torch.arange(R).repeat_interleave(places)
    sets = torch.arange(n_sets).repeat(members)
    states = torch.randn(R, 5, generator=generator, dtype=torch.float64)
    logits = scale * torch.randn(R * places, 7, generator=generator, dtype=torch.float64)
    return {
        "states": states.requires_grad_(),
        "sets": sets,
        "domains": torch.arange(members).repeat_interleave(n_sets),
        "logits": logits.requires_grad_(),
        "answers": (10 * sets).repeat_interleave(places) + torch.arange(places).repeat(R),
        "rows": rows,
    }


def of_set(given_: dict[str, Any], number: int, places: int) -> tuple[list[Tensor], list[Tensor]]:
    """States (d,) and logits (J, V) of the members of one set."""
    chosen = [r for r, s in enumerate(given_["sets"].tolist()) if s == number]
    logits = given_["logits"].view(len(given_["sets"]), places, -1)
    return [given_["states"][r] for r in chosen], [logits[r] for r in chosen]


@settings(deadline=None)
@given(
    n_sets=st.integers(1, 3), members=st.integers(2, 4), places=st.integers(1, 3), seed=st.integers(0, 99),
    answers=st.floats(0, 3), states=st.floats(0, 3),
)  # fmt: skip
def test_value_and_gradient_are_those_of_js_and_lcs(
    n_sets: int, members: int, places: int, seed: int, answers: float, states: float
) -> None:
    """The parts hold mixture and centre fixed; their mean has the gradient of Omega all the same."""
    drawn = draw(n_sets, members, places, seed, scale=3.0)
    found = IsomerConsistency(answers=answers, states=states).parts(SetMembers(**drawn)).mean()
    sets = [of_set(drawn, number, places) for number in range(n_sets)]
    expected = torch.stack([answers * js_of(logits) + states * lcs_of(z) for z, logits in sets]).mean()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    leaves = [drawn["states"], drawn["logits"]]
    wanted = torch.autograd.grad(expected, leaves, allow_unused=True, materialize_grads=True)
    if found.requires_grad:
        for gradient, right in zip(
            torch.autograd.grad(found, leaves, allow_unused=True, materialize_grads=True), wanted, strict=True
        ):
            torch.testing.assert_close(gradient, right, rtol=1e-9, atol=1e-11)


def test_equal_members_cost_nothing_and_disjoint_ones_the_logarithm_of_their_number() -> None:
    drawn = draw(1, 3, 1)
    with torch.no_grad():
        drawn["states"][:] = drawn["states"][0].clone()
        drawn["logits"][:] = drawn["logits"][0].clone()
    term = IsomerConsistency(answers=1.0, states=1.0)
    assert term.parts(SetMembers(**drawn)).abs().max() < 1e-12
    with torch.no_grad():
        drawn["logits"][:] = 1e4 * torch.eye(3, 7, dtype=torch.float64)
    parts = IsomerConsistency(answers=1.0, states=0.0).parts(SetMembers(**drawn))
    torch.testing.assert_close(parts.detach(), torch.full((3,), math.log(3), dtype=torch.float64))


@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e3, 1e4])
def test_gradients_stay_finite_in_half_precision_and_at_any_scale(scale: float) -> None:
    drawn = draw(2, 3, 2, scale=scale)
    for name in ("states", "logits"):
        drawn[name] = drawn[name].detach().bfloat16().requires_grad_()
    parts = IsomerConsistency().parts(SetMembers(**drawn))
    assert parts.dtype == torch.float32
    for gradient in torch.autograd.grad(parts.sum(), [drawn["states"], drawn["logits"]]):
        assert torch.isfinite(gradient).all()


def test_the_order_of_members_and_sets_changes_nothing() -> None:
    drawn = draw(3, 3, 2)
    term = IsomerConsistency()
    parts = term.parts(SetMembers(**drawn))
    order = torch.randperm(9, generator=torch.Generator().manual_seed(4))
    tokens = (order[:, None] * 2 + torch.arange(2)).flatten()
    moved = drawn | {
        "states": drawn["states"][order], "sets": 2 - drawn["sets"][order], "domains": drawn["domains"][order],
        "logits": drawn["logits"][tokens], "answers": drawn["answers"][tokens],
    }  # fmt: skip
    torch.testing.assert_close(term.parts(SetMembers(**moved)), parts[order])


def test_answers_in_other_words_are_not_compared_but_states_are() -> None:
    drawn = draw(2, 3, 2)
    drawn["answers"][0] = 99  # the first member of set 0
    parts = IsomerConsistency(answers=1.0, states=0.0).parts(SetMembers(**drawn))
    in_first = drawn["sets"] == 0
    assert (parts[in_first] == 0).all()
    assert (parts[~in_first] > 0).all()
    assert (IsomerConsistency(answers=1.0, states=1.0).parts(SetMembers(**drawn))[in_first] > 0).all()
    # One more token in the answer of one member: no place has all members.
    longer = draw(1, 2, 2)
    longer["rows"], longer["answers"] = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 2, 0])
    assert (IsomerConsistency(answers=1.0, states=0.0).parts(SetMembers(**longer)) == 0).all()


def test_a_member_alone_and_one_without_an_answer_have_nothing_to_agree_with() -> None:
    drawn = draw(2, 1, 1)
    parts = IsomerConsistency(answers=1.0, states=1.0).parts(SetMembers(**drawn))
    assert parts.abs().max() < 1e-12
    for gradient in torch.autograd.grad(parts.sum(), [drawn["states"], drawn["logits"]]):
        assert gradient.abs().max() < 1e-12
    none = draw(1, 2, 1) | {"logits": torch.zeros(0, 7), "answers": torch.zeros(0, dtype=torch.long)}
    none["rows"] = none["answers"]
    torch.testing.assert_close(
        IsomerConsistency(answers=1.0, states=1.0).parts(SetMembers(**none)).mean(), lcs_of(list(none["states"]))
    )


def test_the_control_compares_one_member_of_every_domain_from_different_sets() -> None:
    drawn = draw(3, 3, 1)
    found = IsomerConsistency(control="shuffled").parts(SetMembers(**drawn))
    # Row of set s in domain k goes into group s + k mod 3, whatever its answer is.
    other = drawn | {"sets": (drawn["sets"] + drawn["domains"]) % 3, "answers": torch.zeros_like(drawn["answers"])}
    torch.testing.assert_close(found, IsomerConsistency().parts(SetMembers(**other)))
    assert not torch.allclose(found, IsomerConsistency().parts(SetMembers(**drawn)))


def test_what_was_measured_is_told_once() -> None:
    drawn = draw(2, 3, 1)
    term = IsomerConsistency(answers=0.5, states=2.0)
    term.parts(SetMembers(**drawn))
    term.parts(SetMembers(**drawn))
    told = term.take_metrics()
    sets = [of_set(drawn, number, 1) for number in range(2)]
    assert told["consistency_js"] == pytest.approx(sum(js_of(logits).item() for _, logits in sets) / 2)
    assert told["consistency_lcs"] == pytest.approx(sum(lcs_of(z).item() for z, _ in sets) / 2)
    assert term.take_metrics() == {}


@pytest.mark.parametrize(
    "options", [{"answers": -1.0}, {"answers": math.nan}, {"states": -0.1}, {"control": "none at all"}]
)
def test_options_out_of_range_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"term\.{next(iter(options))} is"):
        IsomerConsistency(**options)
