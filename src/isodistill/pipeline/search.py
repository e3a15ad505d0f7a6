"""The random search of a comparison: every draw of a method's hyperparameters, from its number alone.

Draw 0 is the recipe's own settings. Draw d > 0 takes the learning rate from ``LEARNING_RATE`` and the options of the
method's alignment from ``isodistill.alignment.SEARCH``; each value depends only on its name and d, so that all methods
try the same learning rates and a method with more hyperparameters gets no more draws than ERM.
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
from isodistill.training import DistillConfig
from isodistill.training.slots import fill_slots, fill_terms

__all__ = ["CONTROLS", "LEARNING_RATE", "draw", "method_recipe", "searched"]

LEARNING_RATE = (10**-0.75, 10**0.75)
"""Log-uniform factor on the recipe's learning rate: DomainBed's 1.5 decades, around the rate that the recipe gives."""

CONTROLS = {"random_mask": "iga", "uniform_mask": "iga"}
"""Control -> the method whose idea it takes away."""


def searched(name: str) -> dict[str, Sequence[Any]]:
    """The values to search of an alignment's options; empty for ERM and for one that has none."""
    return dict(SEARCH.get(name, {}))


def method_recipe(recipe: Recipe, method: str) -> Recipe:
    """The recipe of one method: the slots of the recipe belong to the method that it names, and to its controls.

    Raises:
        UserError: the method is unknown.
    """
    own = recipe.method in (method, CONTROLS.get(method))
    options = recipe.alignment if own else None
    if options is not None and method in CONTROLS:
        options = options | {"control": method.removesuffix("_mask")}
    objective, terms = (recipe.objective, recipe.terms) if own else (None, None)
    one = replace(recipe, method=method, baseline=None, objective=objective, alignment=options, terms=terms)
    fill_slots(one.method, one.objective, one.alignment)
    fill_terms(one.method, one.terms)
    return one


def draw(recipe: Recipe, number: int) -> Recipe:
    """The recipe of one method with the settings of draw ``number``; 0 leaves them as they are."""
    if number == 0:
        return replace(recipe, seed_hparam=0)
    slots = fill_slots(recipe.method, recipe.objective, recipe.alignment)[2]
    options = {
        name: values[int(_generator(name, number).integers(len(values)))]
        for name, values in searched(slots["alignment"]["name"]).items()
    }
    low, high = (math.log(factor) for factor in LEARNING_RATE)
    factor = math.exp(_generator("learning_rate", number).uniform(low, high))
    rate = recipe.train.get("learning_rate", DistillConfig.learning_rate)
    train = recipe.train | {"learning_rate": float(f"{rate * factor:.4g}")}
    return replace(recipe, seed_hparam=number, train=train, alignment={**slots["alignment"], **options})


def _generator(name: str, number: int) -> np.random.Generator:
    """The random state of one hyperparameter in one draw, whatever else is searched."""
    return np.random.default_rng(int.from_bytes(sha256(f"{name} {number}".encode()).digest()[:8], "big"))
