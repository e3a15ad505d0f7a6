"""The random search: draw 0 is the recipe, a draw depends on its number alone, and no method gets more of them."""

from __future__ import annotations

import pytest

from isodistill.errors import UserError
from isodistill.pipeline.search import CONTROLS, LEARNING_RATE, draw, method_recipe, searched

from .conftest import recipe_of

METHODS = ("erm", "erm_pooled", "iga", *CONTROLS)


def test_draw_0_is_the_recipe() -> None:
    for method in METHODS:
        one = method_recipe(recipe_of(), method)
        assert draw(one, 0).train == one.train
        assert draw(one, 0).alignment == one.alignment
        assert draw(one, 0).seed_hparam == 0


def test_all_methods_try_the_same_learning_rates_within_the_range() -> None:
    rates = {
        method: [draw(method_recipe(recipe_of(), method), d).train["learning_rate"] for d in range(1, 21)]
        for method in METHODS
    }
    assert len({tuple(values) for values in rates.values()}) == 1
    low, high = (factor * 0.01 for factor in LEARNING_RATE)
    assert all(low <= rate <= high for rate in rates["erm"])
    assert len(set(rates["erm"])) == 20
    assert min(rates["erm"]) < 0.005 < 0.02 < max(rates["erm"])


def test_erm_searches_the_learning_rate_only_and_iga_its_strength_too() -> None:
    assert searched("erm") == {}
    drawn = draw(method_recipe(recipe_of(), "erm"), 3)
    assert drawn.alignment == {"name": "erm"}
    taus = [(draw(method_recipe(recipe_of(), "iga"), d).alignment or {})["tau"] for d in range(1, 21)]
    assert set(taus) <= set(searched("iga")["tau"])
    assert len(set(taus)) > 2


def test_a_draw_is_the_same_whenever_it_is_made() -> None:
    one = method_recipe(recipe_of(), "iga")
    assert draw(one, 7) == draw(one, 7) != draw(one, 8)


def test_the_slots_of_the_recipe_are_those_of_its_method_and_its_controls() -> None:
    recipe = recipe_of(["alignment={name: iga, tau: 1.5}"], method="iga")
    assert method_recipe(recipe, "iga").alignment == {"name": "iga", "tau": 1.5}
    assert method_recipe(recipe, "random_mask").alignment == {"name": "iga", "tau": 1.5, "control": "random"}
    assert method_recipe(recipe, "uniform_mask").alignment == {"name": "iga", "tau": 1.5, "control": "uniform"}
    assert method_recipe(recipe, "erm").alignment is None
    assert (draw(method_recipe(recipe, "random_mask"), 2).alignment or {})["control"] == "random"
    assert (draw(method_recipe(recipe_of(), "uniform_mask"), 2).alignment or {})["control"] == "uniform"


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(UserError, match=r"Unknown method 'igaa'. Did you mean 'iga'"):
        method_recipe(recipe_of(), "igaa")


def test_the_options_of_a_term_are_searched_with_those_of_the_alignment() -> None:
    one = method_recipe(recipe_of(), "iga_consistency")
    assert draw(one, 0).term == one.term
    drawn = [draw(one, d) for d in range(1, 21)]
    values = searched("isomer_consistency")
    assert {(each.term or {})["answers"] for each in drawn} <= set(values["answers"])
    assert len({(each.term or {})["states"] for each in drawn}) > 2
    taus = [(draw(method_recipe(recipe_of(), "iga"), d).alignment or {})["tau"] for d in range(1, 21)]
    assert [(each.alignment or {})["tau"] for each in drawn] == taus
    assert all(draw(method_recipe(recipe_of(), "iga"), d).term is None for d in range(3))


def test_a_term_of_the_recipe_is_that_of_its_method_alone() -> None:
    recipe = recipe_of(["term={name: isomer_consistency, states: 0.7}"], method="iga")
    assert method_recipe(recipe, "iga").term == {"name": "isomer_consistency", "states": 0.7}
    assert method_recipe(recipe, "erm").term is None
