"""Batched generation: finished rows leave the batch, waiting prompts take their place.

Prompts are taken longest first, so that those computed together have nearly one length. Greedy by default, with the
next tokens guessed from earlier answers and checked in one forward (``Drafts``), which leaves the answer as it is; with
a temperature every prompt draws from a random stream of its own, so what is in the batch beside it changes nothing but
rounding.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isodistill.errors import UserError
from isodistill.evaluation.decoding import Decoder, ForwardDecoder
from isodistill.evaluation.drafts import Drafts
from isodistill.evaluation.llama import LlamaDecoder, why_not_llama

__all__ = ["Generation", "generate", "merged_copy"]

_log = logging.getLogger(__name__)

_PREFILL_TOKENS = 1024
"""Most prompt tokens computed at once; 500 to 1,000 were fastest on two cores, as more leave the cache."""


@dataclass(frozen=True)
class Generation:
    """What the model answered to one prompt.

    Attributes:
        tokens: the new tokens, without the stop token; a stop string that ended the answer is still among them.
        text: ``tokens`` decoded, without special tokens, up to the first stop string.
        finish: ``eos`` when a stop token or a stop string ended the answer, ``length`` when it was cut at
            ``max_new_tokens``.
        hidden: hidden state (d,) of the last prompt token, last layer after the final norm, fp32 (specs: z of the LCS).
        watched: (T, W) for every token chosen, the ending one included, the logits there of the W tokens watched, fp32.
        followed: (W,) the logits behind the tokens that ``follow`` put after the answer; None where it put none.
    """

    tokens: list[int]
    text: str
    finish: Literal["eos", "length"]
    hidden: np.ndarray | None
    watched: np.ndarray
    followed: np.ndarray | None = None


@dataclass(frozen=True)
class _Ending:
    """What ends an answer: one of the tokens ``ids``, one of ``strings`` in the text, or ``max_new_tokens``."""

    ids: frozenset[int]
    strings: Sequence[str]
    max_new_tokens: int
    decode: Callable[[list[int]], str]

    def cut(self, tokens: list[int]) -> str | None:
        """The text of ``tokens`` up to its first stop string; None where there is none."""
        if not self.strings:
            return None
        text = self.decode(tokens)
        ends = [text.find(string) for string in self.strings if string in text]
        return text[: min(ends)] if ends else None


@dataclass
class _Row:
    """A prompt on its way: its place in the caller's list, its random stream, and what it has answered so far.

    Attributes:
        tokens: of the answer, the one that ends it included.
        done: the answer is finished.
        cue: what is still to be read behind it.
    """

    index: int
    prompt: Sequence[int]
    rng: np.random.Generator | None = None
    hidden: np.ndarray | None = None
    tokens: list[int] = field(default_factory=list)
    watched: list[np.ndarray] = field(default_factory=list)
    finish: Literal["eos", "length"] = "length"
    done: bool = False
    cue: list[int] = field(default_factory=list)
    followed: np.ndarray | None = None

    def answer(self, ending: _Ending) -> Generation:
        """What has been answered, as the caller gets it."""
        tokens = self.tokens[:-1] if self.tokens[-1] in ending.ids else self.tokens
        text = ending.cut(tokens)
        text = ending.decode(tokens) if text is None else text
        return Generation(tokens, text, self.finish, self.hidden, np.stack(self.watched), self.followed)


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    stop_ids: Sequence[int] | None = None,
    stop_strings: Sequence[str] = (),
    temperature: float = 0.0,
    seeds: Sequence[int] | None = None,
    watch: Sequence[int] = (),
    follow: Callable[[int, Generation], Sequence[int]] | None = None,
    on_done: Callable[[int, Generation], None] | None = None,
) -> list[Generation]:
    """Answer every prompt; the answers come in the order of the prompts.

    Llama-like models run layer by layer (``LlamaDecoder``), all others through their own forward; which, and why, is
    logged. Merge an adapter first (``merged_copy``): unmerged it is slower. The model's mode is left as found.

    Args:
        model: a decoder-only causal language model; it answers in the dtype it has.
        tokenizer: decodes the answers.
        prompts: token ids, at least one per prompt; no padding.
        max_new_tokens: most new tokens per answer, the ending token included.
        batch_size: most prompts answered at a time.
        stop_ids: tokens that end an answer; default those of ``model.generation_config`` and the tokenizer's eos.
        stop_strings: texts that end an answer too, wherever the borders of tokens lie.
        temperature: 0 takes the likeliest token; above 0 samples from softmax(logits / temperature).
        seeds: one per prompt, needed with a temperature.
        watch: tokens whose logits are kept at every step.
        follow: called with (index, answer) when an answer is finished; the tokens it returns are read behind it, and
            the watched logits after them kept. They cost their own positions and no new prompt, and may pass the
            limit of ``max_new_tokens``; room in the context is the caller's to see to.
        on_done: called with (index, answer) as soon as an answer is finished, in no particular order. What it raises
            ends the generation and reaches the caller.

    Raises:
        UserError: an empty prompt, a prompt that leaves no room for ``max_new_tokens`` in the model's context, a
            negative temperature, seeds missing or not one per prompt, an empty stop string, or a model that is
            not decoder-only.
    """
    _check(model, prompts, max_new_tokens, batch_size, temperature, seeds, stop_strings)
    if not prompts:
        return []
    ending = _Ending(
        frozenset(_default_stop_ids(model, tokenizer) if stop_ids is None else stop_ids),
        stop_strings,
        max_new_tokens,
        lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True),
    )
    waiting = _waiting(prompts, seeds if temperature > 0 else None)
    done: dict[int, Generation] = {}
    with torch.no_grad(), _evaluating(model):
        decoder = _decoder(model, prompts, batch_size)
        for row in _finished(decoder, waiting, batch_size, temperature, ending, watch, follow):
            done[row.index] = row.answer(ending)
            if on_done is not None:
                on_done(row.index, done[row.index])
    return [done[i] for i in range(len(prompts))]


def merged_copy(peft_model: PeftModel, dtype: torch.dtype) -> PreTrainedModel:
    """A plain model for inference with the adapter merged: W = W0 + s B A in fp32, then cast to ``dtype``.

    The original model, its adapter and its mode stay as they are.
    """
    merged = copy.deepcopy(peft_model).float().merge_and_unload()
    return merged.to(dtype).eval().requires_grad_(False)


def _check(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
    temperature: float,
    seeds: Sequence[int] | None,
    stop_strings: Sequence[str],
) -> None:
    if max_new_tokens < 1 or batch_size < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens} and batch_size {batch_size}: both must be at least 1.")
    if temperature < 0:
        raise UserError(f"temperature is {temperature}: use 0 for the likeliest token or a positive number to sample.")
    if temperature > 0 and (seeds is None or len(seeds) != len(prompts)):
        given = "no" if seeds is None else len(seeds)
        raise UserError(f"Sampling needs one seed per prompt: there are {len(prompts)} prompts and {given} seeds.")
    if isinstance(stop_strings, str) or "" in stop_strings:
        raise UserError(f"stop_strings is {stop_strings!r}: give a list of texts, none of them empty.")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", math.inf)
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"Prompt {i} is empty: a prompt needs at least one token.")
        if len(prompt) + max_new_tokens > context:
            raise UserError(
                f"Prompt {i} has {len(prompt)} tokens and max_new_tokens is {max_new_tokens}: together more than the "
                f"model's context of {context}. Shorten the prompt or lower max_new_tokens."
            )


def _waiting(prompts: Sequence[Sequence[int]], seeds: Sequence[int] | None) -> list[_Row]:
    """A row for every prompt, the longest last, each with its random stream where there are seeds."""
    rngs = [None] * len(prompts) if seeds is None else [np.random.default_rng(seed) for seed in seeds]
    rows = [_Row(i, prompt, rng) for i, (prompt, rng) in enumerate(zip(prompts, rngs, strict=True))]
    return sorted(rows, key=lambda row: len(row.prompt))


def _default_stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    eos = model.generation_config.eos_token_id
    ids = [eos] if isinstance(eos, int) else list(eos or [])
    return ids + ([] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id])


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """No dropout inside; afterwards every module is in the mode it had."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _decoder(model: PreTrainedModel, prompts: Sequence[Sequence[int]], batch_size: int) -> Decoder:
    reason = why_not_llama(model)
    if reason is not None:
        _log.info("Generating through the model's own forward, because %s.", reason)
        return ForwardDecoder(model)
    _log.info("Generating layer by layer.")
    return LlamaDecoder(model, min(batch_size, len(prompts)), _common_prefix(prompts))


