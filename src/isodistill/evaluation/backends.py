"""Who answers the test problems: the student in this process, or a server that speaks the OpenAI API.

Both are chosen by name in the recipe (``evaluate.backend``). A server gives neither hidden states nor logits, so
everything computed from them (the LCS family) is null.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isodistill.errors import UserError
from isodistill.evaluation.domain_probe import question_states
from isodistill.evaluation.generate import Generation, generate
from isodistill.evaluation.verify import Finish
from isodistill.teachers.server import open_client

__all__ = ["Backend", "LocalBackend", "OpenAIBackend"]

_KEY_FROM = "OPENAI_API_KEY"


class Backend(Protocol):
    """Answers prompts.

    Attributes:
        context: most tokens of a prompt and its answer together.
        gives_logits: ``Generation.hidden`` and ``Generation.watched`` are filled.
    """

    context: int
    gives_logits: bool

    def generate(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        batch_size: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        watch: Sequence[int] = (),
        follow: Callable[[int, Generation], Sequence[int]] | None = None,
        on_done: Callable[[int, Generation], None] | None = None,
    ) -> list[Generation]:
        """Answers in the order of the prompts, ``batch_size`` at a time; the rest as in ``generate``."""
        ...


class LocalBackend:
    """A model in this process; see ``generate``.

    Args:
        model: the model.
        before: tokens that stand before every prompt, such as the virtual ones of a soft prompt.
    """

    gives_logits = True

    def __init__(self, model: PreTrainedModel, before: Sequence[int] = ()) -> None:
        self._model, self._before = model, list(before)
        self.context = (getattr(model.config, "max_position_embeddings", None) or 2**31) - len(self._before)

    def generate(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        batch_size: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        watch: Sequence[int] = (),
        follow: Callable[[int, Generation], Sequence[int]] | None = None,
        on_done: Callable[[int, Generation], None] | None = None,
    ) -> list[Generation]:
        """See ``Backend.generate``."""
        return generate(
            self._model,
            tokenizer,
            [[*self._before, *prompt] for prompt in prompts],
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            temperature=temperature,
            seeds=seeds,
            watch=watch,
            follow=follow,
            on_done=on_done,
        )

    def question_states(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """(N, d) mean last hidden state over each prompt, what stands before it left out."""
        return question_states(self._model, prompts, self._before)


class OpenAIBackend:
    """A server's ``/completions``, asked with token ids, so that it reads the prompts the student was trained on.

    vLLM and llama.cpp serve it. The key is read from the environment variable ``OPENAI_API_KEY`` and written nowhere;
    servers of one's own mostly need none.

    Args:
        base_url: of the server, such as ``http://localhost:8000/v1``.
        model: the name under which it serves the student.
        context: most tokens of a prompt and its answer together.

    Raises:
        UserError: the package ``openai`` is not installed.
    """

    gives_logits = False

    def __init__(self, base_url: str, model: str, context: int) -> None:
        self._errors, self._client = open_client(base_url, _KEY_FROM, "evaluate.backend openai", "openai")
        self.context = context
        self._model, self._base_url = model, base_url

    def generate(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        batch_size: int,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        watch: Sequence[int] = (),
        follow: Callable[[int, Generation], Sequence[int]] | None = None,
        on_done: Callable[[int, Generation], None] | None = None,
    ) -> list[Generation]:
        """See ``Backend.generate``: ``batch_size`` requests at a time; ``tokens`` are those of the text.

        Nothing is read behind an answer: ``follow`` is not called.

        Raises:
            UserError: the server cannot be reached or refuses; the client has tried three times.
            ValueError: tokens are to be watched; see ``gives_logits``.
        """
        if watch:
            raise ValueError(f"a server gives no logits, so {len(watch)} tokens cannot be watched")
        done: dict[int, Generation] = {}
        pool = ThreadPoolExecutor(batch_size)
        try:
            seeded = [None] * len(prompts) if seeds is None else list(seeds)
            requests = {
                pool.submit(self._ask, list(prompt), max_new_tokens, temperature, seed): i
                for i, (prompt, seed) in enumerate(zip(prompts, seeded, strict=True))
            }
            for request in as_completed(requests):
                index, choice = requests[request], request.result()
                tokens = tokenizer.encode(choice.text, add_special_tokens=False)
                finish: Finish = "length" if choice.finish_reason == "length" else "eos"
                done[index] = Generation(tokens, choice.text, finish, hidden=None, watched=np.zeros((len(tokens), 0)))
                if on_done is not None:
                    on_done(index, done[index])
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        return [done[i] for i in range(len(prompts))]

    def _ask(self, prompt: list[int], max_new_tokens: int, temperature: float, seed: int | None) -> Any:
        try:
            answer = self._client.completions.create(
                model=self._model,
                prompt=prompt,
                max_tokens=max_new_tokens,
                temperature=temperature,
                seed=None if temperature == 0 or seed is None else seed % 2**31,  # servers take 32 bits
            )
        except self._errors.AuthenticationError:
            # Without its own words, which may show parts of the key.
            raise UserError(f"{self._base_url} refuses the key in the environment variable {_KEY_FROM}.") from None
        except self._errors.OpenAIError as error:
            key = os.environ.get(_KEY_FROM)
            told = str(error).replace(key, "***") if key else str(error)
            raise UserError(
                f"{self._base_url} gave no answer of model {self._model!r}: {told} "
                "Check evaluate.base_url and evaluate.model, and that the server takes token ids in /completions."
            ) from None
        return answer.choices[0]
