"""Reads rates and quantities in several steps back out of a text."""

from __future__ import annotations

from isodistill.isomers.check.parsed import Parsed
from isodistill.isomers.check.reading import GROW, SHRINK, has, numbers, product, sentences

__all__ = ["parse"]

_SPLIT = "divided?|divides|split|equally|evenly|equal"
_ASK = "how many|how long|which number|what is the product"
_OTHER = "if|unless|ratio|than|difference|at minute|later than"


def parse(question: str, choices: tuple[str, ...] | None = None) -> Parsed | None:
    """Structure, numbers and answer of a question, or None if it is not clearly of this family."""
    told = sentences(question)
    if choices or len(told) < 3 or not told[-1].endswith("?") or not has(told[-1], _ASK) or has(" ".join(told), _OTHER):
        return None
    *story, asked = told
    if numbers(asked):
        story.append(asked)
    first = numbers(story[0])
    pair = product(story[0])
    if pair is None and len(first) != 1:
        return None
    structure: list[str] = ["mul"] if pair else []
    values = list(pair or first)
    for sentence in story[1:]:
        read = _read(sentence)
        if read is None or {"mul", "div"} & set(structure[1:] if pair else structure):
            return None
        structure.append(read[0])
        values.extend(read[1])
    answer = _solve(structure, values)
    return None if answer is None else Parsed("rates", tuple(structure), tuple(values), str(answer))


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


def _solve(structure: list[str], values: list[int]) -> int | None:
    """The answer, or None where a step leaves the whole numbers above zero."""
    left = list(values)
    total = left.pop(0)
    for operation in structure:
        change = left.pop(0)
        if operation.endswith("mul") and operation != "mul":
            change *= left.pop(0)
        if operation == "div" and total % change:
            return None
        total = {
            "mul": total * change,
            "div": total // change,
            "add": total + change,
            "addmul": total + change,
            "sub": total - change,
            "submul": total - change,
        }[operation]
        if total <= 0:
            return None
    return total
