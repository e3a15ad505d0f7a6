"""The random search of a comparison: every draw of a method's hyperparameters, from its number alone.

Draw 0 is the recipe's own settings. Draw d > 0 takes the learning rate from ``LEARNING_RATE`` and the options of the
method's alignment and term from the tables ``SEARCH`` of their rooms; each value depends only on its name and d, so
that all methods try the same learning rates and a method with more hyperparameters gets no more draws than ERM.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np

from isodistill.alignment import SEARCH
from isodistill.recipe import Recipe
from isodistill.terms import SEARCH as TERM_SEARCH
from isodistill.training import DistillConfig
from isodistill.training.slots import fill_slots

__all__ = ["CONTROLS", "LEARNING_RATE", "draw", "drawn_options", "drawn_rate", "method_recipe", "searched"]

LEARNING_RATE = (10**-0.75, 10**0.75)
"""Log-uniform factor on the recipe's learning rate: DomainBed's 1.5 decades, around the rate that the recipe gives."""

CONTROLS = {"random_mask": "iga", "uniform_mask": "iga"}
"""Control -> the method whose idea it takes away."""


def searched(name: str) -> dict[str, Sequence[Any]]:
    """The values to search of the options of an alignment or a term; empty for ERM and for one that has none."""
    return dict((SEARCH | TERM_SEARCH).get(name, {}))


def method_recipe(recipe: Recipe, method: str) -> Recipe:
    """The recipe of one method: the slots of the recipe belong to the method that it names, and to its controls.

    Raises:
        UserError: the method is unknown.
    """
    own = recipe.method in (method, CONTROLS.get(method))
    options = recipe.alignment if own else None
    if options is not None and method in CONTROLS:
        options = options | {"control": method.removesuffix("_mask")}
    objective, term = (recipe.objective, recipe.term) if own else (None, None)
    one = replace(recipe, method=method, baseline=None, objective=objective, alignment=options, term=term)
    fill_slots(one.method, one.objective, one.alignment, one.term)
    return one


def draw(recipe: Recipe, number: int) -> Recipe:
    """The recipe of one method with the settings of draw ``number``; 0 leaves them as they are."""
    if number == 0:
        return replace(recipe, seed_hparam=0)
    slots = fill_slots(recipe.method, recipe.objective, recipe.alignment, recipe.term)[-1]
    drawn = {slot: options | drawn_options(options["name"], number) for slot, options in slots.items()}
    rate = drawn_rate(recipe.train.get("learning_rate", DistillConfig.learning_rate), number)
    train = recipe.train | {"learning_rate": rate}
    return replace(recipe, seed_hparam=number, train=train, alignment=drawn["alignment"], term=drawn.get("term"))


def drawn_options(name: str, number: int) -> dict[str, Any]:
    """What draw ``number`` > 0 gives the searched options of an alignment or a term."""
    return {
        option: values[int(_generator(option, number).integers(len(values)))]
        for option, values in searched(name).items()
    }


def drawn_rate(rate: float, number: int) -> float:
    """The learning rate of draw ``number`` > 0, around the ``rate`` of draw 0."""
    low, high = (math.log(factor) for factor in LEARNING_RATE)
    return float(f"{rate * math.exp(_generator('learning_rate', number).uniform(low, high)):.4g}")


def _generator(name: str, number: int) -> np.random.Generator:
    """The random state of one hyperparameter in one draw, whatever else is searched."""
    return np.random.default_rng(int.from_bytes(sha256(f"{name} {number}".encode()).digest()[:8], "big"))
