"""A teacher in this process: requests that wait at the same time are answered as one batch."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jinja2 import TemplateError

from isodistill.errors import TeacherError, UserError
from isodistill.models.load import Student
from isodistill.teachers.base import Answer, Messages, Sampling

__all__ = ["Generate", "LocalTeacher"]


class Generate(Protocol):
    """``evaluation.generate.generate``, which stands above this room and so is handed in."""

    def __call__(
        self,
        model: Any,
        tokenizer: Any,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        batch_size: int,
        stop_strings: Sequence[str],
        temperature: float,
        seeds: Sequence[int] | None,
    ) -> Sequence[Any]:
        """Generations with ``tokens``, ``text`` and ``finish`` (eos or length), in the order of the prompts."""
        ...


@dataclass
class _Waiting:
    prompt: list[int]
    sampling: Sampling
    answer: Answer | None = None
    failed: Exception | None = None


class LocalTeacher:
    """A causal language model with a chat template.

    Args:
        name: of the teacher.
        model: model and tokenizer, on their device and in their dtype; any model that ``load_student`` loads.
        generate: the generator.
        batch_size: most answers computed side by side.

    Raises:
        UserError: the tokenizer has no chat template.
    """

    def __init__(self, name: str, model: Student, generate: Generate, batch_size: int) -> None:
        if model.tokenizer.chat_template is None:
            raise UserError(
                f"The teacher {name} has no chat template, so it cannot read messages. Take the instruct variant of "
                "the model, or set tokenizer.chat_template and save the tokenizer into the model folder."
            )
        self.name = name
        self._model, self._generate, self._batch_size = model, generate, batch_size
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._queue: list[_Waiting] = []

    def answer(self, messages: Messages, sampling: Sampling) -> Answer:
        """See ``Teacher.answer``; whoever comes first answers for all that wait with the same sampling.

        Raises:
            TeacherError: the prompt leaves no room in the context, or sampling asks for what generation has not.
        """
        own = _Waiting(self._encoded(messages, sampling), sampling)
        with self._lock:
            self._queue.append(own)
        with self._turn:
            if own.answer is None and own.failed is None:
                with self._lock:
                    batch = [waiting for waiting in self._queue if waiting.sampling == sampling]
                    self._queue = [waiting for waiting in self._queue if waiting.sampling != sampling]
                self._answer(batch)
        if own.failed is not None:
            raise own.failed
        assert own.answer is not None
        return own.answer

    def _encoded(self, messages: Messages, sampling: Sampling) -> list[int]:
        if sampling.top_p < 1 or sampling.logprobs:
            raise TeacherError("a local teacher knows neither top_p nor log-probs.", retry=False)
        tokenizer = self._model.tokenizer
        try:
            text = tokenizer.apply_chat_template(
                [dict(m) for m in messages], tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise TeacherError(f"the chat template does not take the messages: {error}", retry=False) from error
        ids: list[int] = tokenizer(str(text), add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) + sampling.max_tokens > self._model.context:
            raise TeacherError(
                f"{len(ids)} tokens of prompt and {sampling.max_tokens} of answer are more than the context of "
                f"{self._model.context}.",
                retry=False,
            )
        return ids

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        sampling = batch[0].sampling
        prompts = [waiting.prompt for waiting in batch for _ in range(sampling.n)]
        seeds = [_seed(sampling.seed, waiting.prompt, i) for waiting in batch for i in range(sampling.n)]
        try:
            generations = self._generate(
                self._model.model,
                self._model.tokenizer,
                prompts,
                max_new_tokens=sampling.max_tokens,
                batch_size=self._batch_size,
                stop_strings=sampling.stop,
                temperature=sampling.temperature,
                seeds=seeds if sampling.temperature else None,
            )
        except Exception as error:
            for waiting in batch:
                waiting.failed = error
            raise
        for number, waiting in enumerate(batch):
            own = generations[number * sampling.n : (number + 1) * sampling.n]
            waiting.answer = Answer(
                texts=tuple(generation.text for generation in own),
                finish_reasons=tuple("stop" if generation.finish == "eos" else "length" for generation in own),
                prompt_tokens=len(waiting.prompt),
                completion_tokens=sum(len(generation.tokens) for generation in own),
            )


def _seed(seed: int, prompt: Sequence[int], sample: int) -> int:
    """A stream of its own for every prompt and sample, whatever is in the batch beside it."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{sample}/{list(prompt)}".encode()).digest()[:8])
