"""A student behind the interface that lm-evaluation-harness asks: ``lm_eval.api.model.LM``.

    results = lm_eval.simple_evaluate(HarnessStudent(model, tokenizer), tasks=["mine"], task_manager=...)

Log-likelihoods are sums of log q(y_t | prefix) in fp32 over the tokens of the continuation, answers come from the
generator that evaluation uses. As in the harness, what is longer than the context loses its beginning; how many
requests that were is told.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isodistill.errors import UserError
from isodistill.evaluation.generate import Generation, generate

try:
    from lm_eval.api.model import LM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise UserError(
        f"lm-evaluation-harness is not installed ({error}). Run: pip install 'isodistill[lm-eval]'."
    ) from error

__all__ = ["HarnessStudent"]

_log = logging.getLogger(__name__)

_MAX_NEW_TOKENS = 256  # the harness's own default


class HarnessStudent(LM):
    """See the module.

    Args:
        model: a decoder-only causal language model; merge an adapter first (``merged_copy``).
        tokenizer: its tokenizer.
        batch_size: requests computed side by side.

    Attributes:
        generations: context -> the last answer to it, for what the harness does not keep: why it ended, its tokens.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 16) -> None:
        super().__init__()
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.context: int = getattr(model.config, "max_position_embeddings", None) or 2**31
        self.generations: dict[str, Generation] = {}
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        self._first: int = first

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """log q(continuation | context), and whether greedy decoding would give it, for each request."""
        return self._score([self._pair(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log q of whole texts, each token once, with as much before it as the context holds."""
        totals = []
        for request in requests:
            windows = get_rolling_token_windows(self._ids(request.args[0]), self._first, self.context, 1)
            totals.append(sum(value for value, _ in self._score([make_disjoint_window(w) for w in windows])))
        return totals

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers up to one of the request's ``until``, greedy unless it says ``do_sample`` and a temperature.

        Raises:
            UserError: a request asks for a way of decoding that the generator does not have.
        """
        alike: dict[tuple[tuple[str, ...], int, float], list[int]] = {}
        for i, request in enumerate(requests):
            alike.setdefault(_decoding(request.args[1]), []).append(i)
        texts = [""] * len(requests)
        for (until, max_new_tokens, temperature), chosen in alike.items():
            room = self.context - max_new_tokens
            if room < 1:
                raise UserError(
                    f"A task asks for {max_new_tokens} new tokens, and the student reads {self.context} in all. Set "
                    "max_gen_toks in its generation_kwargs."
                )
            prompts = [self._ids(requests[i].args[0]) or [self._first] for i in chosen]
            self._tell_cut(sum(len(prompt) > room for prompt in prompts))
            answers = generate(
                self.model,
                self.tokenizer,
                [prompt[-room:] for prompt in prompts],
                max_new_tokens=max_new_tokens,
                batch_size=self.batch_size,
                stop_strings=until,
                temperature=temperature,
                seeds=chosen if temperature > 0 else None,  # a request that is repeated draws anew
            )
            for i, answer in zip(chosen, answers, strict=True):
                texts[i] = answer.text
                self.generations[requests[i].args[0]] = answer
        return texts

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as the text that the student was trained to read."""
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template, for the harness's record of what was asked."""
        return str(self.tokenizer.chat_template or "")

    @property
    def tokenizer_name(self) -> str:
        """For the harness's caches."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of both, split where the context's own end; blanks at the border belong to the continuation."""
        bare = context.rstrip()
        continuation = context[len(bare) :] + continuation
        before = self._ids(bare)
        if not before:
            return [self._first], self._ids(continuation)
        whole = self._ids(bare + continuation)
        return before, whole[len(before) :]

    @torch.no_grad()
    def _score(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        longest = max((len(continuation) for _, continuation in pairs), default=0)
        if longest > self.context:
            raise UserError(f"A continuation has {longest} tokens, and the student reads {self.context} in all.")
        rows = [((before + continuation)[-self.context - 1 :], len(continuation)) for before, continuation in pairs]
        self._tell_cut(sum(len(before) + len(continuation) > self.context + 1 for before, continuation in pairs))
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
        scores: dict[int, tuple[float, bool]] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            log_q = self._log_q([rows[i][0] for i in chosen], max(rows[i][1] for i in chosen))
            for i, values in zip(chosen, log_q, strict=True):
                ids, n = rows[i]
                own = values[len(values) - n :]
                targets = torch.tensor(ids[len(ids) - n :], device=own.device)
                told = own.gather(1, targets[:, None]).sum()
                scores[i] = (float(told), bool((own.argmax(-1) == targets).all()))
        return [scores[i] for i in range(len(rows))]

    def _log_q(self, rows: Sequence[list[int]], n: int) -> Tensor:
        """log q (B, n, V) of the last n tokens of every row, each given what stands before it."""
        length = max(len(row) for row in rows) - 1
        ids = torch.full((len(rows), length), self._first, device=self.model.device)
        mask = torch.zeros_like(ids)
        for b, row in enumerate(rows):  # padded on the left, so that the ends stand below each other
            ids[b, length - len(row) + 1 :] = torch.tensor(row[:-1])
            mask[b, length - len(row) + 1 :] = 1
        places = (mask.cumsum(1) - 1).clamp(min=0)
        logits = self.model(
            input_ids=ids, attention_mask=mask, position_ids=places, use_cache=False, logits_to_keep=n
        ).logits
        return torch.log_softmax(logits.float(), -1)

    def _tell_cut(self, n: int) -> None:
        if n:
            _log.warning("%d requests are longer than the student's context; their beginnings are cut off.", n)


def _decoding(settings: Mapping[str, Any]) -> tuple[tuple[str, ...], int, float]:
    """Stop strings, most new tokens and temperature of a request."""
    left = dict(settings)
    until = left.pop("until", None) or []
    max_new_tokens = int(left.pop("max_gen_toks", _MAX_NEW_TOKENS))
    temperature = float(left.pop("temperature", 0.0))
    if not left.pop("do_sample", False):
        temperature = 0.0
    if left:
        raise UserError(
            f"A task asks for {', '.join(sorted(left))} in its generation_kwargs; the student knows until, "
            "max_gen_toks, do_sample and temperature. Take the others out."
        )
    return ((until,) if isinstance(until, str) else tuple(until)), max_new_tokens, temperature
