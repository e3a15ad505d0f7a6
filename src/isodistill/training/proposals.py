"""Next steps proposed at the same prefixes by teacher and student, scored, before the training step that they weigh.

    off-policy   the trace is the teacher's: a^T its own step j, a^S what the student writes after the steps before
    on-policy    the trace is the student's: a^S its own step j, a^T what the teacher writes, greedily
    delta_j = v(a^T) - v(a^S), for n_prefix steps of each trace; the other steps get 0, so w = 1

Everything drawn depends on the seed, the row and the optimizer step alone, so neither the micro-batches nor the number
of processes change it. What was measured is a line of ``validity/steps.jsonl``, from which a resumed run goes on.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isodistill.data.encode import IGNORE_INDEX, Encoded, encode_prompt
from isodistill.data.rows import Row
from isodistill.evaluation.generate import generate
from isodistill.objectives import StepSettings
from isodistill.training.readers import Readers
from isodistill.validity import Action, Scoring, stops, token_steps, written_ends

__all__ = ["Measured", "Proposals", "Trace"]


@dataclass(frozen=True)
class Trace:
    """A trace whose steps are compared.

    Attributes:
        row: the problem.
        encoded: prompt and trace as tokens.
        text: of the trace.
        ends: where each token of the trace ends in ``text``, but for the end-of-text token.
        own: the student wrote it itself.
    """

    row: Row
    encoded: Encoded
    text: str
    ends: list[int]
    own: bool

    @property
    def n_prompt(self) -> int:
        """Tokens before the trace."""
        return sum(label == IGNORE_INDEX for label in self.encoded.labels)


@dataclass(frozen=True)
class Measured:
    """What was found about the steps of one trace.

    Attributes:
        row: id of the row.
        made: optimizer steps that the student had taken.
        own: the student wrote the trace.
        firsts: number of the first token of each step, within the completion.
        deltas: delta of each step; 0 where none was measured.
        weights: w of each step, before what a control or norm makes of the whole optimizer step.
        drawn: which steps were.
        proposals: what was proposed at them.
    """

    row: str
    made: int
    own: bool
    firsts: tuple[int, ...]
    deltas: tuple[float, ...]
    weights: tuple[float, ...]
    drawn: tuple[int, ...]
    proposals: tuple[str, ...]

    def line(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Measured:
        """The inverse of ``line``."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in record.items()}
        return cls(**values)

    def per_token(self, n: int) -> list[float]:
        """delta of each of the n tokens of the completion, the end-of-text token in the last step."""
        borders = [*self.firsts, n]
        return [d for d, a, b in zip(self.deltas, borders[:-1], borders[1:], strict=True) for _ in range(b - a)]


@dataclass(frozen=True)
class _Place:
    """Step j of a trace: the tokens and the text before it, its own text."""

    trace: int
    j: int
    prompt: list[int]
    prefix: str
    step: str
    ends: bool


