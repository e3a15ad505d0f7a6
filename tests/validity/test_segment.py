"""Steps of a trace: by hand, and for any text every token in one step and the text got back."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from isodistill.objectives.steps import SEGMENTS
from isodistill.validity import segment, text_ends, token_steps, written_ends

CODE = (
    "def f(x):\n    y = [1,\n      2]\n\n    s = 'a\\'('\n    return \\\n       y\n# it's (\nprint('''(\n''')\nf(3)\n"
)


def pieces(text: str, kind: str) -> list[str]:
    starts = [*segment(text, kind), len(text)]
    return [text[a:b] for a, b in pairwise(starts)]


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("sentences", "6 x 4 = 24. 24 - 5 = 19.5! Yes", ["6 x 4 = 24. ", "24 - 5 = 19.5! ", "Yes"]),
        ("sentences", "a\nb. ", ["a\n", "b. "]),
        ("lines", "\n\na = 1.\n\n  b\n", ["\n\na = 1.\n\n  ", "b\n"]),
        ("paragraphs", "a\nb\n \nc\n\n\nd", ["a\nb\n \n", "c\n\n\n", "d"]),
        ("lines", "no end", ["no end"]),
        ("sentences", " . ", [" . "]),
    ],
)
def test_by_hand(kind: str, text: str, expected: list[str]) -> None:
    assert pieces(text, kind) == expected


def test_a_statement_ends_outside_brackets_strings_and_backslashes() -> None:
    assert pieces(CODE, "statements") == [
        "def f(x):\n", "    y = [1,\n      2]\n", "\n    s = 'a\\'('\n", "    return \\\n       y\n", "# it's (\n",
        "print('''(\n''')\n", "f(3)\n",
    ]  # fmt: skip


def test_every_token_lies_in_one_step(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "6 x 4 = 24. 24 - 5 = 19. The answer is 19."
    firsts, steps = token_steps(text, "sentences", text_ends(text, tokenizer))
    assert [step.strip() for step in steps] == ["6 x 4 = 24.", "24 - 5 = 19.", "The answer is 19."]
    ids = tokenizer("".join(steps), add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids[firsts[1] : firsts[2]]).strip() == "24 - 5 = 19."


def test_a_token_that_ends_a_step_belongs_to_it() -> None:
    assert token_steps("a\nb", "lines", [1, 2, 3]) == ([0, 2], ["a\n", "b"])
    assert token_steps("a. b", "sentences", [1, 2, 4]) == ([0, 2], ["a.", " b"])  # the space goes with its token
    assert token_steps("a\nb\nc", "lines", [1, 4, 5]) == ([0, 1, 2], ["a", "\nb\n", "c"])


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("ab1.! \n\t(['\"#\\é", min_size=1, max_size=40), kind=st.sampled_from(SEGMENTS))
def test_steps_join_to_the_text_and_none_is_empty(tokenizer: PreTrainedTokenizerFast, text: str, kind: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    n, ends = len(ids), text_ends(text, tokenizer)
    firsts, steps = token_steps(text, kind, ends)
    if text.isascii():  # inside a character of several bytes the two place their ends differently
        assert written_ends(ids, tokenizer) == ends
    assert "".join(steps) == text
    assert len(firsts) == len(steps)
    assert firsts[0] == 0
    assert all(a < b for a, b in zip(firsts, [*firsts[1:], n], strict=True))
    if text.strip():
        assert all(piece.strip() for piece in pieces(text, kind))
