"""Presets and slots: from names and options to an objective, an alignment and a term."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar, get_type_hints

from isodistill.alignment import ALIGNMENTS, Alignment
from isodistill.errors import UserError
from isodistill.guards import GUARDS, Guard
from isodistill.objectives import OBJECTIVES, Objective
from isodistill.recipe import typed
from isodistill.terms import TERMS, Term

__all__ = ["PRESETS", "fill_guard", "fill_slots"]

# Cross-entropy under the alignment of the preset's own name.
_ALIGNED = (
    *("and_mask", "sand_mask", "pcgrad", "cagrad", "upgrad", "vrex", "group_dro", "irm", "coral", "dann", "fishr"),
    *("fish", "mldg", "iga2020"),
)

# Token-level distillation, each position with equal weight.
_DISTILLED = ("fkl", "rkl", "jsd", "skew", "vcrd")

# Cross-entropy on traces and the term of the preset's own name.
_WITH_TERM = ("flexkd", "projector", "cka", "prada")

_CONSISTENT = {"name": "isomer_consistency"}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "erm": {"objective": {"name": "ce"}, "alignment": {"name": "erm"}},
    "erm_pooled": {"objective": {"name": "ce"}, "alignment": {"name": "erm_pooled"}},
    "iga": {"objective": {"name": "ce"}, "alignment": {"name": "iga"}},
    **{name: {"objective": {"name": "ce"}, "alignment": {"name": name}} for name in _ALIGNED},
    "random_mask": {"objective": {"name": "ce"}, "alignment": {"name": "iga", "control": "random"}},
    "label_multitask": {"objective": {"name": "label_multitask"}, "alignment": {"name": "erm_pooled"}},
    "seq_kd": {"objective": {"name": "ce"}, "alignment": {"name": "erm_pooled"}},
    **{name: {"objective": {"name": name}, "alignment": {"name": "erm_pooled"}} for name in _DISTILLED},
    "uniform_mask": {"objective": {"name": "ce"}, "alignment": {"name": "iga", "control": "uniform"}},
    "isomer_consistency": {"objective": {"name": "ce"}, "alignment": {"name": "erm"}, "term": _CONSISTENT},
    "iga_consistency": {"objective": {"name": "ce"}, "alignment": {"name": "iga"}, "term": _CONSISTENT},
    **{
        name: {"objective": {"name": "ce"}, "alignment": {"name": "erm_pooled"}, "term": {"name": name}}
        for name in _WITH_TERM
    },
}

_NUMBERS = (int, float, bool, int | None, float | None)
"""What is checked here: 2.5 rows would be an error only where they are counted, perhaps after a stage was trained."""

T = TypeVar("T")


def fill_slots(
    method: str,
    objective: Mapping[str, Any] | None,
    alignment: Mapping[str, Any] | None,
    term: Mapping[str, Any] | None = None,
) -> tuple[Objective, Alignment, Term | None, dict[str, dict[str, Any]]]:
    """The parts of a preset; a slot given with a name replaces the preset's, one without adds options to it.

    Returns:
        The objective, the alignment, the term or None, and the slots with every option; without a term there is no
        such slot.

    Raises:
        UserError: a preset, a name or an option is unknown (with the nearest right one), or a value is refused.
    """
    preset = _known("method", method, PRESETS)
    # Options without a name belong to the part that the preset names.
    slots = {
        slot: dict(given) if given and "name" in given else preset.get(slot, {}) | dict(given or {})
        for slot, given in (("objective", objective), ("alignment", alignment), ("term", term))
    }
    if slots["term"] and "name" not in slots["term"]:
        raise UserError(f"The method {method} has no term, so term needs a name: one of {', '.join(TERMS)}.")
    return (
        _build("objective", slots["objective"], OBJECTIVES),
        _build("alignment", slots["alignment"], ALIGNMENTS),
        _build("term", slots["term"], TERMS) if slots["term"] else None,
        {slot: options for slot, options in slots.items() if options},
    )


def fill_guard(guard: Mapping[str, Any] | None) -> tuple[Guard, str]:
    """The guard of a slot, ``none`` where it is empty, and its name.

    Raises:
        UserError: the slot has no name, a name or option is unknown, or a value is refused.
    """
    slot = {"name": "none"} if guard is None else dict(guard)
    if "name" not in slot:
        raise UserError(f"The slot guard has options and no name: {slot}. Names: {', '.join(GUARDS)}.")
    return _build("guard", slot, GUARDS), slot["name"]


def _build(slot: str, options: dict[str, Any], known: Mapping[str, Callable[..., T]]) -> T:
    make = _known(f"{slot}.name", options["name"], known)
    given = {key: value for key, value in options.items() if key != "name"}
    allowed = inspect.signature(make).parameters
    for key in given:
        _known(f"option of {slot} {options['name']}", key, allowed)
    hints = get_type_hints(make)
    for key, value in given.items():
        if hints.get(key) in _NUMBERS:
            given[key] = typed(value, hints[key], f"{slot}.{key}", "the settings", allowed[key].default)
            if isinstance(given[key], float) and not math.isfinite(given[key]):
                raise UserError(f"{slot}.{key} is {given[key]}; it must be a finite number.")
    try:
        return make(**given)
    except TypeError as error:  # a text where a number is meant, say; the error does not name the option
        raise UserError(f"The {slot} {options['name']} refuses its options {given}: {error}.") from error
    except ValueError as error:
        raise UserError(f"The {slot} {options['name']} refuses its options: {error}.") from error


def _known(what: str, name: str, known: Mapping[str, T]) -> T:
    if name in known:
        return known[name]
    near = get_close_matches(str(name), list(known), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    choices = ", ".join(known) or "none"
    raise UserError(f"Unknown {what} {name!r}.{hint} Known: {choices}.")
