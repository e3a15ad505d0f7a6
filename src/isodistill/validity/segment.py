"""Where the steps of a trace begin: by its text, then by its tokens, so that every token belongs to one step.

    text     "6 x 4 = 24. 24 - 5 = 19. The answer is 19."
    steps    0 ......... 12 ........ 25 ................       first characters, ``sentences``

A step ends with what ends it and the white space after it. A token belongs to the step of its last character; a step
without a token of its own joins its neighbour.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["segment", "stops", "text_ends", "token_steps", "written_ends"]

_ENDS = {
    "lines": re.compile(r"\n\s*"),
    "paragraphs": re.compile(r"\n[ \t]*\n\s*"),
    "sentences": re.compile(r"(?<=[.!?])\s+|\n\s*"),
}
_STOPS: dict[str, tuple[str, ...]] = {
    "lines": ("\n",),
    "paragraphs": ("\n\n",),
    "sentences": (". ", "! ", "? ", "\n"),
    "statements": (),  # whether a line ends a statement hangs on the brackets that are open
}
_STRING = re.compile(r"'''|\"\"\"|'(?:\\.|[^'\\\n])*'|\"(?:\\.|[^\"\\\n])*\"|#[^\n]*")


def segment(text: str, kind: str) -> list[int]:
    """First characters of the steps of ``text``, 0 the first of them; steps of white space alone join the one before.

    Args:
        text: a trace; one without a single end is one step.
        kind: sentences (after . ! ? with white space, and at newlines), lines, paragraphs (at blank lines), or
            statements (at newlines outside brackets and long strings, and not after a backslash).
    """
    ends = _statement_ends(text) if kind == "statements" else [found.end() for found in _ENDS[kind].finditer(text)]
    starts = [0]
    for end in ends:
        if text[starts[-1] : end].strip() and text[end:].strip():
            starts.append(end)
    return starts


def stops(kind: str) -> tuple[str, ...]:
    """Texts after which a proposed step may be over, so that nothing more need be generated."""
    return _STOPS[kind]


def text_ends(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Where each token of ``text`` ends in it, by a fast tokenizer."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(accumulate((end for _, end in found["offset_mapping"]), max))


def written_ends(tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Where each of some written tokens ends in their text; read again, that text might have other tokens."""
    lengths = (len(tokenizer.decode(tokens[: n + 1], skip_special_tokens=True)) for n in range(len(tokens)))
    return list(accumulate(lengths, max))


def token_steps(text: str, kind: str, ends: Sequence[int]) -> tuple[list[int], list[str]]:
    """Number of the first token of each step of a completion, and the steps' texts, which join to ``text``.

    Args:
        text: the completion.
        kind: see ``segment``.
        ends: where each of its tokens ends.
    """
    starts = segment(text, kind)
    firsts, step = [0], 0
    for t, end in enumerate(ends):
        while step + 1 < len(starts) and end > starts[step + 1]:
            step += 1
            if firsts[-1] < t:  # else the step before had no token of its own
                firsts.append(t)
    borders = [0, *(ends[t - 1] for t in firsts[1:]), len(text)]
    return firsts, [text[a:b] for a, b in pairwise(borders)]


def _statement_ends(text: str) -> list[int]:
    """Ends of logical lines: newlines outside brackets, after no backslash, and not inside a long string."""
    ends, depth, place = [], 0, 0
    while place < len(text):
        found = _STRING.match(text, place)
        if found is not None:
            long = found[0] in ("'''", '"""')
            close = text.find(found[0], found.end()) if long else -1
            place = close + 3 if close >= 0 else len(text) if long else found.end()
            continue
        depth = max(0, depth + (text[place] in "([{") - (text[place] in ")]}"))
        if text[place] == "\n" and not depth and text[place - 1 : place] != "\\":
            ends.append(place + 1)
        place += 1
    return ends
