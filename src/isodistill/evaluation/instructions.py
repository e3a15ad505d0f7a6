"""Instructions that can be checked by rules: the 25 kinds of IFEval (arXiv 2311.07911), each as one short function.

The gold ``answer`` of a row of type instructions is a JSON list, one object for each instruction with its ``id`` and
its arguments, named as in IFEval:

    [{"id": "punctuation:no_comma"}, {"id": "length_constraints:number_words", "relation": "at least", "num_words": 50}]

An output is correct when it follows all of them ("strict" in the paper, at the level of the prompt). The rules are
written anew from what the instructions say. Three differ from the original where it leans on a statistical model:
sentences and words in capitals are split by rules, and languages are told by ``languages``.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from isodistill.evaluation.languages import LANGUAGES, speaks

__all__ = ["KINDS", "Instruction", "broken_instructions", "read_instructions"]

_WORD = re.compile(r"\w+")
_CAPITALS = re.compile(r"\w[\w'’-]*")
_SENTENCE_END = re.compile(r"[.!?…。！？।]+[\"'”’)\]*_]*(?=\s|$)")
_ABBREVIATION = re.compile(r"(?:\b(?:mr|mrs|ms|dr|prof|st|vs|etc|e\.g|i\.e|fig)|\b[a-z](?:\.[a-z])+)$", re.I)
_HIGHLIGHT = re.compile(r"\*\*[^\n*]*[^\s*][^\n*]*\*\*|\*[^\n*]*[^\s*][^\n*]*\*")
_BULLET = re.compile(r"^\s*(?:\*(?!\*)|-)", re.MULTILINE)
_FENCE = re.compile(r"\A```(?:json)?(.*?)```\Z", re.DOTALL | re.I)
_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_POSTSCRIPTS = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}


@dataclass(frozen=True)
class Instruction:
    """One instruction: its kind, a key of ``KINDS``, and its arguments."""

    id: str
    arguments: dict[str, Any]


def read_instructions(answer: str) -> list[Instruction]:
    """The instructions of a gold answer.

    Raises:
        ValueError: it is no such list, a kind is not known, or its arguments do not fit; says which.
    """
    try:
        listed = json.loads(answer)
    except ValueError as error:
        raise ValueError(f"is no JSON ({error})") from None
    if not isinstance(listed, list) or not listed or not all(isinstance(one, dict) for one in listed):
        raise ValueError("is no list of instructions such as [{'id': 'punctuation:no_comma'}]")
    return [_instruction(one) for one in listed]


def broken_instructions(output: str, instructions: Sequence[Instruction]) -> list[str]:
    """The kinds of the instructions that an output does not follow; a blank one follows none."""
    blank = not output.strip()
    return [one.id for one in instructions if blank or not KINDS[one.id](output, **one.arguments)]


def _instruction(given: dict[str, Any]) -> Instruction:
    arguments = {name: value for name, value in given.items() if name != "id" and value is not None}
    kind = str(given.get("id"))
    if kind not in KINDS:
        raise ValueError(f"names the instruction {kind!r}, which is none of {', '.join(sorted(KINDS))}")
    signature = inspect.signature(KINDS[kind])
    try:
        signature.bind("", **arguments)
    except TypeError as error:
        raise ValueError(f"has the instruction {kind} with other arguments than it takes: {error}") from None
    for name, value in arguments.items():
        _check_argument(kind, name, value, str(signature.parameters[name].annotation))
    return Instruction(kind, arguments)


def _check_argument(kind: str, name: str, value: Any, annotation: str) -> None:
    fits = {
        "int": isinstance(value, int) and not isinstance(value, bool),
        "str": isinstance(value, str) and value != "",
        "list[str]": isinstance(value, list) and all(isinstance(one, str) and one for one in value),
    }[annotation]
    if not fits:
        raise ValueError(f"has the instruction {kind} with {name} = {value!r}; expected {annotation}")
    if name.endswith("relation") and value not in ("less than", "at least"):
        raise ValueError(f"has the instruction {kind} with {name} = {value!r}; expected 'less than' or 'at least'")
    if name == "language" and value not in LANGUAGES:
        raise ValueError(f"asks for the language {value!r}, which is none of {', '.join(sorted(LANGUAGES))}")


def _compare(count: int, relation: str, threshold: int) -> bool:
    return count < threshold if relation == "less than" else count >= threshold


def _keywords_exist(text: str, keywords: list[str]) -> bool:
    return all(keyword.lower() in text.lower() for keyword in keywords)


def _keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _compare(text.lower().count(keyword.strip().lower()), relation, frequency)


def _forbidden_words(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.I) for word in forbidden_words)


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _compare(text.lower().count(letter.lower()), let_relation, let_frequency)


def _response_language(text: str, language: str) -> bool:
    return speaks(text, language)


def _number_of_sentences(text: str, num_sentences: int, relation: str) -> bool:
    places = [match.span() for match in _SENTENCE_END.finditer(text)]
    ends = [end for start, end in places if not _ABBREVIATION.search(text[max(0, start - 12) : start])]
    rest = text[ends[-1] :] if ends else text
    return _compare(len(ends) + bool(_WORD.search(rest)), relation, num_sentences)


def _number_of_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Between dividers ``***``; only before the first and after the last may nothing stand."""
    parts = [part.strip() for part in text.split("***")]
    inner = parts[bool(not parts[0]) : len(parts) - bool(not parts[-1])]
    return all(inner) and len(inner) == num_paragraphs


