"""The guard beside the trainer: what it asks for is made here, and what it leaves is written."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from isodistill.alignment import Alignment
from isodistill.data.collate import collate
from isodistill.data.encode import Encoded
from isodistill.data.files import write_lines
from isodistill.guards import Angular, Guard, Nodes, drift_summary, node_groups
from isodistill.guards.ranks import summed
from isodistill.models.lora import DomainGradients
from isodistill.objectives import CrossEntropy, StudentOutput, TrainedTokens
from isodistill.teachers.logits import LogitCache
from isodistill.training.config import DistillConfig
from isodistill.training.forward import open_student, trained_tokens
from isodistill.training.guard_state import fingerprint, read_guard_state, write_guard_state

__all__ = ["Guarding", "guard_clashes", "guard_obstacles", "never_measures"]


def guard_clashes(guard: Guard, name: str, alignment: Alignment) -> list[str]:
    """Why the guard cannot work under the alignment, whatever the student; empty where it can."""
    found = guard.clashes(alignment)
    if guard.adds_direction and not alignment.steps_on_direction:
        found.append(
            f"{name} adds to the direction of the step, and {type(alignment).__name__} takes steps of its own, which "
            "do not see it; choose another alignment, or the guard angular or lwf"
        )
    return found


def never_measures(guard: Guard, steps: int) -> list[str]:
    """Why a stage after the first would be too short for the guard's decisions; empty where it is long enough."""
    if not isinstance(guard, Angular) or guard.mode == "monitor" or not 0 < steps < guard.every:
        return []
    return [f"angular would never measure: guard.every is {guard.every}, and there are {steps} steps"]


def guard_obstacles(
    guard: Guard, name: str, model: nn.Module, alignment: Alignment, teacher: Any, args: DistillConfig
) -> list[str]:
    """Why the guard cannot protect this student in this training; empty where it can."""
    found = guard.obstacles(model) + guard_clashes(guard, name, alignment)
    if args.guard_state is not None:
        found += never_measures(guard, args.max_steps)
    if guard.learns_again and isinstance(teacher, LogitCache):
        found.append(
            f"{name} learns old rows again, of which the cache of teacher_top_k knows nothing; set teacher_top_k to 0, "
            "so that the teacher is asked at every step"
        )
    return found