def _common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts begin with, leaving at least one token to each; none for a single prompt."""
    if len(prompts) == 1:
        return []
    low, high = min(prompts, key=list), max(prompts, key=list)
    limit = min(len(p) for p in prompts) - 1
    shared = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), limit)
    return list(low[: min(shared, limit)])


def _finished(
    decoder: Decoder,
    waiting: list[_Row],
    batch_size: int,
    temperature: float,
    ending: _Ending,
    watch: Sequence[int],
    follow: Callable[[int, Generation], Sequence[int]] | None,
) -> Iterator[_Row]:
    """Run all of ``waiting``, from its end, through the decoder; each row as soon as it is finished."""
    rows: list[_Row] = []
    drafts = Drafts() if decoder.drafts and temperature == 0 else None
    columns: Tensor | None = None
    while rows or waiting:
        runs = [_next_run(row, drafts, ending) for row in rows]
        logits = [decoder.step(runs)] if rows else []
        for group in _admitted(waiting, len(rows), batch_size):
            first, hidden = decoder.prefill([row.prompt for row in group])
            logits.append(first)
            for row, z in zip(group, hidden.float().cpu().numpy(), strict=True):
                row.hidden = z
                if drafts is not None:
                    drafts.learn(row.prompt, len(row.prompt))
            rows += group
            runs += [[row.prompt[-1]] for row in group]
        scores = torch.cat(logits)
        if columns is None:
            columns = torch.tensor(watch, dtype=torch.long, device=scores.device)
        seen = iter(scores[:, columns].float().cpu().numpy())
        chosen = iter(_choose(scores, temperature, [row.rng for row in rows]))
        alive, undone = [], []
        for row, run in zip(rows, runs, strict=True):
            picked, values, taken = [next(chosen) for _ in run], [next(seen) for _ in run], len(run)
            if row.done:
                row.followed = values[-1]
            else:
                taken = _take(row, picked, run[1:], ending)
                row.watched += values[:taken]
                if drafts is not None:
                    drafts.learn([*row.prompt, *row.tokens], taken)
                row.done = row.finish == "eos" or len(row.tokens) >= ending.max_new_tokens
                if row.done and follow is not None:
                    row.cue = _behind(row, follow(row.index, row.answer(ending)), ending)
            undone.append(len(run) - taken)
            alive.append(bool(row.cue) or not row.done)
            if not alive[-1]:
                yield row
        if any(undone):
            decoder.undo(undone)
        if not all(alive):
            order = _compacted(alive)
            decoder.keep(order)
            rows = [rows[i] for i in order]


def _next_run(row: _Row, drafts: Drafts | None, ending: _Ending) -> list[int]:
    """What a row reads next: its last token and guesses, or the cue behind its answer; one token without drafts."""
    if row.done:
        run, row.cue = (row.cue, []) if drafts is not None else (row.cue[:1], row.cue[1:])
        return run
    room = ending.max_new_tokens - len(row.tokens) - 1
    return [row.tokens[-1], *(drafts.guess([*row.prompt, *row.tokens], room) if drafts is not None else [])]


def _behind(row: _Row, cue: Sequence[int], ending: _Ending) -> list[int]:
    """The tokens to read for a cue: the last of the answer has not been read yet, and a stop token never is."""
    return [*row.tokens[-1:], *cue] if cue and row.tokens[-1] not in ending.ids else list(cue)


def _take(row: _Row, chosen: list[int], guess: list[int], ending: _Ending) -> int:
    """Give a row the tokens chosen after its last one and after each guess, as far as guesses were right; how many."""
    for taken, (token, guessed) in enumerate(zip(chosen, [*guess, None], strict=True), start=1):
        row.tokens.append(token)
        if token in ending.ids or ending.cut(row.tokens) is not None:
            row.finish = "eos"
        if row.finish == "eos" or token != guessed:
            return taken
    raise AssertionError("the last guess is None, which no token equals")


def _admitted(waiting: list[_Row], active: int, batch_size: int) -> Iterator[list[_Row]]:
    """Groups of waiting prompts, longest first, that fill the free rows; none while only few rows are free."""
    free = min(batch_size - active, len(waiting))
    if active and free < min(len(waiting), max(1, batch_size // 8)):
        return
    while free:
        size = max(1, min(free, _PREFILL_TOKENS // len(waiting[-1].prompt)))
        yield [waiting.pop() for _ in range(size)]
        free -= size


def _choose(logits: Tensor, temperature: float, rngs: Sequence[np.random.Generator | None]) -> list[int]:
    """The next token of each row of logits (n, V): the likeliest, or one drawn by inverting the cumulative softmax."""
    if temperature == 0:
        # In fp32, as transformers does, so that ties are broken alike.
        greedy: list[int] = logits.float().argmax(-1).tolist()
        return greedy
    cdf = torch.softmax(logits.double() / temperature, dim=-1).cumsum(-1)
    u = torch.tensor([[rng.random()] for rng in rngs if rng is not None], dtype=torch.float64, device=logits.device)
    drawn: list[int] = torch.searchsorted(cdf, u * cdf[:, -1:], right=True)[:, 0].tolist()
    return [min(token, logits.shape[1] - 1) for token in drawn]


def _compacted(alive: Sequence[bool]) -> list[int]:
    """Which row goes to each of the first ``sum(alive)`` places: itself, or an alive one from behind them."""
    n = sum(alive)
    behind = iter([i for i in range(n, len(alive)) if alive[i]])
    return [i if alive[i] else next(behind) for i in range(n)]