def _number_of_words(text: str, num_words: int, relation: str) -> bool:
    return _compare(len(_WORD.findall(text)), relation, num_words)


def _nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    paragraphs = [part.strip() for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    first = re.split(r"[.,?!'\"]", paragraphs[nth_paragraph - 1].split()[0].lstrip("'\""))[0]
    return first.lower() == first_word.lower()


def _number_of_placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[.*?\]", text)) >= num_placeholders


def _postscript(text: str, postscript_marker: str) -> bool:
    marker = _POSTSCRIPTS.get(postscript_marker.strip(), re.escape(postscript_marker.strip()))
    return re.search(marker, text, re.I) is not None


def _number_of_bullets(text: str, num_bullets: int) -> bool:
    return len(_BULLET.findall(text)) == num_bullets


def _constrained_response(text: str) -> bool:
    return any(option in text for option in _OPTIONS)


def _number_of_highlights(text: str, num_highlights: int) -> bool:
    return len(_HIGHLIGHT.findall(text)) >= num_highlights


def _multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", text)) >= num_sections


def _json_format(text: str) -> bool:
    fenced = _FENCE.match(text.strip())
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    return any(title.strip("<> ") for title in re.findall(r"<<[^\n]+>>", text))


def _two_responses(text: str) -> bool:
    """Two different ones between ``******``; only before the first and after the last may nothing stand."""
    parts = [part.strip() for part in text.split("******")]
    inner = parts[bool(not parts[0]) : len(parts) - bool(not parts[-1])]
    return len(inner) == 2 and all(inner) and inner[0] != inner[1]


def _repeat_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _end_phrase(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return _compare(sum(word.isupper() for word in _CAPITALS.findall(text)), capital_relation, capital_frequency)


def _all_capital(text: str) -> bool:
    return text.isupper() and speaks(text, "en")


def _all_lowercase(text: str) -> bool:
    return text.islower() and speaks(text, "en")


def _no_comma(text: str) -> bool:
    return "," not in text


KINDS: dict[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": _capital_words,
    "change_case:english_capital": _all_capital,
    "change_case:english_lowercase": _all_lowercase,
    "combination:repeat_prompt": _repeat_prompt,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": _number_of_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:json_format": _json_format,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:number_bullet_lists": _number_of_bullets,
    "detectable_format:number_highlighted_sections": _number_of_highlights,
    "detectable_format:title": _title,
    "keywords:existence": _keywords_exist,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:frequency": _keyword_frequency,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "length_constraints:number_paragraphs": _number_of_paragraphs,
    "length_constraints:number_sentences": _number_of_sentences,
    "length_constraints:number_words": _number_of_words,
    "punctuation:no_comma": _no_comma,
    "startend:end_checker": _end_phrase,
    "startend:quotation": _quotation,
}
"""Kind -> whether a text follows it; kinds and arguments are named as in IFEval."""
