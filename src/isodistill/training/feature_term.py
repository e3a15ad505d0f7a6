"""Terms on features inside training: whose features they see, how a micro-batch counts, when dimensions are chosen."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from isodistill.alignment import Alignment
from isodistill.data.encode import Encoded
from isodistill.models.load import hidden_layers
from isodistill.numerics.correlation import PairMoments, correlation_loss
from isodistill.objectives import StudentOutput, TeacherOutput, TrainedTokens
from isodistill.terms import FeatureTerm, FlexKD
from isodistill.terms.scoring import DimensionScores
from isodistill.training.config import DistillConfig
from isodistill.training.forward import trained_tokens
from isodistill.training.scoring import score_rows, scored
from isodistill.training.step_term import StepTerm, alignment_obstacles

__all__ = ["FeatureStep"]


class FeatureStep(StepTerm):
    """Adds a term on features to the loss of every micro-batch.

    The term is made from the tokens of a micro-batch, all at once, or domain by domain where the alignment keeps the
    gradients of domains apart; it counts with the weights that the tokens of the objective have together.

    Args:
        trainer: the ``DistillTrainer``.
        args: of the training.
        term: not the neutral one.
    """

    def __init__(self, trainer: Any, args: DistillConfig, term: FeatureTerm) -> None:
        super().__init__(trainer, args)
        self.term = term
        self.flexkd = term if isinstance(term, FlexKD) else None
        self._of_step = self.flexkd is not None and self.flexkd.stats == "step"
        self._moments: dict[tuple[int, int], PairMoments] = {}

    @property
    def looks_ahead(self) -> bool:
        """Where the statistics are those of the whole step."""
        return self._of_step

    def obstacles(
        self, alignment: Alignment, encoded: Sequence[Encoded], student: nn.Module, teacher: object
    ) -> list[str]:
        """See ``StepTerm``."""
        found = alignment_obstacles(alignment, self.args.method)
        if self._of_step and any(isinstance(m, nn.Dropout) and m.p > 0 for m in student.modules()):
            found.append("flexkd with stats: step sees every batch twice, alike: set the dropout to 0")
        for side, (who, model) in enumerate((("teacher", teacher), ("student", student))):
            if not isinstance(model, nn.Module):
                continue
            deepest, asked = hidden_layers(model), max(pair[side] for pair in self.term.layers)
            if asked > deepest:
                found.append(f"{self.term.name} looks at layer {asked} of the {who}, which has {deepest}")
        return found

    def layers(self, side: int) -> tuple[int, ...]:
        """See ``StepTerm``."""
        return tuple(sorted({pair[side] for pair in self.term.layers} - {-1}))

    def setup(self, total_steps: int) -> None:
        """Tell the teacher which layers are asked for, and the term the widths of the hidden states."""
        self.trainer.teacher.set_layers(self.layers(0))
        self.term.setup(self._widths(), self.args.seed)

    def _widths(self) -> list[tuple[int, int]]:
        models = (self.trainer.model.get_base_model(), self.trainer.teacher.model)
        last_S, last_T = (model.get_output_embeddings().in_features for model in models)
        inner_S, inner_T = (model.config.hidden_size for model in models)
        return [(last_S if s == -1 else inner_S, last_T if t == -1 else inner_T) for t, s in self.term.layers]

    def begin(self, batches: Sequence[Mapping[str, Tensor]], counts: Tensor) -> None:
        """Choose dimensions where that is due, and look at the whole step where the statistics are its own."""
        self._counts = counts
        if self.flexkd is not None:
            self._choose(self.flexkd, self.trainer.state.global_step)
        self._moments = {}
        if self._of_step:
            for batch in batches:
                self._look(batch)
            self._share()

    def _choose(self, term: FlexKD, step: int) -> None:
        due = bool(term.idx) and term.refresh_every and step and step % term.refresh_every == 0
        term.refreshed = step // term.refresh_every if term.refresh_every else 0
        if due or not term.idx:
            widths = self._widths()
            term.choose(self._scored(term, widths) if any(d_S < d_T for d_S, d_T in widths) else [])

    def _scored(self, term: FlexKD, widths: list[tuple[int, int]]) -> list[DimensionScores]:
        add = functools.partial(score_rows, self.trainer, [teacher for teacher, _ in term.layers])
        return scored(
            *(term, widths, self.trainer.teacher.model, self.trainer.train_dataset),
            described=lambda row: [row.input_ids, row.labels],
            add=add,
            args=self.args,
            dtype=str(self.args.compute_dtype),
        )

    def _look(self, batch: Mapping[str, Tensor]) -> None:
        """Add a micro-batch to the moments of the step; the same forwards as in training, so the same numbers."""
        assert self.flexkd is not None
        tokens, positions = trained_tokens(batch)
        with self.trainer._autocast():
            student, teacher = self.trainer.student(batch, positions), self.trainer.teacher(batch, positions)
        for group, chosen in self._groups(tokens):
            for pair, (F_S, F_T) in enumerate(self._features(student, teacher, chosen)):
                F_S, F_T = self.flexkd.paired(pair, F_S, F_T)
                self._moments.setdefault((pair, group), PairMoments(F_S.shape[1])).update(F_S, F_T)

    def _share(self) -> None:
        """Every process knows the moments of all."""
        if self.args.world_size == 1:
            return
        assert self.flexkd is not None
        accelerator = self.trainer.accelerator
        for pair, idx in enumerate(self.flexkd.idx):
            for group in range(len(self.trainer.domains) if self._apart else 1):
                own = self._moments.get((pair, group), PairMoments(len(idx))).packed()
                merged = PairMoments(len(idx))
                for packed in accelerator.gather(own[None].to(accelerator.device)).cpu():
                    merged.merge(packed)
                self._moments[pair, group] = merged

    def __call__(
        self,
        student: StudentOutput,
        tokens: TrainedTokens,
        positions: Tensor,
        batch: Mapping[str, Tensor],
        teacher: TeacherOutput | None,
    ) -> Tensor:
        """b L times the trained tokens that each domain has among those that L is made from: see ``StepTerm``."""
        assert isinstance(teacher, StudentOutput)
        raised = super().__call__(student, tokens, positions, batch, teacher)
        step = self.trainer.state.global_step
        for group, chosen in self._groups(tokens):
            n = torch.bincount(tokens.domains[chosen], minlength=len(raised)).to(raised)
            for pair, (F_S, F_T) in enumerate(self._features(student, teacher, chosen)):
                if self.flexkd is None or not self._of_step:
                    raised = raised + self.term.b * n * self.term.loss(pair, F_S, F_T, step)
                    continue
                moments = self._moments[pair, group]
                # The pulls have the gradient of L and another value; the value is L, by the tokens seen here.
                pulled = self.flexkd.step_loss(pair, F_S, F_T, moments)
                L = float(correlation_loss(*moments.pearson()))
                whole = torch.where(n > 0, self._counts.to(raised), 0.0) if self._apart else self._counts.to(raised)
                raised = raised + self.term.b * (whole * (pulled - pulled.detach()) + n * L)
        return raised

    @property
    def _apart(self) -> bool:
        return bool(self.trainer.alignment.needs_domain_gradients)

    def _groups(self, tokens: TrainedTokens) -> list[tuple[int, Tensor]]:
        """(number, mask (N,)) of the tokens that the term is made from together."""
        if not self._apart:
            return [(0, torch.ones_like(tokens.rows, dtype=torch.bool))]
        return [(int(k), tokens.domains == k) for k in tokens.domains.unique()]

    def _features(self, student: StudentOutput, teacher: StudentOutput, chosen: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Hidden states of both at some positions, for every pair of layers; the teacher's without gradient."""
        return [
            (
                (student.hidden if s == -1 else student.layers[s])[chosen],
                (teacher.hidden if t == -1 else teacher.layers[t])[chosen].detach(),
            )
            for t, s in self.term.layers
        ]

    def step(self) -> dict[str, float]:
        """See ``StepTerm``."""
        self.term.step()
        measured = self.term.take_metrics()
        for (pair, _), moments in self._moments.items():
            r, live = moments.pearson()
            measured[f"r_{pair}"] = float(r.sum() / live.sum().clamp(min=1))
        return {f"{self.term.name}/{name}": value for name, value in measured.items()}

    def state_dict(self) -> dict[str, Tensor]:
        """See ``StepTerm``."""
        return self.term.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See ``StepTerm``."""
        self.term.load_state_dict(state)
