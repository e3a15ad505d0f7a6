"""Presets and slots: from names and options to an objective and an alignment."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

from isodistill.alignment import ALIGNMENTS, Alignment
from isodistill.errors import UserError
from isodistill.objectives import OBJECTIVES, Objective
from isodistill.terms import TERMS, Term

__all__ = ["PRESETS", "PRESET_TERMS", "fill_slots", "fill_terms"]

# Cross-entropy under the alignment of the preset's own name.
_ALIGNED = (
    *("and_mask", "sand_mask", "pcgrad", "cagrad", "upgrad", "vrex", "group_dro", "irm", "coral", "dann", "fishr"),
    *("fish", "mldg", "iga2020"),
)

# Token-level distillation, each position with equal weight.
_DISTILLED = ("fkl", "rkl", "jsd", "skew", "vcrd")

# Cross-entropy on traces and one term beside it.
_WITH_TERM = ("flexkd", "projector", "cka", "prada")

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "erm": {"objective": {"name": "ce"}, "alignment": {"name": "erm"}},
    "erm_pooled": {"objective": {"name": "ce"}, "alignment": {"name": "erm_pooled"}},
    "iga": {"objective": {"name": "ce"}, "alignment": {"name": "iga"}},
    **{name: {"objective": {"name": "ce"}, "alignment": {"name": name}} for name in _ALIGNED},
    "random_mask": {"objective": {"name": "ce"}, "alignment": {"name": "iga", "control": "random"}},
    "seq_kd": {"objective": {"name": "ce"}, "alignment": {"name": "erm_pooled"}},
    **{name: {"objective": {"name": name}, "alignment": {"name": "erm_pooled"}} for name in _DISTILLED},
    **{name: {"objective": {"name": "ce"}, "alignment": {"name": "erm_pooled"}} for name in _WITH_TERM},
    "uniform_mask": {"objective": {"name": "ce"}, "alignment": {"name": "iga", "control": "uniform"}},
}

PRESET_TERMS: dict[str, list[dict[str, Any]]] = {name: [{"name": name}] for name in _WITH_TERM}
"""The terms of presets that have any."""

T = TypeVar("T")


def fill_slots(
    method: str, objective: Mapping[str, Any] | None, alignment: Mapping[str, Any] | None
) -> tuple[Objective, Alignment, dict[str, dict[str, Any]]]:
    """The parts of a preset; a slot given with a name replaces the preset's, one without adds options to it.

    Returns:
        The objective, the alignment, and both slots with every option.

    Raises:
        UserError: a preset, a name or an option is unknown (with the nearest right one), or a value is refused.
    """
    preset = _known("method", method, PRESETS)
    # Options without a name belong to the part that the preset names.
    slots = {
        slot: dict(given) if given and "name" in given else preset[slot] | dict(given or {})
        for slot, given in (("objective", objective), ("alignment", alignment))
    }
    return (
        _build("objective", slots["objective"], OBJECTIVES),
        _build("alignment", slots["alignment"], ALIGNMENTS),
        slots,
    )


def fill_terms(method: str, terms: Sequence[Mapping[str, Any]] | None) -> tuple[list[Term], list[dict[str, Any]]]:
    """The terms of a preset, or those given, with every option.

    Raises:
        UserError: a name or an option is unknown (with the nearest right one), a value is refused, a name is twice.
    """
    given = [dict(term) for term in (PRESET_TERMS.get(method, []) if terms is None else terms)]
    for term in given:
        if "name" not in term:
            raise UserError(f"A term has no name: {term}. Known: {', '.join(TERMS)}.")
    made = [_build("terms", term, TERMS) for term in given]
    names = [term["name"] for term in given]
    if len(set(names)) < len(names):
        raise UserError(f"terms names one twice: {', '.join(names)}. Each can be added once.")
    return made, given


def _build(slot: str, options: dict[str, Any], known: Mapping[str, Callable[..., T]]) -> T:
    make = _known(f"{slot}.name", options["name"], known)
    given = {key: value for key, value in options.items() if key != "name"}
    allowed = inspect.signature(make).parameters
    for key in given:
        _known(f"option of {slot} {options['name']}", key, allowed)
    try:
        return make(**given)
    except (ValueError, TypeError) as error:
        raise UserError(f"The {slot} {options['name']} refuses its options: {error}.") from error


def _known(what: str, name: str, known: Mapping[str, T]) -> T:
    if name in known:
        return known[name]
    near = get_close_matches(str(name), list(known), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    choices = ", ".join(known) or "none"
    raise UserError(f"Unknown {what} {name!r}.{hint} Known: {choices}.")
