"""The recipe of ``isodistill demo``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from isodistill.recipe import Recipe, parse_recipe

__all__ = ["demo_recipe"]

_TRAIN = ["mathematics", "medicine", "law", "science"]
_HELD_OUT = ["cooking", "sports", "finance"]

_DEMO: dict[str, Any] = {
    "student": "smollm2-135m",
    "method": "iga",
    "baseline": "erm",
    "isomers": {
        "n_sets": 400,
        "families": ["rates", "sharing", "ordering", "inclusion"],
        "difficulty": [1],
        "domains": _TRAIN,
    },
    "split": {"held_out_domains": _HELD_OUT, "valid": 0.0, "test": 0.2},
    "train": {"steps": 96, "sets_per_batch": 2, "learning_rate": 1e-3, "save_steps": 24},
    "evaluate": {"max_new_tokens": 80, "max_sets": 40},
}

_QUICK: dict[str, Any] = {
    "student": "tiny",
    "isomers": {"n_sets": 200, "families": ["rates", "inclusion"], "domains": _TRAIN},
    "train": {"steps": 60, "sets_per_batch": 4, "learning_rate": 1e-2, "save_steps": 30},
    "evaluate": {"max_new_tokens": 64, "max_sets": 12},
}


def demo_recipe(*, quick: bool, overrides: Sequence[str] = ()) -> Recipe:
    """ERM and IGA side by side on generated isomers; ``quick`` uses a student made on the spot."""
    return parse_recipe(_DEMO | _QUICK if quick else _DEMO, overrides, where="the demo's recipe")
