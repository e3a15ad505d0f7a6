"""The terms inside training: whose features they see, how a micro-batch counts, and when their own parameters move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from isodistill.alignment import Alignment
from isodistill.data.encode import Encoded
from isodistill.models.load import hidden_layers
from isodistill.numerics.correlation import PairMoments
from isodistill.objectives import StudentOutput, TrainedTokens
from isodistill.terms import PRADA, FeatureTerm, FlexKD, Term
from isodistill.training.adversary import Adversary
from isodistill.training.config import DistillConfig
from isodistill.training.forward import trained_tokens
from isodistill.training.rows import AnyRows, plain_rows
from isodistill.training.scoring import scored

__all__ = ["TermPass", "term_obstacles"]


def term_obstacles(
    added: TermPass,
    alignment: Alignment,
    student: nn.Module,
    teacher: nn.Module | str | None,
) -> list[str]:
    """Why these terms cannot be added to this training; empty where they can."""
    terms = added.terms
    obstacles = [] if added.adversary is None else added.adversary.obstacles(alignment, teacher is not None)
    if terms and alignment.needs_recompute:
        obstacles.append(
            f"{type(alignment).__name__} makes the domain losses again at moved parameters, where the terms "
            f"({', '.join(term.name for term in terms)}) would count twice; take another alignment"
        )
    dropout = any(isinstance(m, nn.Dropout) and m.p > 0 for m in student.modules())
    for term in terms:
        if isinstance(term, FlexKD) and term.stats == "step" and dropout:
            obstacles.append("flexkd with stats: step sees every batch twice, alike: set the dropout to 0")
        for side, (who, model) in enumerate((("teacher", teacher), ("student", student))):
            if not isinstance(model, nn.Module):
                continue
            deepest, asked = hidden_layers(model), max(pair[side] for pair in term.layers)
            if asked > deepest:
                obstacles.append(f"{term.name} looks at layer {asked} of the {who}, which has {deepest}")
    return obstacles


class TermPass:
    """Adds the terms of a training to the loss of its micro-batches.

    A term is made from the tokens of a micro-batch, all at once, or domain by domain where the alignment keeps the
    gradients of domains apart; it counts with the weights that the objective's tokens have together.

    Args:
        trainer: the ``DistillTrainer``.
        terms: those on features with ``b`` = 0 are not looked at again.

    Attributes:
        terms: those on features.
        prada: the adversary's options, where there is one; ``open`` makes it.
    """

    def __init__(self, trainer: Any, terms: Sequence[Term]) -> None:
        self.trainer = trainer
        self.terms = [term for term in terms if isinstance(term, FeatureTerm) and term.b]
        self.prada = next((term for term in terms if isinstance(term, PRADA)), None)
        self.adversary: Adversary | None = None
        self._moments: dict[tuple[int, int, int], PairMoments] = {}

    def open(
        self, model: PeftModel, target: AnyRows | None, args: DistillConfig, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Give the student its prompt, before its rows are encoded and its gradients counted."""
        if self.prada is not None:
            rows = plain_rows(target, args.max_refused, None)[0] if target else []
            self.adversary = Adversary(self.trainer, self.prada, model, rows, args, tokenizer)

    def prompted(self, encoded: list[Encoded]) -> list[Encoded]:
        """The rows behind the virtual tokens of the prompt, where there is one."""
        return encoded if self.adversary is None else self.adversary.prompted(encoded)

    @property
    def two_passes(self) -> bool:
        """The micro-batches of a step are looked at before they are trained on."""
        return self.adversarial or any(isinstance(term, FlexKD) and term.stats == "step" for term in self.terms)

    def layers(self, side: int) -> tuple[int, ...]:
        """Hidden layers of the teacher (0) or the student (1), beside the last one, that terms look at."""
        return tuple(sorted({pair[side] for term in self.terms for pair in term.layers} - {-1}))

    @property
    def adversarial(self) -> bool:
        """Target questions go through the student beside every micro-batch."""
        return self.adversary is not None and self.adversary.active

    def setup(self, total_steps: int) -> None:
        """Tell the terms the widths of the hidden states and the length of training, before any state is loaded."""
        if self.adversary is not None:
            self.adversary.setup(self.trainer.train_dataset, self.trainer.domains, total_steps)
        if self.terms:
            self.trainer.teacher.set_layers(self.layers(0))
        for term in self.terms:
            term.setup(self._widths(term), self.trainer.args.seed)

    def _widths(self, term: FeatureTerm) -> list[tuple[int, int]]:
        models = (self.trainer.model.get_base_model(), self.trainer.teacher.model)
        last_S, last_T = (model.get_output_embeddings().in_features for model in models)
        inner_S, inner_T = (model.config.hidden_size for model in models)
        return [(last_S if s == -1 else inner_S, last_T if t == -1 else inner_T) for t, s in term.layers]

    def begin(self, batches: Sequence[Mapping[str, Tensor]], counts: Tensor) -> None:
        """A step begins: choose dimensions where that is due, and look at the whole step where a term asks for it."""
        self._counts, step = counts, self.trainer.state.global_step
        for term in self.terms:
            if isinstance(term, FlexKD):
                due = bool(term.idx) and term.refresh_every and step and step % term.refresh_every == 0
                term.refreshed = step // term.refresh_every if term.refresh_every else 0
                if due or not term.idx:
                    self._choose(term)
        self._moments = {}
        if any(isinstance(term, FlexKD) and term.stats == "step" for term in self.terms):
            for batch in batches:
                self._look(batch)
            self._share()
        if self.adversary is not None and self.adversarial:
            self.adversary.begin(batches)

    def forward(self, batch: Mapping[str, Tensor], positions: Tensor) -> tuple[StudentOutput, Tensor | float]:
        """The student at its trained positions, and what the adversary adds to the loss of the micro-batch."""
        if self.adversary is not None and self.adversarial:
            return self.adversary.forward(batch, positions)
        return self.trainer.student(batch, positions), 0.0

    def _choose(self, term: FlexKD) -> None:
        widths = self._widths(term)
        term.choose(scored(self.trainer, term, widths) if any(d_S < d_T for d_S, d_T in widths) else [])

    def _look(self, batch: Mapping[str, Tensor]) -> None:
        """Add a micro-batch to the moments of the step; the same forwards as in training, so the same numbers."""
        tokens, positions = trained_tokens(batch)
        with self.trainer._autocast():
            student, teacher = self.trainer.student(batch, positions), self.trainer.teacher(batch, positions)
        for group, chosen in self._groups(tokens):
            for i, term in enumerate(self.terms):
                if isinstance(term, FlexKD) and term.stats == "step":
                    for pair, (F_S, F_T) in enumerate(_features(term, student, teacher, chosen)):
                        F_S, F_T = term.paired(pair, F_S, F_T)
                        self._moments.setdefault((i, pair, group), PairMoments(F_S.shape[1])).update(F_S, F_T)

    def _share(self) -> None:
        """Every process knows the moments of all."""
        if self.trainer.args.world_size == 1:
            return
        accelerator = self.trainer.accelerator
        for i, term in enumerate(self.terms):
            if not (isinstance(term, FlexKD) and term.stats == "step"):
                continue
            for pair, idx in enumerate(term.idx):
                for group in range(len(self.trainer.domains) if self.trainer.alignment.needs_domain_gradients else 1):
                    own = self._moments.get((i, pair, group), PairMoments(len(idx))).packed()
                    merged = PairMoments(len(idx))
                    for packed in accelerator.gather(own[None].to(accelerator.device)).cpu():
                        merged.merge(packed)
                    self._moments[i, pair, group] = merged

    def __call__(
        self, student: StudentOutput, tokens: TrainedTokens, teacher: StudentOutput | None, weights: Tensor
    ) -> Tensor | float:
        """What the terms add to the loss of a micro-batch.

        Args:
            student: at its trained positions.
            tokens: these positions.
            teacher: at the same positions.
            weights: (K,) factor on the summed token losses of each domain.
        """
        total: Tensor | float = 0.0
        if not self.terms or teacher is None:
            return total
        weights, step = weights.to(student.hidden.device), self.trainer.state.global_step
        for group, chosen in self._groups(tokens):
            share = float(weights[tokens.domains[chosen]].sum())
            whole = float((weights * self._counts)[group] if self._apart else (weights * self._counts).sum())
            for i, term in enumerate(self.terms):
                for pair, (F_S, F_T) in enumerate(_features(term, student, teacher, chosen)):
                    if isinstance(term, FlexKD) and term.stats == "step":
                        total = total + term.b * whole * term.step_loss(pair, F_S, F_T, self._moments[i, pair, group])
                    else:
                        total = total + term.b * share * term.loss(pair, F_S, F_T, step)
        return total

    @property
    def _apart(self) -> bool:
        return bool(self.trainer.alignment.needs_domain_gradients)

    def _groups(self, tokens: TrainedTokens) -> list[tuple[int, Tensor]]:
        """(number, mask (N,)) of the tokens that a term is made from together."""
        if not self._apart:
            return [(0, torch.ones_like(tokens.rows, dtype=torch.bool))]
        return [(int(k), tokens.domains == k) for k in tokens.domains.unique()]

    def step(self) -> dict[str, float]:
        """The last backward of a step is done: move the terms' own parameters; returns metrics."""
        metrics: dict[str, float] = {}
        if self.adversary is not None and self.adversarial:
            self.adversary.term.step()
            metrics |= {f"prada/{name}": value for name, value in self.adversary.term.take_metrics().items()}
        for i, term in enumerate(self.terms):
            term.step()
            measured = term.take_metrics()
            for (which, pair, _), moments in self._moments.items():
                if which == i:
                    r, live = moments.pearson()
                    measured[f"r_{pair}"] = float(r.sum() / live.sum().clamp(min=1))
            metrics |= {f"{term.name}/{name}": value for name, value in measured.items()}
        return metrics

    def state_dict(self) -> dict[str, Tensor]:
        """All that an exact resume needs, under names that begin with ``term/``."""
        parts: list[Any] = [*self.terms] if self.adversary is None else [*self.terms, self.adversary]
        return {f"term/{i}/{name}": value for i, part in enumerate(parts) for name, value in part.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the state back."""
        parts: list[Any] = [*self.terms] if self.adversary is None else [*self.terms, self.adversary]
        for i, part in enumerate(parts):
            start = f"term/{i}/"
            part.load_state_dict({n.removeprefix(start): value for n, value in state.items() if n.startswith(start)})

    def group(self, optimizer: torch.optim.Optimizer) -> None:
        """Give what is trained beside LoRA its own learning rate."""
        if self.adversary is not None:
            self.adversary.group(optimizer)

    def save(self, folder: Path) -> None:
        """What belongs to a saved student beside its adapter."""
        if self.adversary is not None:
            self.adversary.save(folder, Path(self.trainer.args.output_dir) / "prada")


def _features(
    term: FeatureTerm, student: StudentOutput, teacher: StudentOutput, chosen: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Hidden states of both at some positions, for every pair of layers; the teacher's without gradient."""
    return [
        (
            (student.hidden if s == -1 else student.layers[s])[chosen],
            (teacher.hidden if t == -1 else teacher.layers[t])[chosen].detach(),
        )
        for t, s in term.layers
    ]