class Guarding:
    """See the module.

    Args:
        trainer: the ``DistillTrainer``, with its model on the device.
        guard: the guard of the stage.
        name: its name.
        state: folder that the last stage wrote; None in the first stage.

    Raises:
        UserError: the state is missing, damaged, or of another guard or student.
    """

    def __init__(self, trainer: Any, guard: Guard, name: str, state: str | None) -> None:
        self.trainer, self.guard, self.name = trainer, guard, name
        past = None
        if state is not None:
            past = read_guard_state(Path(state), name, trainer.model, fresh_adapter=guard.fresh_adapter)
        guard.begin(trainer.model, past, trainer.args.seed)

    # ---- within a step ----

    def begin_step(self) -> None:
        """The gradient of the mean token loss of old rows, where the guard wants some; each process takes its share."""
        trainer, args = self.trainer, self.trainer.args
        n_rows = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        rows = self.guard.past_rows(trainer.state.global_step, n_rows)
        if not rows:
            return
        n_tokens = sum(label != -100 for row in rows for label in row.labels[1:])
        gradients: DomainGradients = trainer.gradients
        gradients.zero()
        mine = rows[args.process_index :: args.world_size]
        if mine:
            batch = self._batch(mine)
            gradients.row_bounds = [0] + [len(mine)] * len(gradients.flat)
            gradients.n_tokens = batch["input_ids"].numel()
            tokens, positions = trained_tokens(batch)
            with trainer._autocast():
                student = trainer.student(batch, positions)
                teacher = None if trainer.teacher is None else trainer.teacher(batch, positions)
                losses, weights = trainer.objective.token_losses(student, tokens, teacher)
            ((losses * weights).sum() / n_tokens).backward()
            trainer.objective.take_metrics()  # of rows that are not this stage's
            if not trainer.segmented:
                gradients.fold(0)
        summed(gradients.flat)
        self.guard.take_replayed({name: view[0].clone() for name, view in gradients.views.items()})
        gradients.zero()

    def token_losses(
        self, batch: Mapping[str, Tensor], positions: Tensor, tokens: TrainedTokens, student: StudentOutput
    ) -> Tensor | float:
        """What the guard adds to the losses (N,) of the trained tokens."""
        if not self.guard.needs_old_student or self.guard.first:
            return 0.0
        return self.guard.token_losses(student, tokens, self._old(batch, positions))

    @torch.no_grad()
    def _old(self, batch: Mapping[str, Tensor], positions: Tensor) -> StudentOutput:
        """The student of the last stage: this one, with its trainable tensors exchanged for a moment."""
        model, now = self.trainer.model, {n: p.data for n, p in self.guard.parameters.items()}
        training = model.training
        model.eval()
        try:
            for name, p in self.guard.parameters.items():
                p.data = self.guard.reference[name]
            return cast(StudentOutput, self.trainer.student(batch, positions))
        finally:
            for name, p in self.guard.parameters.items():
                p.data = now[name]
            model.train(training)

    def after_backward(self) -> dict[str, float]:
        """The guard's part of the direction."""
        self.trainer._record(self.guard.take_metrics())
        return self.guard.after_backward()

    # ---- at the end of a stage ----

    def end_stage(self, folder: Path) -> None:
        """Let the guard measure and decide, and write what the next stage needs and what drifted.

        Args:
            folder: gets ``state.safetensors`` and ``state.json`` for the next stage, ``drift.json`` for the report.
        """
        began = time.perf_counter()
        decided = self.guard.end(self)
        seconds = time.perf_counter() - began
        if self.trainer.args.process_index != 0:
            return
        nodes: Nodes = getattr(self.guard, "nodes", "rows")
        reference = {id(p): self.guard.reference[name] for name, p in self.guard.parameters.items()}
        drift = drift_summary(node_groups(self.trainer.model, nodes), reference)
        options: dict[str, Any] = asdict(cast(Any, self.guard)) if is_dataclass(self.guard) else {}
        about = {"guard": self.name, "options": options, "student": fingerprint(self.trainer.model)}
        write_guard_state(folder, self.guard.carried(), about)
        told = {"nodes": nodes, "drift": drift, "decided": decided, "end_seconds": round(seconds, 3)}
        write_lines(folder / "drift.json", [json.dumps(told, indent=1, allow_nan=False)])

    @property
    def rows(self) -> Sequence[Encoded]:
        """The rows that the stage was trained on."""
        return cast("Sequence[Encoded]", self.trainer.train_dataset)

    def gradients(self, n: int, *, sampled: bool) -> Iterator[Mapping[str, Tensor]]:
        """d log p(y | x) / d theta by parameter name, one row at a time; see ``guards.StageEnd``."""
        trainer, args = self.trainer, self.trainer.args
        generator = torch.Generator().manual_seed(args.seed)
        chosen = torch.randperm(len(self.rows), generator=generator)[:n].tolist()
        trainer.model.eval()
        for p in self.guard.parameters.values():
            p.grad = None
        with ExitStack() as engine:
            gradients = DomainGradients.allocate(trainer.model, 1)
            student = open_student(trainer.model, gradients, args, trainer.segmented, engine)
            for index in chosen[args.process_index :: args.world_size]:
                batch = self._batch([self.rows[index]])
                gradients.zero()
                gradients.row_bounds, gradients.n_tokens = [0, 1], batch["input_ids"].numel()
                tokens, positions = trained_tokens(batch)
                with torch.enable_grad(), trainer._autocast():
                    out = student(batch, positions)
                    if sampled:
                        tokens = replace(tokens, targets=_drawn(out, args.seed + index))
                    loss = CrossEntropy().token_losses(out, tokens)[0].sum()
                loss.backward()
                if not trainer.segmented:
                    gradients.fold(0)
                yield {name: view[0] for name, view in gradients.views.items()}

    def _batch(self, rows: Sequence[Encoded]) -> dict[str, Tensor]:
        first = self.trainer.domains[0]
        pad = self.trainer.processing_class.pad_token_id
        batch = collate([replace(row, domain=first) for row in rows], [first], pad)
        return cast("dict[str, Tensor]", self.trainer._prepare_inputs(batch))


@torch.no_grad()
def _drawn(out: StudentOutput, seed: int) -> Tensor:
    """One token (N,) from the student at every trained position."""
    p = torch.softmax(out.head(out.hidden).float(), 1).cpu()
    drawn = torch.multinomial(p, 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)
    return drawn.to(out.hidden.device)
