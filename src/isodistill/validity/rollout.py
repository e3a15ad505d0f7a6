"""Validity by what comes of a step: the share of completions after it that reach the right answer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from isodistill.data.encode import encode_prompt
from isodistill.data.rows import Row
from isodistill.evaluation.generate import generate
from isodistill.evaluation.instructions import broken_instructions, read_instructions
from isodistill.evaluation.programs import try_program
from isodistill.evaluation.verify import verify
from isodistill.validity.base import Action
from isodistill.validity.identity import fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["RolloutScorer", "answered"]


def answered(row: Row, text: str) -> float:
    """How far a whole trace answers its problem, in [0, 1].

    Code: the share of the unit tests that hold; instructions: the share that is followed; else 1 for the right answer.

    Raises:
        UserError: programs cannot be run on this machine.
        ValueError: the problem has no answer to compare with.
    """
    if row.answer is None or row.answer_type is None:
        raise ValueError(f"row {row.id} has no answer that a completion could reach")
    if row.answer_type == "code":
        trial = try_program(text, row.answer)
        return 0.0 if trial is None else trial.passed / trial.tests
    if row.answer_type == "instructions":
        asked = read_instructions(row.answer)
        return 1 - len(broken_instructions(text, asked)) / len(asked)
    return float(verify(text, row.answer, row.answer_type, row.choices) == "correct")


class RolloutScorer:
    """v = mean verdict over n completions drawn after prefix and step; a step that ends the trace is judged as it is.

    It mixes correctness with luck: a wrong step from which the model recovers is worth something, too.

    Args:
        model: who completes; frozen, because scores are kept.
        tokenizer: its tokenizer.
        verdict: of a problem and a whole trace, in [0, 1].
        n: completions per step.
        temperature: of the completions.
        max_tokens: longest completion.
        batch_size: completions drawn side by side.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        verdict: Callable[[Row, str], float] = answered,
        *,
        n: int = 4,
        temperature: float = 0.7,
        max_tokens: int = 128,
        batch_size: int = 64,
    ) -> None:
        self._model, self._tokenizer, self._verdict = model, tokenizer, verdict
        self._n, self._temperature, self._max_tokens, self._batch_size = n, temperature, max_tokens, batch_size
        judged = getattr(verdict, "__qualname__", type(verdict).__qualname__)
        self.name = f"rollout/{n}/{temperature:g}/{max_tokens}/{judged}/{fingerprint(model)}"

    def score(self, actions: Sequence[Action]) -> list[float]:
        """See ``Scorer``.

        Raises:
            ValueError: a step leaves no room for completions, or its problem has no answer.
            UserError: programs would have to be run, and this machine has no sandbox.
        """
        scores = [self._verdict(a.row, a.prefix + a.step) if a.ends else 0.0 for a in actions]
        open_ended = [i for i, a in enumerate(actions) if not a.ends]
        prompts = [self._prompt(actions[i]) for i in open_ended for _ in range(self._n)]
        seeds = [_seed(actions[i], sample) for i in open_ended for sample in range(self._n)]
        self._require_room(prompts)
        drawn = generate(
            self._model,
            self._tokenizer,
            prompts,
            max_new_tokens=self._max_tokens,
            batch_size=self._batch_size,
            temperature=self._temperature,
            seeds=seeds,
        )
        for place, i in enumerate(open_ended):
            a, own = actions[i], drawn[place * self._n : (place + 1) * self._n]
            verdicts = [self._verdict(a.row, a.prefix + a.step + completion.text) for completion in own]
            scores[i] = sum(verdicts) / self._n
        return scores

    def _require_room(self, prompts: Sequence[Sequence[int]]) -> None:
        context = int(getattr(self._model.config, "max_position_embeddings", None) or 2**31)
        longest = max(map(len, prompts), default=0)
        if longest + self._max_tokens > context:
            raise ValueError(
                f"a text of {longest} tokens leaves no room for completions of {self._max_tokens}, of {context} in all"
            )

    def _prompt(self, action: Action) -> list[int]:
        before = encode_prompt(action.row, self._tokenizer, 2**31)
        text = action.prefix + action.step
        after: list[int] = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return before + after


def _seed(action: Action, sample: int) -> int:
    """A stream of its own for every step and completion."""
    whole = f"{sample}/{action.row.id}/{action.prefix}/{action.step}"
    return int.from_bytes(hashlib.sha256(whole.encode()).digest()[:8])
