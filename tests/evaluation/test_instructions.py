"""Every kind of instruction with outputs that follow it and outputs that do not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from isodistill.errors import UserError
from isodistill.evaluation import verify
from isodistill.evaluation.instructions import KINDS, broken_instructions, read_instructions
from isodistill.evaluation.verify import with_reason

CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    ("punctuation:no_comma", {}, ["No pause here."], ["First, a pause."]),
    (
        "keywords:existence",
        {"keywords": ["river", "stone"]},
        ["A River runs over stones."],
        ["A river runs.", "A stone."],
    ),
    (
        "keywords:forbidden_words",
        {"forbidden_words": ["rock", "c++"]},
        ["Rocket science.", "Language c."],
        ["A Rock.", "rock-hard", "I know C++ well."],
    ),
    (
        "keywords:frequency",
        {"keyword": "sea", "frequency": 2, "relation": "at least"},
        ["Sea and sea."],
        ["One sea."],
    ),
    (
        "keywords:frequency",
        {"keyword": "sea", "frequency": 2, "relation": "less than"},
        ["One sea."],
        ["Sea and sea."],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "t", "let_frequency": 3, "let_relation": "at least"},
        ["That cat"],
        ["A cat"],
    ),
    (
        "keywords:letter_frequency",
        {"letter": "#", "let_frequency": 1, "let_relation": "less than"},
        ["plain"],
        ["#tag"],
    ),
    (
        "language:response_language",
        {"language": "de"},
        ["Das ist nicht der Weg, den wir gehen.", "123"],
        ["This is not the way that we go.", "Это не тот путь."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 3, "relation": "at least"},
        ["One. Two! Three?", "So do I. You, too. Plan B.", 'He said "No." Then he left. End.'],
        ["Dr. Smith met Mr. Jones at 5.30 p.m. sharp. He left."],
    ),
    (
        "length_constraints:number_sentences",
        {"num_sentences": 2, "relation": "less than"},
        ["No stop at all", "One."],
        ["One. Two", "One. Two."],
    ),
    (
        "length_constraints:number_paragraphs",
        {"num_paragraphs": 2},
        ["One\n***\nTwo", "***\nOne\n***\nTwo\n***"],
        ["One\n\nTwo", "One\n***\n***\nTwo", "One\n***\nTwo\n***\nThree"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "at least"},
        ["one two three four"],
        ["one two, three!"],
    ),
    (
        "length_constraints:number_words",
        {"num_words": 4, "relation": "less than"},
        ["one two three"],
        ["one two three four"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Weekend"},
        ['Hello.\n\n"Weekend, at last."', "Hello.\n\n\n\nweekend"],
        ["Weekend.\n\nHello.", "Weekend", "One.\n\nWeekend.\n\nThree."],
    ),
    (
        "detectable_content:number_placeholders",
        {"num_placeholders": 2},
        ["Dear [name], from [place]."],
        ["Dear [name]."],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.S."},
        ["Bye.\nP.S. One more.", "bye p. s. more"],
        ["Bye. PS none"],
    ),
    (
        "detectable_content:postscript",
        {"postscript_marker": "P.P.S"},
        ["Bye.\nP.P.S One more."],
        ["Bye.\nP.S. One more."],
    ),
    (
        "detectable_format:constrained_response",
        {},
        ["My answer is maybe."],
        ["my answer is maybe", "Perhaps."],
    ),
    (
        "detectable_format:json_format",
        {},
        ['{"a": [1]}', '```json\n{"a": 1}\n```', "```\n[]\n```"],
        ["{'a': 1}", 'Here: {"a": 1}', "[" * 100_000],
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        ["SECTION 1\na\nSECTION 2\nb"],
        ["SECTION 1\na", "Section 1 Section 2"],
    ),
    (
        "detectable_format:number_bullet_lists",
        {"num_bullets": 2},
        ["* a\n* b", "- a\n - b", "* a\n**bold**\n- b"],
        ["* a", "- a\n- b\n- c"],
    ),
    (
        "detectable_format:number_highlighted_sections",
        {"num_highlights": 2},
        ["*one* and *two*", "**one** and *two*"],
        ["*one*", "** ** and *one*", "*one\n*two"],
    ),
    ("detectable_format:title", {}, ["<<A poem>>\nRoses"], ["<< >>", "A poem", "<poem>"]),
    (
        "combination:two_responses",
        {},
        ["One\n******\nTwo", "******One******Two******"],
        ["One", "One******One", "One******Two******Three", "One******\n******Two"],
    ),
    (
        "combination:repeat_prompt",
        {"prompt_to_repeat": "Say it twice."},
        [" say it twice. It."],
        ["It. Say it twice."],
    ),
    (
        "startend:end_checker",
        {"end_phrase": "That is all."},
        ["Well. That is ALL.", '"Well. That is all."\n'],
        ["That is all. Bye"],
    ),
    ("startend:quotation", {}, ['"Well."', ' "Well."\n'], ['"Well.', "Well.", '"']),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        ["NASA and ESA-NET met.", "I AM."],
        ["NASA met Esa."],
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        ["Only NASA."],
        ["NASA and ESA."],
    ),
    ("change_case:english_capital", {}, ["THIS IS LOUD.", "HI!"], ["This is loud.", "DAS IST NICHT DER WEG"]),
    ("change_case:english_lowercase", {}, ["this is quiet."], ["This is quiet.", "das ist nicht der weg"]),
]


def answer(kind: str, arguments: dict[str, Any]) -> str:
    return json.dumps([{"id": kind, **arguments}])


@pytest.mark.parametrize(("kind", "arguments", "following", "breaking"), CASES)
def test_each_kind_tells_outputs_apart(
    kind: str, arguments: dict[str, Any], following: list[str], breaking: list[str]
) -> None:
    for output in following:
        assert verify(output, answer(kind, arguments), "instructions") == "correct", output
    for output in breaking:
        assert with_reason(output, answer(kind, arguments), "instructions") == ("wrong", kind), output


def test_every_kind_is_tried_above() -> None:
    assert {kind for kind, *_ in CASES} == set(KINDS)
    assert len(KINDS) == 25


def test_an_output_follows_all_or_is_wrong_and_every_broken_one_is_told() -> None:
    asked = read_instructions(json.dumps([
        {"id": "punctuation:no_comma"}, {"id": "startend:quotation"}, {"id": "detectable_format:title"},
    ]))  # fmt: skip
    assert broken_instructions('"Yes, <<this>>"', asked) == ["punctuation:no_comma"]
    assert broken_instructions("Yes, this", asked) == [one.id for one in asked]
    assert broken_instructions("  ", asked) == [one.id for one in asked]  # saying nothing follows nothing


def test_an_output_that_was_cut_off_is_judged_as_it_stands() -> None:
    no_comma = answer("punctuation:no_comma", {})
    assert verify("So far so good and", no_comma, "instructions", finish="length") == "correct"
    assert verify("Well, so far", no_comma, "instructions", finish="length") == "truncated"
    assert verify("", no_comma, "instructions") == "unparsed"


@pytest.mark.parametrize(
    ("gold", "message"),
    [
        ("no commas", "is no JSON"),
        ("[]", "is no list of instructions"),
        ('{"id": "punctuation:no_comma"}', "is no list of instructions"),
        ('[{"id": "punctuation:no_colon"}]', "which is none of"),
        ('[{"id": "punctuation:no_comma", "n": 1}]', "unexpected keyword argument 'n'"),
        ('[{"id": "detectable_format:number_bullet_lists"}]', "missing a required argument: 'num_bullets'"),
        ('[{"id": "detectable_format:number_bullet_lists", "num_bullets": "3"}]', "num_bullets = '3'; expected int"),
        ('[{"id": "keywords:existence", "keywords": [1]}]', "expected list"),
        (
            '[{"id": "length_constraints:number_words", "num_words": 3, "relation": "over"}]',
            "'less than' or 'at least'",
        ),
        ('[{"id": "language:response_language", "language": "tlh"}]', "the language 'tlh', which is none of"),
    ],
)
def test_a_gold_answer_that_cannot_verify_is_an_error_that_says_why(gold: str, message: str) -> None:
    with pytest.raises(UserError, match="cannot be read as answer_type 'instructions'") as error:
        verify("x", gold, "instructions")
    assert message in str(error.value)
