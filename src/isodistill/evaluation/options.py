"""How a student spreads its probability over the answer options of an item: pi of lcs_js.

Our definition (the source of the score is not public): pi is read where the answer is given, at its own place in the
student's own output, so that its reasoning counts and nothing has to be computed again. With T the token of the output
in which the last marked answer begins, and l the student's logits for that place,

    pi_a = sum_{t in F_a} exp(l_t) / sum_b sum_{t in F_b} exp(l_t)

F_a are the spellings of option a (yes: " yes", "Yes", " true", ...; a choice: its letter) that are one token; where
none is, the first tokens of its spellings; less the tokens that two options have in common. The sums leave out all
other tokens: pi says how the options share what they have.
Behind an output without a marked answer (cut where the context would not hold both) the words "The answer is" are put
on a new line, and l is taken after them, in the same pass where the output need not be cut. It is always the
distribution at temperature 1. Options: A, B, ... for ``choice`` rows that list them, (yes, no) for ``yesno``; their
order is structural, so it is the same for all members of a set.

Cost: a few logits per token kept, and the tokens of these words behind an output without an answer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from string import ascii_uppercase
from typing import TypeAlias

from scipy.special import logsumexp, softmax
from transformers import PreTrainedTokenizerBase

from isodistill.data.rows import ANSWER_SENTENCE, Row
from isodistill.evaluation.backends import Backend
from isodistill.evaluation.generate import Generation
from isodistill.evaluation.parse import answer_start

__all__ = ["Options", "distributions", "option_tokens", "watched_tokens", "words_behind"]

Options: TypeAlias = list[list[int]]
"""F: for each option the tokens that tell it."""

_CUE = "\n" + ANSWER_SENTENCE.partition("{answer}")[0].rstrip()
_YES_NO = (("yes", "Yes", "true", "True"), ("no", "No", "false", "False"))


def option_tokens(row: Row, tokenizer: PreTrainedTokenizerBase) -> Options | None:
    """F of a row; None for a row without options, or where an option has no token of its own."""
    spellings: Sequence[Sequence[str]]
    if row.answer_type == "yesno":
        spellings = _YES_NO
    elif row.answer_type == "choice" and row.choices:
        spellings = list(ascii_uppercase[: len(row.choices)])
    else:
        return None
    first = []
    for option in spellings:
        texts = [space + spelling for spelling in option for space in (" ", "")]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        first.append({tokens[0] for tokens in ids if len(tokens) == 1} or {tokens[0] for tokens in ids})
    owners = Counter(token for option in first for token in option)
    options = [sorted(token for token in option if owners[token] == 1) for option in first]
    return options if all(options) else None


def watched_tokens(options: Iterable[Options | None]) -> list[int]:
    """All tokens of the options of some rows: what `generate` has to watch."""
    return sorted({token for each in options for option in each or () for token in option})


def words_behind(
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    options: Sequence[Options | None],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
) -> Callable[[int, Generation], list[int]]:
    """What `generate` has to read behind the answer to a prompt: the words, where pi needs them and they have room."""
    cue: list[int] = tokenizer(_CUE, add_special_tokens=False)["input_ids"]

    def follow(index: int, generation: Generation) -> list[int]:
        fits = len(prompts[index]) + len(generation.tokens) + len(cue) < context
        needed = options[index] is not None and _place(rows[index], generation, tokenizer) is None
        return cue if fits and needed else []

    return follow


def distributions(
    backend: Backend,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    options: Sequence[Options | None],
    generations: Sequence[Generation],
    *,
    batch_size: int,
) -> list[list[float] | None]:
    """pi (A,) of every answer; None where the row has no options, or no room for the words.

    Args:
        backend: who gave the answers.
        tokenizer: its tokenizer.
        rows: N rows.
        prompts: their token ids.
        options: their F.
        generations: their answers, with the `watched_tokens` of all options watched, and followed by `words_behind`.
        batch_size: outputs without an answer asked side by side.
    """
    places = [
        None if o is None else _place(row, g, tokenizer) for row, g, o in zip(rows, generations, options, strict=True)
    ]
    logits = [g.followed if place is None else g.watched[place] for g, place in zip(generations, places, strict=True)]
    watch = watched_tokens(options)
    cue = tokenizer(_CUE, add_special_tokens=False)["input_ids"]
    room = backend.context - len(cue) - 1
    asked = [
        i
        for i, o in enumerate(options)
        if o is not None and places[i] is None and generations[i].followed is None and len(prompts[i]) <= room
    ]
    again = (
        backend.generate(
            tokenizer,
            [[*prompts[i], *generations[i].tokens][:room] + cue for i in asked],
            max_new_tokens=1,
            batch_size=batch_size,
            watch=watch,
        )
        if asked
        else []
    )
    for i, generation in zip(asked, again, strict=True):
        logits[i] = generation.watched[0]
    return [
        None if o is None or values is None else _shares(dict(zip(watch, values, strict=True)), o)
        for values, o in zip(logits, options, strict=True)
    ]


def _place(row: Row, generation: Generation, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Index of the token in which the answer begins; None without a marked answer."""
    assert row.answer_type is not None
    start = answer_start(generation.text, row.answer_type, row.choices)
    if start is None:
        return None
    n = len(generation.tokens)
    return bisect_left(
        range(n), start, key=lambda i: len(tokenizer.decode(generation.tokens[: i + 1], skip_special_tokens=True)) - 1
    )


def _shares(logits: Mapping[int, float], options: Options) -> list[float]:
    """pi from the logits of the tokens."""
    scores = [logsumexp([float(logits[token]) for token in option]) for option in options]
    return [round(float(share), 10) for share in softmax(scores)]
