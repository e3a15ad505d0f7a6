"""The last marked answer of a generated text, and its canonical form.

A marked answer follows one of ``The answer is``, ``Answer:``, ``####``, ``\\boxed{`` and ``<answer>``. An unmarked text
has no answer: guessing from its first or last number would score accidents. The rules are ours; ``PARSER_VERSION``
changes with every change of them, and stands in every record.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from fractions import Fraction

from isodistill.data.rows import AnswerType
from isodistill.evaluation.programs import program_in

__all__ = ["PARSER_VERSION", "answer_start", "canon", "number_value", "parse_answer", "read_answer"]

PARSER_VERSION = "1"

_MARK = re.compile(
    r"""(?P<box>\\boxed\s*\{)
      | <answer>
      | \#\#\#\#(?!\s*[a-z]+\s+\d)    # but not a Markdown heading such as "#### Step 2"
      | \banswers?(?:\s+to\s+(?:the|this)\s+(?:question|problem))?[*_]*\s*(?::|\bis\b\s*:?)[*_]*
    """,
    re.IGNORECASE | re.VERBOSE,
)
_END = re.compile(r"""\n|</?\w+>|<\||(?<!\bRs)[.!?](?=[\s*_"')\]]|$)""")
_UPRIGHT = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
_AROUND = " \t*_`\"'“”‘’$"
_AFTER = ".,;:!?" + _AROUND
_WORD = re.compile(r"\w")
_NOT = re.compile(r"not\b", re.IGNORECASE)

_MAX_DIGITS = 100  # a longer run of digits is a model that repeats itself, and Python refuses to convert very long ones
_DIGITS = r"(?>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?!,\d)"
_NUMBER = re.compile(
    rf"""(?<![\w.,])(?P<sign>[-+]?)
    (?: (?:(?P<whole>\d+)\s+)?(?P<numerator>\d+)\s*/\s*(?P<denominator>\d+)(?![\d.,]*\d)
      | (?P<decimal>(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:e[-+]?\d{{1,3}}(?!\d))?)(?!e[-+]?\d|\.?\d)
    )""",
    re.IGNORECASE | re.VERBOSE | re.ASCII,
)
# What makes a number the beginning of a longer expression, and what begins an expression without a number.
_TAIL = re.compile(r"\(\s*[-\d\\]|\s*(?:[\\^√π]|[*×·+/]\s*[-\d(\\√π]|-\s*[\d(\\√π])")
_HEAD = re.compile(r"[-+]?\s*(?:[\\√π]|\(\s*[-\d\\√π])")
_PLAIN = (
    (re.compile(r"\\[dt]?frac\s*\{(\d+)\}\s*\{(\d+)\}"), r"\1/\2"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\[()\[\],;!:]|\\?[$]|[€£]|\bRs\b\.?|\^\s*\{?\\circ\}?"), ""),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"−"), "-"),
    (re.compile(r"(?<=\d)\s*x\s*(?=\d)"), " * "),
    (re.compile(r"√\s*(\d+)"), r"\\sqrt{\1}"),
    (re.compile(r"(?<=[\d)])\s*\*\*\s*(?=[-\d(])"), "^"),
)

_LETTER = re.compile(r"(?:(?:option|choice)\s+)?\(?([a-z])(?:[).:,;]|\s+(?:because|since|as|which)\b|$)", re.IGNORECASE)
_YES_NO = re.compile(r"(?:(yes|true)|no|false)\b", re.IGNORECASE)


def parse_answer(output: str, answer_type: AnswerType, choices: Sequence[str] | None = None) -> str | None:
    """The last marked answer in ``output`` that can be read as ``answer_type``, or None.

    Args:
        output: the generated text, without the prompt.
        answer_type: how to read the answer; see `read_answer`.
        choices: option texts without letters, for ``choice``.

    Returns:
        The answer as `read_answer` gives it; None when nothing is marked or no mark holds such an answer. For code
        the program in the output, for instructions the whole output; None where they are blank.
    """
    if answer_type == "code":
        return program_in(output)
    if answer_type == "instructions":
        return output if output.strip() else None
    for _, text in _marked_texts(output):
        answer = read_answer(text, answer_type, choices)
        if answer is not None:
            return answer
    return None


def answer_start(output: str, answer_type: AnswerType, choices: Sequence[str] | None = None) -> int | None:
    """Where in ``output`` the answer that `parse_answer` finds begins: its first letter or digit; None without one."""
    for start, text in _marked_texts(output):
        if read_answer(text, answer_type, choices) is not None:
            first = _WORD.search(text)
            return start + (first.start() if first else 0)
    return None


def read_answer(text: str, answer_type: AnswerType, choices: Sequence[str] | None = None) -> str | None:
    r"""An answer without its mark (gold, or the text after a mark) in the form of its type; None if unreadable.

    - number: "1,200" -> "1200", "$5.50" -> "5.5", "7 apples" -> "7", "6/8" -> "3/4"; a percent sign is a unit. A longer
      expression such as ``2\sqrt{3}`` stays as it is, for the symbolic check.
    - choice: the letter, from "(B)", "B)", "B" or the option's text.
    - yesno: "yes" or "no", also from true and false.
    - string: the text without quotes and the closing full stop.
    """
    text = _UPRIGHT.sub(r"\1", text).strip().lstrip(_AROUND).rstrip(_AFTER)
    if not text:
        return None
    if answer_type == "number":
        return None if _NOT.match(text) else _read_number(text)
    if answer_type == "choice":
        return _read_choice(text, choices)
    if answer_type == "yesno":
        match = _YES_NO.match(text)
        return None if match is None else "yes" if match[1] else "no"
    return " ".join(text.split())


def canon(answer: str | None, answer_type: AnswerType, choices: Sequence[str] | None = None) -> str | None:
    """The answer at the level of the structure, so that isomers told in different words are comparable.

    Numbers of equal value have one form (``3/4`` and ``0.75`` -> "0.75"), choices and strings with ``choices`` become
    the option's letter (isomers list their options in one structural order), yes/no stays. Free strings, code,
    instructions, expressions and None have no such form: None.
    """
    if answer is None or answer_type in ("code", "instructions"):
        return None
    if answer_type == "string":
        return _read_choice(answer, choices) if choices else None
    read = read_answer(answer, answer_type, choices)
    if answer_type != "number" or read is None:
        return read
    value = number_value(read)
    if value is None:
        return None
    decimal = Decimal(value.numerator) / Decimal(value.denominator)
    return _plain_decimal(decimal) if Fraction(decimal) == value else str(value)


def number_value(number: str) -> Fraction | None:
    """The exact value of a number as `read_answer` writes it; None for an expression."""
    match = _NUMBER.fullmatch(number)
    normal = None if match is None else _normal_number(match)
    return None if normal is None else Fraction(normal)


def _marked_texts(output: str) -> Iterator[tuple[int, str]]:
    """Place and text of what follows each mark, last mark first, up to the end of its sentence, line or tag."""
    for mark in reversed(list(_MARK.finditer(output))):
        rest = output[mark.end() :]
        if mark["box"]:
            boxed = _up_to_closing_brace(rest)
            if boxed is not None:
                yield mark.end(), boxed
            continue
        rest = rest.lstrip()
        start = len(output) - len(rest)
        end = _END.search(rest)
        text = rest if end is None else rest[: end.start()]
        if "\\boxed" not in text:  # the box is a mark of its own
            yield start, text


def _up_to_closing_brace(text: str) -> str | None:
    depth = 1
    for position, character in enumerate(text):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[:position]
    return None


def _read_number(text: str) -> str | None:
    text = text.rpartition("=")[2]
    for pattern, replacement in _PLAIN:
        text = pattern.sub(replacement, text)
    text = text.strip()
    first = _NUMBER.match(text)
    if _HEAD.match(text) if first is None else _TAIL.match(text, first.end()):
        return text
    numbers = [first] if first else list(_NUMBER.finditer(text))
    return _normal_number(numbers[0]) if len(numbers) == 1 else None  # several numbers in a sentence: no guess


def _normal_number(match: re.Match[str]) -> str | None:
    if len(match[0]) > _MAX_DIGITS:
        return None
    if match["decimal"]:
        return _plain_decimal(Decimal(match["sign"] + match["decimal"].replace(",", "")))
    if int(match["denominator"]) == 0:
        return None
    value = int(match["whole"] or 0) + Fraction(int(match["numerator"]), int(match["denominator"]))
    return str(-value if match["sign"] == "-" else value)


def _plain_decimal(value: Decimal) -> str:
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def _read_choice(text: str, choices: Sequence[str] | None) -> str | None:
    """The letter of an option: from the letter itself, the option's text, or the one option named in the text."""
    letter = _LETTER.match(text)
    if letter and (choices is None or ord(letter[1].upper()) - ord("A") < len(choices)):
        return letter[1].upper()
    wanted = _folded(text)
    options = [_folded(choice) for choice in choices or ()]
    named = [i for i, option in enumerate(options) if option == wanted]
    if not named and not _NOT.match(text):
        named = [
            i
            for i, option in enumerate(options)
            if re.search(rf"(?<![\w.\-]){re.escape(option)}(?!\w|\.\d)", wanted)
            and not any(option != longer and option in longer and longer in wanted for longer in options)
        ]
    return chr(ord("A") + named[0]) if len(named) == 1 else None


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).lstrip(_AROUND).rstrip(_AFTER)
