"""From a problem with a checkable arithmetic trace to a template: which numbers of both texts hang on which.

"Emma buys 3 bags of 12 apples and eats 5." with "3 * 12 = 36. 36 - 5 = 31. The answer is 31." gives the template
a = 3, b = 12, c = 5; r0 = a * b; r1 = r0 - c; answer r1, with the places of all of them in both texts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from isodistill.data.rows import Row
from isodistill.isomers.expressions import evaluate, parse_expression
from isodistill.isomers.words import numbers_in

__all__ = ["Slot", "Template", "derive_template"]

_CONVERSIONS = frozenset(map(Fraction, (7, 12, 24, 60, 100, 365, 1000)))
"""Numbers that a trace may bring in by itself: days, months, hours, minutes, per cent."""

_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_UNIT = r"(?:%| ?(?!x[ \d(])[A-Za-z]+(?:/[A-Za-z]+)*(?: (?!x[ \d(])[A-Za-z]+(?:/[A-Za-z]+)*){0,3})?"
_TERM = rf"[($£€]*{_NUMBER}{_UNIT}\)*"
_SIGN = r" ?(?:[-+*/×÷−]|x(?=[ \d(])) ?"
_EQUATION = re.compile(rf"(?P<left>{_TERM}(?:{_SIGN}{_TERM})+) ?= ?[$£€]?(?P<result>{_NUMBER})(?![\d.]*\d)")
_LEFT_TOKEN = re.compile(rf"{_NUMBER}|[-+*/×÷−()]|(?<![A-Za-z])x(?=[ \d(])|[A-Za-z%]+(?:/[A-Za-z]+)*")
_ANY_NUMBER = re.compile(_NUMBER.replace("[\\d,]*", "(?:[\\d,]*\\d)?"))
_SIGNS = {"x": "*", "×": "*", "÷": "/", "−": "-"}


@dataclass(frozen=True)
class Slot:
    """A number in a text: where it stands, and the name of the quantity that it is."""

    start: int
    end: int
    name: str


@dataclass(frozen=True)
class Template:
    """A problem and its trace with their numbers taken out.

    Attributes:
        row: the problem that it comes from.
        values: name -> value there, of every number of the prompt that is drawn anew.
        steps: (name, expression over values and earlier steps), one per equation of the trace.
        prompt_slots: where the values stand in the prompt.
        trace_slots: where values and results stand in the completion.
        percents: names that are followed by a per cent sign.
    """

    row: Row
    values: Mapping[str, Fraction]
    steps: tuple[tuple[str, ast.expr], ...]
    prompt_slots: tuple[Slot, ...]
    trace_slots: tuple[Slot, ...]
    percents: frozenset[str]

    def solve(self, values: Mapping[str, Fraction]) -> dict[str, Fraction]:
        """Every value and every result; raises ValueError where a step divides by zero."""
        known = dict(values)
        for name, expression in self.steps:
            known[name] = evaluate(expression, known)
        return known

    def fill(self, values: Mapping[str, Fraction]) -> Row | None:
        """The problem with other values; None where a result that was a whole number or positive no longer is.

        A result that was no whole number keeps its number of decimals, at most.
        """
        before = self.solve(self.values)
        try:
            known = self.solve(values)
        except ValueError:
            return None
        for name, _ in self.steps:
            lost_sign = before[name] > 0 >= known[name]
            if lost_sign or _decimals(known[name]) > _decimals(before[name]):
                return None
        answer = _written(known[self.steps[-1][0]])
        return replace(
            self.row,
            prompt=_filled(str(self.row.prompt), self.prompt_slots, known),
            completion=_filled(str(self.row.completion), self.trace_slots, known),
            answer=answer,
        )


def derive_template(row: Row) -> Template:
    """The template of a problem.

    Every number of an equation must be a number of the prompt, the result of one earlier equation, a number that the
    prompt says in words ("twice"), or a conversion such as 60. A number of the prompt is drawn anew when it is a whole
    number above 1 in digits; every such number must be used by an equation.

    Raises:
        ValueError: no such trace, a wrong step, a number that may come from two places, or from nowhere; says which.
    """
    if not isinstance(row.prompt, str) or row.completion is None or row.answer_type != "number":
        raise ValueError("it needs a prompt as text, a completion and a number as answer")
    prompt_slots, fixed = _prompt_numbers(row.prompt)
    reader = _TraceReader(row.prompt, prompt_slots, fixed)
    trace_slots = reader.read(row.completion)
    if not reader.steps:
        raise ValueError("the completion has no equation such as 3 * 12 = 36")
    if reader.known[reader.steps[-1][0]] != Fraction(str(row.answer)):
        raise ValueError(f"the last equation gives {reader.known[reader.steps[-1][0]]}, but the answer is {row.answer}")
    if not prompt_slots:
        raise ValueError("the prompt has no whole number above 1 in digits")
    for slot in prompt_slots:
        if slot.name not in reader.used:
            raise ValueError(
                f"no equation uses {reader.known[slot.name]} of the prompt, so what hangs on it is unknown"
            )
    return Template(
        row=row,
        values={slot.name: reader.known[slot.name] for slot in prompt_slots},
        steps=tuple(reader.steps),
        prompt_slots=prompt_slots,
        trace_slots=tuple(trace_slots),
        percents=frozenset(slot.name for slot in prompt_slots if row.prompt[slot.end : slot.end + 1] == "%"),
    )


def _prompt_numbers(prompt: str) -> tuple[tuple[Slot, ...], set[Fraction]]:
    """The numbers that may be drawn anew, and the values of those that stay: fractions, times, decimals, 1st, 0, 1."""
    slots: list[Slot] = []
    fixed: set[Fraction] = set()
    for found in _ANY_NUMBER.finditer(prompt):
        value = _value(found.group())
        around = prompt[max(0, found.start() - 1) : found.start()] + prompt[found.end() : found.end() + 1]
        if value.denominator != 1 or value <= 1 or re.search(r"[A-Za-z/:]", around):
            fixed.add(value)
        else:
            slots.append(Slot(found.start(), found.end(), f"a{len(slots)}"))
    return tuple(slots), fixed


class _TraceReader:
    """Reads the equations of a trace in order and finds out what every number in it is."""

    def __init__(self, prompt: str, slots: Sequence[Slot], fixed: set[Fraction]) -> None:
        self.known = {slot.name: _value(prompt[slot.start : slot.end]) for slot in slots}
        self.steps: list[tuple[str, ast.expr]] = []
        self.used: set[str] = set()
        said = set(numbers_in(prompt).words)  # half of it is * 1/2 or / 2
        self._constants = fixed | said | {1 / value for value in said} | _CONVERSIONS | {Fraction(1)}

    def read(self, trace: str) -> list[Slot]:
        """The numbers of the trace that hang on the prompt."""
        slots: list[Slot] = []
        n_read = sum(1 for _ in _EQUATION.finditer(trace))
        if trace.count("=") > n_read:
            raise ValueError(f"only {n_read} of its {trace.count('=')} equations can be read")
        ahead: list[re.Match[str]] = []  # numbers that no equation so far gives
        end = 0
        for equation in _EQUATION.finditer(trace):
            slots += self._prose(_ANY_NUMBER.finditer(trace, end, equation.start()), ahead)
            slots += self._equation(trace, equation)
            end = equation.end("result")
        slots += self._prose(_ANY_NUMBER.finditer(trace, end), ahead)
        unknown: list[re.Match[str]] = []
        slots += self._prose(ahead, unknown)
        if unknown:
            raise ValueError(f"{unknown[0].group()} is neither in the prompt nor a result")
        return sorted(slots, key=lambda slot: slot.start)

    def _prose(self, numbers: Iterable[re.Match[str]], unknown: list[re.Match[str]]) -> list[Slot]:
        """Numbers between equations; constants stay as they are, and what is not known goes to ``unknown``."""
        slots = []
        for found in numbers:
            value = _value(found.group())
            name = self._name(value)
            if name is not None:
                slots.append(Slot(found.start(), found.end(), name))
            elif value not in self._constants:
                unknown.append(found)
        return slots

    def _equation(self, trace: str, equation: re.Match[str]) -> list[Slot]:
        parts, slots = [], []
        for token in _LEFT_TOKEN.finditer(trace, equation.start("left"), equation.end("left")):
            text = token.group()
            if text[0].isdigit():
                value = _value(text)
                name = self._name(value)
                if name is not None:
                    slots.append(Slot(token.start(), token.end(), name))
                    self._use(name, value)
                elif value not in self._constants:
                    raise ValueError(f"{text} in {equation.group()!r} is neither in the prompt nor a result")
                parts.append(name or text.replace(",", ""))
            elif text in _SIGNS or text in "+-*/()":
                parts.append(_SIGNS.get(text, text))
        expression = parse_expression(" ".join(parts), self.known)
        result = _value(equation["result"])
        if evaluate(expression, self.known) != result:
            raise ValueError(f"the step {equation.group()!r} is wrong")
        name = f"r{len(self.steps)}"
        self.known[name] = result
        self.steps.append((name, expression))
        return [*slots, Slot(equation.start("result"), equation.end("result"), name)]

    def _use(self, name: str, value: Fraction) -> None:
        if value == 2 and name in self.used:
            raise ValueError("2 is used twice, so one of them may be a doubling")
        self.used.add(name)

    def _name(self, value: Fraction) -> str | None:
        names = [name for name, known in self.known.items() if known == value]
        if len(names) > 1:
            raise ValueError(f"{value} may be {' or '.join(names)}: a number of the prompt or a result twice")
        last = f"r{len(self.steps) - 1}"  # what has just been worked out is meant, whatever constant it equals
        if names and value in self._constants and names != [last]:
            raise ValueError(f"{value} may be {names[0]} or a constant")
        return names[0] if names else None


def _value(text: str) -> Fraction:
    return Fraction(text.replace(",", "").rstrip("."))


def _decimals(value: Fraction) -> int:
    """Digits behind the point; 99 where the decimals never end."""
    for digits in range(12):
        if (value * 10**digits).denominator == 1:
            return digits
    return 99


def _written(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.{_decimals(value)}f}"


def _filled(text: str, slots: Sequence[Slot], known: Mapping[str, Fraction]) -> str:
    parts, end = [], 0
    for slot in slots:
        parts += [text[end : slot.start], _written(known[slot.name])]
        end = slot.end
    return "".join([*parts, text[end:]])
