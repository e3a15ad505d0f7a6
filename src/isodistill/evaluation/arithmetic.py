"""Sums inside a trace: every "a x b = c" is computed again, exactly.

Read are numbers joined by + - * x × · / ÷ and, after "=", one number; products come before sums. Left alone is what
could mean something else: percentages, powers, brackets, variables. A rounded result counts as right where it is the
exact one rounded to the digits shown (or to nine, of a binary fraction written out).
"""

from __future__ import annotations

import re
from fractions import Fraction

__all__ = ["sums", "wrong_steps"]

_NUMBER = r"[-−]?[$€£]?\d{1,40}(?:,\d{3}){0,9}(?:\.\d{1,40})?"  # longer ones are a model that repeats itself
_OPERATOR = r"\s*(?:[-+*/×·÷−]|(?<=[\d\s])x(?=[\d\s$]))\s*"
_STEP = re.compile(
    rf"(?<![\w.,%^)(\]/*+×·÷=$-])(?<![-+*/×·÷−(^]\s)(?P<sum>{_NUMBER}(?:{_OPERATOR}{_NUMBER})+)"
    rf"\s*=\s*(?=(?P<result>{_NUMBER})(?![\d,]*[\w%^(/]|\.\d|\s*[%^])(?P<rest>(?:{_OPERATOR}{_NUMBER})*))"
)
_OPERAND = re.compile(rf"\s*({_NUMBER})")
_JOINT = re.compile(r"\s*([-+*/x×·÷−])")


def sums(text: str) -> int:
    """How many sums ``text`` holds, right or wrong."""
    return sum(1 for _ in _STEP.finditer(text))


def wrong_steps(text: str) -> list[str]:
    """The sums in ``text`` that do not hold, as they stand there."""
    return [
        f"{match['sum'].strip()} = {match['result']}"
        for match in _STEP.finditer(text)
        if not _holds(match["sum"], match["result"], match["rest"])
    ]


def _holds(written: str, result: str, rest: str) -> bool:
    """Whether a sum has this result; in "9 x 1 + 7 x 5 = 9 + 35" the result may be all that follows, ``rest`` too."""
    value = _computed(written)
    if value is None:
        return True
    if rest and _computed(result + rest) == value:
        return True
    decimals = len(result.partition(".")[2])
    if not decimals and value.denominator == 1:
        return value == _number(result)
    return abs(value - _number(result)) <= max(Fraction(1, 2 * 10**decimals), decimals and abs(value) / 10**9)


def _computed(written: str) -> Fraction | None:
    """The value of a chain of numbers and operators, products first; None where it divides by zero or by a bare 1/2."""
    terms: list[Fraction] = []
    operator, place = "+", 0
    while (operand := _OPERAND.match(written, place)) is not None:
        value = _number(operand[1])
        if operator in "+-−":
            terms.append(value if operator == "+" else -value)
        elif operator not in "/÷":
            terms[-1] *= value
        elif value:
            terms[-1] /= value
        else:
            return None
        joint = _JOINT.match(written, operand.end())
        if joint is None:
            break
        if operator in "/÷" and joint[1] in "/÷":
            return None
        operator, place = joint[1], joint.end()
    return sum(terms, Fraction(0))


def _number(text: str) -> Fraction:
    return Fraction(re.sub(r"[$€£,]", "", text.replace("−", "-")))