class Proposals:
    """See the module.

    Args:
        settings: of step mode.
        scoring: scores steps.
        readers: the models.
        seed: of all that is drawn.
        weight: w of deltas (n,).
    """

    def __init__(
        self, settings: StepSettings, scoring: Scoring, readers: Readers, seed: int, weight: Callable[[Tensor], Tensor]
    ) -> None:
        self.settings, self.scoring, self.readers, self.seed = settings, scoring, readers, seed
        self.weight = weight
        self.counts: Counter[str] = Counter()

    def measure(self, traces: Sequence[Trace], made: int, student: PreTrainedModel) -> list[Measured]:
        """Propose and score; one record per trace, in order.

        Args:
            traces: all of one kind, the student's own or the teacher's.
            made: optimizer steps taken so far.
            student: as it stands, merged.
        """
        settings = self.settings
        cut = [token_steps(trace.text, settings.segment, trace.ends) for trace in traces]
        drawn = []
        for trace, (firsts, _) in zip(traces, cut, strict=True):
            rng = random.Random(f"{self.seed}/{made}/{trace.row.id}")
            drawn.append(sorted(rng.sample(range(len(firsts)), min(settings.n_prefix, len(firsts)))))
            self.counts["one_step"] += len(firsts) == 1
        places = [_place(i, traces[i], *cut[i], j) for i, chosen in enumerate(drawn) for j in chosen]
        proposed = self._proposed(traces, places, made, student)
        deltas = self._deltas(traces, places, proposed)
        found: list[Measured] = []
        for i, (trace, (firsts, _)) in enumerate(zip(traces, cut, strict=True)):
            mine = [k for k, place in enumerate(places) if place.trace == i]
            by_step = {places[k].j: deltas[k] for k in mine}
            of_steps = [by_step.get(j, 0.0) for j in range(len(firsts))]
            found.append(
                Measured(
                    trace.row.id,
                    made,
                    trace.own,
                    tuple(firsts),
                    tuple(of_steps),
                    tuple(round(w, 6) for w in self.weight(torch.tensor(of_steps)).tolist()),
                    tuple(drawn[i]),
                    tuple(proposed[k][0] for k in mine),
                )
            )
        return found

    def _proposed(
        self, traces: Sequence[Trace], places: Sequence[_Place], made: int, student: PreTrainedModel
    ) -> list[tuple[str, bool]]:
        """Text of the other side's next step at each place, and whether its trace ends there; empty where none fits."""
        settings, readers = self.settings, self.readers
        own = bool(traces) and traces[0].own
        model, tokenizer = student, readers.tokenizer
        if own:
            reader = readers.teacher()
            assert reader is not None  # checked before training
            model, tokenizer = reader
        prompts = [_retold(traces[p.trace].row, p.prefix, tokenizer) if own else p.prompt for p in places]
        context = getattr(model.config, "max_position_embeddings", None) or 2**31
        fitting = [k for k, prompt in enumerate(prompts) if len(prompt) + settings.max_tokens <= context]
        self.counts["no_room"] += len(places) - len(fitting)
        drawn = generate(
            model,
            tokenizer,
            [prompts[k] for k in fitting],
            max_new_tokens=settings.max_tokens,
            stop_strings=stops(settings.segment),
            temperature=0.0 if own else settings.temperature,
            seeds=[_seed(self.seed, made, traces[places[k].trace].row.id, places[k].j) for k in fitting],
        )
        out = [("", False)] * len(places)
        for k, generation in zip(fitting, drawn, strict=True):
            text = tokenizer.decode(generation.tokens, skip_special_tokens=True)
            if text.strip() and places[k].step.strip():
                steps = token_steps(text, settings.segment, written_ends(generation.tokens, tokenizer))[1]
                # A stop string also ends with ``eos``; then the answer was cut before it.
                finished = generation.finish == "eos" and generation.text == text
                out[k] = steps[0], finished and len(steps) == 1
            else:
                self.counts["empty"] += 1
        return out

    def _deltas(
        self, traces: Sequence[Trace], places: Sequence[_Place], proposed: Sequence[tuple[str, bool]]
    ) -> list[float]:
        """delta of each place; 0 where the steps are equal, one is missing, or its score is."""
        asked: list[int] = []
        actions: list[Action] = []
        for k, (place, (text, ends)) in enumerate(zip(places, proposed, strict=True)):
            if not text:
                continue
            if text.strip() == place.step.strip():
                self.counts["equal"] += 1
                continue
            trace = traces[place.trace]
            reference = text if trace.own else place.step
            mine = Action(trace.row, place.prefix, place.step, reference, place.ends)
            other = Action(trace.row, place.prefix, text, reference, ends)
            asked.append(k)
            actions += [other, mine] if trace.own else [mine, other]  # the teacher's first
        scores = self.scoring(actions)
        deltas = [0.0] * len(places)
        for n, k in enumerate(asked):
            v_teacher, v_student = scores[2 * n], scores[2 * n + 1]
            if v_teacher is None or v_student is None:
                self.counts["failed"] += 1
            else:
                deltas[k] = v_teacher - v_student
        self.counts["compared"] += len(places)
        return deltas

    def take_metrics(self) -> dict[str, float]:
        """Counts since the last call."""
        counts, self.counts = self.counts, Counter()
        names = ("compared", "equal", "empty", "failed", "no_room", "one_step")
        return {f"validity/{name}": float(counts[name]) for name in names}


def _place(i: int, trace: Trace, firsts: Sequence[int], steps: Sequence[str], j: int) -> _Place:
    prompt = trace.encoded.input_ids[: trace.n_prompt + firsts[j]]
    return _Place(i, j, prompt, "".join(steps[:j]), steps[j], j == len(steps) - 1)


def _retold(row: Row, prefix: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Problem and prefix as another tokenizer reads them."""
    after = tokenizer(prefix, add_special_tokens=False, verbose=False)["input_ids"] if prefix else []
    return encode_prompt(row, tokenizer, 2**31) + list(after)


def _seed(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8])
