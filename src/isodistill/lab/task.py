"""The conflicting-cue task: two operations modulo 10, told on K surfaces, and a token that gives the answer away.

    problem   a, b, c: m = a + b mod 10, answer = m - c mod 10
    prompt    w cue w c w a b =        w: words of the surface; each surface has its own
    trace     m c = answer             the one-line rationale

With two kinds of the second operation, + and -, a token before each c says which. In training the cue of a row is the
token that stands for its answer with probability rho, else any. ``conflict`` (S2): ten tokens for all surfaces, their
meaning permuted on each; ``private`` (S1): ten tokens for each surface. Tests draw the cue at random from the tokens of
training. `UNSEEN` surfaces, with words of their own, are never trained.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from isodistill.lab.settings import TaskOptions

__all__ = ["BASE", "UNSEEN", "Task", "solve"]

BASE = 10
"""Problems are modulo this; the tokens 0 .. BASE - 1 are the digits."""
UNSEEN = 3
"""Surfaces that are never trained: the numbers K .. K + 2."""
TEST_SHARE = 0.2
"""Share of all problems that is kept for tests."""


def solve(problems: Tensor) -> Tensor:
    """(..., 4) problems a, b, op, c -> (..., 2) m and answer; op is 0 for + and 1 for -."""
    a, b, op, c = problems.unbind(-1)
    m = (a + b) % BASE
    return torch.stack([m, (m + c - 2 * c * op) % BASE], dim=-1)


class Task:
    """One draw of the task: which problems are kept for tests, and what the cues of each surface mean.

    Attributes:
        surfaces: the numbers of those that are trained.
        train_problems: (N, 4) rows a, b, op, c.
        test_problems: likewise; none of them is trained.
        valid_problems: likewise, to select by; neither trained nor tested.
        meaning: (K, 10) for ``conflict``: surface k tells the answer y by the cue ``meaning[k, y]``.
        prompt: tokens of a prompt.
        trace: tokens of a trace, which ends in the answer.
        outputs: the first tokens, which a trace may hold: digits, + and - where there are both, the sign =.
        vocabulary: number of tokens.
    """

    def __init__(self, options: TaskOptions, seed: int) -> None:
        self.options = options
        generator = torch.Generator().manual_seed(seed)
        digits = torch.arange(BASE)
        problems = torch.cartesian_prod(digits, digits, torch.arange(2)[-options.operations :], digits)
        problems = problems[torch.randperm(len(problems), generator=generator)]
        n_test = int(TEST_SHARE * len(problems))
        self.test_problems = problems[: min(n_test, options.test_problems)]
        self.valid_problems = problems[n_test : n_test + options.valid_problems]
        self.train_problems = problems[n_test + options.valid_problems :][: options.train_problems or None]
        self.surfaces = [k for k in range(options.domains) if k != options.without]
        self.meaning = torch.stack([torch.randperm(BASE, generator=generator) for _ in range(options.domains)])
        self._n_cues = BASE * (1 if options.cue == "conflict" else options.domains)
        with_op = options.operations == 2
        self.prompt, self.trace = (9, 5) if with_op else (8, 4)
        self.outputs = BASE + (3 if with_op else 1)
        self._first_cue = self.outputs
        self._first_word = self._first_cue + self._n_cues
        self.vocabulary = self._first_word + options.words * (options.domains + UNSEEN)

    def training_batch(self, rows: int, generator: torch.Generator, rho: float | None = None) -> Tensor:
        """(K, rows, prompt + trace) tokens: problems with cues and traces for every training surface.

        With ``sets`` row j of all surfaces is one problem, an isomer set; else every surface has problems of its own.
        """
        size = (1 if self.options.sets else len(self.surfaces), rows)
        chosen = torch.randint(len(self.train_problems), size, generator=generator).expand(len(self.surfaces), rows)
        rho = self.options.rho if rho is None else rho
        return self.tell(self.train_problems[chosen], self.surfaces, rho, generator)

    def tell(self, problems: Tensor, surfaces: Sequence[int], rho: float, generator: torch.Generator) -> Tensor:
        """(D, N, prompt + trace) tokens of problems on D surfaces.

        Args:
            problems: (D, N, 4) rows a, b, op, c.
            surfaces: their D numbers.
            rho: probability that the cue tells the answer; 0 on unseen surfaces, where cues mean nothing.
            generator: of the words and cues.
        """
        shape, n_words = problems.shape[:-1], self.options.words
        surface = torch.tensor(surfaces)[:, None]
        a, b, op, c = problems.unbind(-1)
        m, answer = solve(problems).unbind(-1)
        words = torch.randint(n_words, (3, *shape), generator=generator) + self._first_word + n_words * surface
        cue = torch.randint(self._n_cues, shape, generator=generator)
        if rho > 0:
            told = torch.rand(shape, generator=generator) < rho
            cue = torch.where(told, self._telling(surface, answer), cue)
        third = [op + BASE, c] if self.options.operations == 2 else [c]
        equals = torch.full(shape, self.outputs - 1)
        prompt = [words[0], cue + self._first_cue, words[1], *third, words[2], a, b, equals]
        return torch.stack([*prompt, m, *third, equals, answer], dim=-1)

    def _telling(self, surface: Tensor, answer: Tensor) -> Tensor:
        """The cues that stand for the answers (D, N) on the surfaces (D, 1)."""
        if self.options.cue == "conflict":
            return self.meaning[surface, answer]
        return BASE * surface + answer
