"""Validity by a process reward model: a token or sequence classifier, or a causal LM that says a word for right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from isodistill.errors import UserError
from isodistill.models.hidden import body_states, logits_of
from isodistill.validity.base import Action
from isodistill.validity.identity import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ProcessRewardModel", "load_reward_model"]


class ProcessRewardModel:
    """v = probability of the positive class, read after problem, prefix and step.

    A token classifier is read at its last token, ``marker`` where there is one; a sequence classifier as a whole. One
    output is a logit of its own (sigmoid), several are a softmax. A causal LM is read at its last token, too:
    v = p(good) / (p(good) + p(bad)) of the next one (Math-Shepherd, arXiv 2312.08935: "+" and "-").

    Args:
        model: a classifier with ``logits`` (N, classes) or (N, T, classes), or with ``words`` a causal LM.
        tokenizer: its tokenizer.
        positive: class of valid steps; -1 is the last.
        marker: text after the step.
        words: ids of the tokens for right and wrong, of a causal LM.
        batch_size: steps scored side by side.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        positive: int = -1,
        marker: str = "",
        words: tuple[int, int] | None = None,
        batch_size: int = 16,
    ) -> None:
        self._model, self._tokenizer = model.eval(), tokenizer
        if model.config.pad_token_id is None:  # sequence classifiers refuse batches without one
            model.config.pad_token_id = tokenizer.pad_token_id or 0
        self._positive, self._marker, self._words, self._batch_size = positive, marker, words, batch_size
        read = positive if words is None else words
        self.name = f"reward/{read}/{marker}/{fingerprint(model)}"

    def score(self, actions: Sequence[Action]) -> list[float]:
        """See ``Scorer``."""
        scores: list[float] = []
        for start in range(0, len(actions), self._batch_size):
            scores += self._batch(actions[start : start + self._batch_size])
        return scores

    @torch.no_grad()
    def _batch(self, actions: Sequence[Action]) -> list[float]:
        ids = [self._tokenizer(self._text(action), verbose=False)["input_ids"] for action in actions]
        context = int(getattr(self._model.config, "max_position_embeddings", None) or 2**31)
        if max(map(len, ids)) > context:
            raise ValueError(f"a text of {max(map(len, ids))} tokens is longer than the reward model reads ({context})")
        width = max(map(len, ids))
        pad = self._tokenizer.pad_token_id or 0
        device = next(self._model.parameters()).device
        padded = torch.tensor([own + [pad] * (width - len(own)) for own in ids], device=device)
        mask = torch.tensor([[int(t < len(own)) for t in range(width)] for own in ids], device=device)
        last = torch.arange(len(ids)), torch.tensor([len(own) - 1 for own in ids])
        if self._words is not None:
            states = body_states(self._model, padded, mask)[last]
            both = torch.cat([logits[:, self._words].float() for logits in logits_of(self._model, states)])
            return [float(v) for v in torch.softmax(both, 1)[:, 0]]
        logits = self._model(input_ids=padded, attention_mask=mask).logits.float()
        if logits.dim() == 3:
            logits = logits[last]
        if logits.shape[1] == 1:
            return [float(v) for v in torch.sigmoid(logits[:, 0])]
        return [float(v) for v in torch.softmax(logits, 1)[:, self._positive]]

    def _text(self, action: Action) -> str:
        prompt = action.row.prompt
        asked = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
        return f"{asked}\n{action.prefix}{action.step.rstrip()}{self._marker}"


def load_reward_model(
    source: str, kind: Literal["token", "sequence", "causal"], *, good: str = "+", bad: str = "-", **options: Any
) -> ProcessRewardModel:
    """A reward model from a folder or hub id; ``good`` and ``bad`` are the words of a causal one.

    Raises:
        UserError: it cannot be loaded, has no head of that kind, or a word is not one token.
    """
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
    )

    known: dict[str, Any] = {
        "token": AutoModelForTokenClassification,
        "sequence": AutoModelForSequenceClassification,
        "causal": AutoModelForCausalLM,
    }
    if kind not in known:
        raise UserError(f"steps.scorer.kind is {kind!r}; choose one of {', '.join(known)}.")
    try:
        model, told = known[kind].from_pretrained(source, trust_remote_code=False, output_loading_info=True)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"The process reward model {source!r} could not be loaded: {error}") from error
    if told["missing_keys"]:
        what = "causal language model" if kind == "causal" else f"{kind} classifier"
        raise UserError(
            f"The process reward model {source!r} is no {what}: it has no weights for "
            f"{', '.join(sorted(told['missing_keys'])[:3])}, which would be drawn at random. Choose another "
            "steps.scorer.kind, or another model."
        )
    if kind == "causal":
        options["words"] = (_token(good, tokenizer), _token(bad, tokenizer))
    return ProcessRewardModel(model, tokenizer, **options)


def _token(word: str, tokenizer: PreTrainedTokenizerBase) -> int:
    ids: list[int] = tokenizer(word, add_special_tokens=False, verbose=False)["input_ids"]
    if len(ids) != 1:
        raise UserError(f"steps.scorer.good and bad are one token each, and {word!r} is {len(ids)} of this model's.")
    return ids[0]
