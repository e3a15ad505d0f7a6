"""The random search of a comparison: every draw of a method's hyperparameters, from its number alone.

Draw 0 is the recipe's own settings. Draw d > 0 takes the learning rate from ``LEARNING_RATE`` and the options of the
method's alignment from its ranges; each value depends only on its name and d, so that all methods try the same learning
rates and a method with more hyperparameters gets no more draws than ERM.

A range is ``("log_uniform", low, high)``, ``("uniform", low, high)``, ``("log_integer", low, high)`` or a list of
choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import Any, TypeAlias

import numpy as np

from isodistill import alignment
from isodistill.recipe import Recipe
from isodistill.training import DistillConfig
from isodistill.training.slots import fill_slots

__all__ = ["CONTROLS", "LEARNING_RATE", "Range", "draw", "method_recipe", "ranges"]

Range: TypeAlias = tuple[str, float, float] | list[Any]

LEARNING_RATE: Range = ("log_uniform", 10**-0.75, 10**0.75)
"""Factor on the recipe's learning rate: DomainBed's 1.5 decades, around the rate that the recipe found sensible."""

CONTROLS = {"random_mask": "iga", "uniform_mask": "iga"}
"""Control -> the method whose idea it takes away."""

_IGA: Mapping[str, Range] = {"tau": [0.1, 0.3, 1.0, 3.0, 10.0]}


def ranges(name: str) -> Mapping[str, Range]:
    """The search ranges of an alignment's options; empty for ERM and for one that names none."""
    known: Mapping[str, Mapping[str, Range]] = {"iga": _IGA} | getattr(alignment, "SEARCH", {})
    return known.get(name, {})


def method_recipe(recipe: Recipe, method: str) -> Recipe:
    """The recipe of one method: the slots of the recipe belong to the method that it names, and to its controls.

    Raises:
        UserError: the method is unknown.
    """
    own = recipe.method in (method, CONTROLS.get(method))
    options = recipe.alignment if own else None
    if options is not None and method in CONTROLS:
        options = options | {"control": method.removesuffix("_mask")}
    one = replace(recipe, method=method, baseline=None, objective=recipe.objective if own else None, alignment=options)
    fill_slots(one.method, one.objective, one.alignment)
    return one


def draw(recipe: Recipe, number: int) -> Recipe:
    """The recipe of one method with the settings of draw ``number``; 0 leaves them as they are."""
    if number == 0:
        return replace(recipe, seed_hparam=0)
    slots = fill_slots(recipe.method, recipe.objective, recipe.alignment)[2]
    drawn = {name: _value(name, where, number) for name, where in ranges(slots["alignment"]["name"]).items()}
    rate = recipe.train.get("learning_rate", DistillConfig.learning_rate)
    train = recipe.train | {"learning_rate": float(f"{rate * _value('learning_rate', LEARNING_RATE, number):.4g}")}
    return replace(recipe, seed_hparam=number, train=train, alignment={**slots["alignment"], **drawn})


def _value(name: str, where: Range, number: int) -> Any:
    """The value of one hyperparameter in one draw, whatever else is searched."""
    rng = np.random.default_rng(int.from_bytes(sha256(f"{name} {number}".encode()).digest()[:8], "big"))
    if isinstance(where, list):
        return where[int(rng.integers(len(where)))]
    kind, low, high = where
    if kind == "uniform":
        return float(f"{rng.uniform(low, high):.4g}")
    value = math.exp(rng.uniform(math.log(low), math.log(high)))
    return round(value) if kind == "log_integer" else float(f"{value:.4g}")
