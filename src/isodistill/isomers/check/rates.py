"""Reads rates and quantities in several steps back out of a text."""

from __future__ import annotations

from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.check.reading import GROW, SHRINK, has, numbers, product, sentences

__all__ = ["parse"]

_SPLIT = "equally|evenly|equal|divide the number by"
_ASK = "how many|how long|which number|what is the product"
_OTHER = "if|unless|ratio|than|difference"
_COMPARED = "differ|more|fewer|less|larger|smaller|longer|shorter|higher|lower|better|worse"


def parse(question: str, choices: tuple[str, ...] | None = None) -> Parsed | None:
    """Structure, numbers and answer of a question, or None if it is not clearly of this family."""
    told = sentences(question)
    if choices or len(told) < 3 or not has(told[-1], _ASK) or has(" ".join(told), _OTHER):
        return None
    opening, *story = told if numbers(told[-1]) else told[:-1]
    pair, stock = product(opening), numbers(opening)
    read = [_read(sentence) for sentence in story]
    if (pair is None and len(stock) != 1) or has(opening, SHRINK) or None in read:
        return None
    steps = [step for step in read if step is not None]
    operations = [operation for operation, _ in steps]
    if {"mul", "div"} & set(operations[:-1]) or not _fits(told[-1], operations[-1]):
        return None
    structure = (*(["mul"] if pair else []), *operations)
    values = (*(pair or stock), *(n for _, found in steps for n in found))
    answer = _solve(structure, values)
    return None if answer is None else Parsed("rates", structure, values, str(answer))


def _fits(asked: str, last: str) -> bool:
    """Whether the question is for the result: for one part after a division, else for the whole."""
    if has(asked, _COMPARED):
        return False
    return has(asked, "which number") or has(asked, "each") == (last == "div")


def _read(sentence: str) -> tuple[str, tuple[int, ...]] | None:
    """The operation of one sentence and its numbers."""
    found = numbers(sentence)
    grows, shrinks = has(sentence, GROW), has(sentence, SHRINK)
    if len(found) == 2 and grows != shrinks:
        pair = product(sentence)
        return pair and ("addmul" if grows else "submul", pair)
    if len(found) != 1:
        return None
    if has(sentence, _SPLIT):
        return None if has(sentence, "multipl(?:y|ied)") else ("div", found)
    if has(sentence, "each|every|multipl(?:y|ied)"):
        return None if grows or shrinks else ("mul", found)
    if grows == shrinks:
        return None
    return ("add" if grows else "sub"), found


def _solve(structure: tuple[str, ...], values: tuple[int, ...]) -> int | None:
    """The answer, or None where a step leaves the whole numbers above zero."""
    rest = iter(values)
    total = next(rest)
    for operation in structure:
        change = next(rest)
        if operation in ("addmul", "submul"):
            change *= next(rest)
        if operation == "mul":
            total *= change
        elif operation == "div":
            if change == 0 or total % change:
                return None
            total //= change
        else:
            total += change if operation.startswith("add") else -change
        if total <= 0:
            return None
    return total
