"""What a problem says, read back from its text: quantities, relations and question; and when two problems say the same.

The reader answers with JSON such as::

    {"quantities": [{"name": "a", "value": 6, "unit": "tray"}, {"name": "b", "value": 4, "unit": "dose per tray"}],
     "relations": [{"name": "x", "is": "a * b"}], "question": "x"}
"""

from __future__ import annotations

import ast
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, permutations, product
from math import factorial, prod
from typing import Any

from isodistill.isomers.expressions import evaluate, parse_expression

__all__ = ["Structure", "difference", "read_structure"]

_MOST_RELATIONS = 40
_MOST_MATCHINGS = 720
_POINTS = 3


@dataclass(frozen=True)
class Structure:
    """One problem as read from its text.

    Attributes:
        values: name -> value of every quantity that the text gives, used or not.
        units: name -> its unit, in lower case and without the s of a plural.
        relations: (name, expression over quantities and earlier relations), in order.
        question: the name that is asked for.
    """

    values: Mapping[str, Fraction]
    units: Mapping[str, str]
    relations: tuple[tuple[str, ast.expr], ...]
    question: str

    def solve(self, values: Mapping[str, Fraction]) -> Fraction:
        """The asked quantity when the quantities have these values.

        Raises:
            ValueError: a division by zero, or a number beyond 4,096 bits.
        """
        known = dict(values)
        for name, expression in self.relations:
            known[name] = evaluate(expression, known)
        return known[self.question]

    @property
    def answer(self) -> Fraction:
        """The asked quantity of the problem as it stands."""
        return self.solve(self.values)


def read_structure(reply: str) -> Structure:
    """The structure in a reader's reply; text around the JSON object is passed over.

    Raises:
        ValueError: no JSON object, or one that does not say quantities, relations and question as this module does;
            the message says which part.
    """
    record = _json_object(reply)
    values: dict[str, Fraction] = {}
    units: dict[str, str] = {}
    for entry in _listed(record, "quantities"):
        name = str(entry.get("name"))
        if not name.isidentifier() or name in values:
            raise ValueError(f"the quantity {name!r} has no name of its own")
        values[name] = _number(entry.get("value"))
        units[name] = str(entry.get("unit") or "").strip().lower().removesuffix("s")
    relations: list[tuple[str, ast.expr]] = []
    known = set(values)
    for entry in _listed(record, "relations"):
        name = str(entry.get("name"))
        if not name.isidentifier() or name in known:
            raise ValueError(f"the relation {name!r} has no name of its own")
        relations.append((name, parse_expression(str(entry.get("is")), known)))
        known.add(name)
    question = str(record.get("question"))
    if question not in known or len(relations) > _MOST_RELATIONS:
        raise ValueError(f"the question {question!r} names no quantity, or there are more than {_MOST_RELATIONS} steps")
    structure = Structure(values, units, tuple(relations), question)
    structure.solve(values)
    return structure


def difference(source: Structure, member: Structure) -> tuple[str, str] | None:
    """The first way in which a member is no isomer of its source, as (reason, what was found); None where it is one.

    They are isomers when the values are the same, and quantities can be matched, each with one of its own value, so
    that the asked quantity is the same function of all of them (compared exactly at three random points, so the order
    of steps and of sums does not matter) and quantities share a unit in one exactly where they do in the other.
    """
    ours, theirs = Counter(source.values.values()), Counter(member.values.values())
    if ours != theirs:
        return "other values", f"{_shown(theirs - ours)} instead of {_shown(ours - theirs)}"
    if member.answer != source.answer:
        return "another answer", f"{member.answer} instead of {source.answer}"
    if prod(factorial(times) for times in ours.values()) > _MOST_MATCHINGS:
        return "too many equal values", f"{_shown(ours)} cannot be told apart"
    try:
        same = [matching for matching in _matchings(source, member) if _same_function(source, member, matching)]
    except ValueError as error:
        return "not comparable", f"for other values {error}"
    if not same:
        return "other relations", f"the answer is {member.answer}, too, but not for other values"
    if not any(_same_units(source, member, matching) for matching in same):
        return "other units", f"{_shown_units(member)} instead of {_shown_units(source)}"
    return None


def _matchings(source: Structure, member: Structure) -> Iterator[dict[str, str]]:
    """Every way to match quantities of equal value: name in the source -> name in the member."""
    ours, theirs = _by_value(source), _by_value(member)
    values = list(ours)
    for orders in product(*(permutations(theirs[value]) for value in values)):
        yield dict(zip(chain.from_iterable(ours[value] for value in values), chain.from_iterable(orders), strict=True))


def _same_function(source: Structure, member: Structure, matching: Mapping[str, str]) -> bool:
    rng = random.Random(0)
    for _ in range(_POINTS):
        point = {name: Fraction(rng.randint(2, 10**6), rng.randint(2, 10**3)) for name in matching}
        moved = {matching[name]: value for name, value in point.items()}
        if source.solve(point) != member.solve(moved):
            return False
    return True


def _same_units(source: Structure, member: Structure, matching: Mapping[str, str]) -> bool:
    names = list(matching)
    ours = [source.units[name] for name in names]
    theirs = [member.units[matching[name]] for name in names]
    return len(set(zip(ours, theirs, strict=True))) == len(set(ours)) == len(set(theirs))


def _by_value(structure: Structure) -> dict[Fraction, list[str]]:
    names = defaultdict(list)
    for name, value in structure.values.items():
        names[value].append(name)
    return names


def _json_object(reply: str) -> dict[str, Any]:
    decoder = json.JSONDecoder(parse_float=str, parse_constant=str)
    start = reply.find("{")
    while start >= 0:
        try:
            record, _ = decoder.raw_decode(reply, start)
        except (ValueError, RecursionError):
            start = reply.find("{", start + 1)
            continue
        return dict(record)
    raise ValueError("there is no JSON object")


def _listed(record: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    entries = record.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{key} is no list of objects")
    return entries


def _number(value: Any) -> Fraction:
    text = str(value).replace(",", "").replace("$", "").strip()
    try:
        number = Fraction(text.removesuffix("%").strip()) if len(text) < 40 and "e" not in text.lower() else None
    except (ValueError, ZeroDivisionError):
        number = None
    if number is None or isinstance(value, bool):
        raise ValueError(f"the value {value!r} is no number")
    return number


def _shown(values: Counter[Fraction]) -> str:
    return ", ".join(map(str, sorted(values.elements()))) or "nothing"


def _shown_units(structure: Structure) -> str:
    return ", ".join(f"{value} {structure.units[name]}".strip() for name, value in structure.values.items())
