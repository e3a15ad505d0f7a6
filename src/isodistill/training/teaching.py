"""The teacher inside training: a frozen model, the student's own base, or what one said before, kept on disk."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isodistill.data.encode import Encoded
from isodistill.errors import UserError
from isodistill.objectives import VCRD, Distillation, Objective, StudentOutput, TeacherOutput
from isodistill.teachers.logits import LogitCache, TopK, joined
from isodistill.teachers.vocabulary import common_vocabulary, tokenizer_hash
from isodistill.training.forward import Student
from isodistill.validity import Scorer

__all__ = ["CachedTeacher", "LiveTeacher", "TeacherModel", "open_teacher", "scored_by_teacher", "teacher_obstacles"]

TeacherModel: TypeAlias = PreTrainedModel | Literal["self"] | LogitCache
"""A model; ``self``: the student's base weights, its adapter switched off; or top-k log-probs on disk."""


class LiveTeacher:
    """Hidden states of the teacher without gradient, in eval mode and its own dtype; never trained, never saved.

    Args:
        teacher: the model, frozen and on its device, or ``self``.
        student: the model that is trained.
        dtype: of the head's product.
        rows: that are trained on, to name one.

    Attributes:
        model: the teacher; for ``self`` the student's own, which is the teacher inside ``as_teacher`` alone.
    """

    def __init__(
        self,
        teacher: PreTrainedModel | Literal["self"],
        student: PeftModel,
        dtype: torch.dtype,
        rows: Sequence[Encoded] = (),
    ) -> None:
        self._rows = rows
        self._own: PeftModel | None = None
        if teacher == "self":
            self._own = student
            self.model = cast(nn.Module, student.get_base_model())
        else:
            self.model = cast(nn.Module, teacher)
        self._asked = Student(self.model, dtype)

    def set_layers(self, layers: Sequence[int]) -> None:
        """Give the states after these earlier layers, too."""
        self._asked.layers = layers

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """While open, ``model`` computes as the teacher: without adapter and in eval mode."""
        if self._own is None:
            yield
            return
        training = self._own.training
        self._own.eval()
        try:
            with self._own.disable_adapter():
                yield
        finally:
            self._own.train(training)

    @torch.no_grad()
    def __call__(self, batch: Mapping[str, Tensor], positions: Tensor) -> StudentOutput:
        """The teacher's side of flat positions (N,) of input_ids (rows, T).

        Raises:
            UserError: a state is not finite, which no later step would mend: the teacher is frozen.
        """
        with self.as_teacher():
            out = self._asked(batch, positions)
        finite = torch.isfinite(out.hidden.sum(1, dtype=torch.float64))
        if not finite.all():
            row, position = divmod(int(positions[~finite][0]), batch["input_ids"].shape[1])
            raise UserError(
                f"The teacher's hidden states are not finite at position {position} of {self._named(batch, row)}. Its "
                "weights are damaged, or overflow in its dtype: load it in float32, or take the row out."
            )
        return out

    def _named(self, batch: Mapping[str, Tensor], row: int) -> str:
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
        found = next((known.row_id for known in self._rows if known.input_ids == ids), None)
        return f"row {found}" if found else f"a text of {len(ids)} tokens that is none of the training rows"


class CachedTeacher:
    """What a teacher said at the trained tokens of every row, read from disk.

    Args:
        cache: holds every row that is trained on.
        device: of the training.
    """

    def __init__(self, cache: LogitCache, device: torch.device) -> None:
        self._cache, self._device = cache, device

    def __call__(self, batch: Mapping[str, Tensor], positions: Tensor) -> TopK:
        """Its top k at flat positions (N,) of input_ids (rows, T).

        Raises:
            UserError: a text is not in the cache, or was stored at other positions.
        """
        width = batch["input_ids"].shape[1]
        parts = []
        for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
            asked = (positions[positions // width == row] % width).cpu()
            if not len(asked):
                continue
            stored = self._cache.read(ids[: int(mask.sum())].tolist())
            if not torch.equal(stored.positions, asked):
                raise UserError(
                    f"{self._cache.folder} holds other positions of a text than are trained. Fill it from these rows."
                )
            parts.append(stored)
        return joined(parts).to(self._device)


def open_teacher(
    teacher: TeacherModel | None,
    student: PeftModel,
    asked: bool,
    dtype: torch.dtype,
    device: torch.device,
    rows: Sequence[Encoded] = (),
) -> Callable[[Mapping[str, Tensor], Tensor], TeacherOutput] | None:
    """The teacher as the training step asks it; None where neither objective nor term has ``asked`` for it."""
    if isinstance(teacher, PreTrainedModel):
        teacher.to(device).eval().requires_grad_(False)
    if teacher is None or not asked:
        return None
    if isinstance(teacher, LogitCache):
        return CachedTeacher(teacher, device)
    return LiveTeacher(teacher, student, dtype, rows)


def teacher_obstacles(
    objective: Objective,
    teacher: TeacherModel | None,
    student: nn.Module,
    method: str,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    encoded: Sequence[Encoded],
    scorer: Scorer | None = None,
    *,
    features: bool = False,
) -> list[str]:
    """Why this objective, or a term, cannot ask this teacher; empty where they can.

    Args:
        objective: of the training.
        teacher: its teacher, or None.
        student: the model that is trained.
        method: for the messages.
        tokenizer: of the student.
        teacher_tokenizer: of the teacher; None: the user vouches that it is the same.
        encoded: the rows that are trained on.
        scorer: of steps, where it is given instead of described.
        features: a term looks at the teacher's hidden states.
    """
    steps = objective.step_settings if isinstance(objective, VCRD) else None
    by_teacher = steps is not None and scorer is None and scored_by_teacher(steps.scorer)
    asked = objective.needs_teacher or features
    if steps is not None and not tokenizer.is_fast:
        return [f"{method} cuts traces into steps, which needs the offsets of a fast tokenizer"]
    if teacher is None:
        if asked or by_teacher:
            what = "at every token" if asked else "how valid steps are"
            return [f"{method} asks a teacher {what}: set teacher (in Python teacher_model) to a model or to `self`"]
        return []
    if not asked:
        if by_teacher:
            return []  # it reads text, so any tokenizer will do
        return [f"{method} learns from traces on disk and asks no teacher while it trains; leave teacher_model out"]
    if isinstance(teacher, LogitCache):
        own = isinstance(objective, Distillation) and objective.rho > 0
        return _cache_obstacles(objective, teacher, student, tokenizer, encoded, live=own or by_teacher or features)
    if teacher == "self":
        return []
    return _model_obstacles(objective, teacher, student, tokenizer, teacher_tokenizer, encoded)


def _model_obstacles(
    objective: Objective,
    teacher: PreTrainedModel,
    student: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    encoded: Sequence[Encoded],
) -> list[str]:
    obstacles = []
    cut = getattr(objective, "vocab", "same") == "truncate"
    sizes = [_config(model).vocab_size for model in (teacher, student)]
    if objective.needs_teacher and sizes[0] != sizes[1] and not cut:
        obstacles.append(
            f"the teacher has {sizes[0]} logits and the student {sizes[1]}; for one tokenizer with padded embeddings "
            "set objective.vocab to truncate"
        )
    if teacher_tokenizer is not None:
        try:
            common_vocabulary(tokenizer, teacher_tokenizer, sizes[1], sizes[0], truncate=True)
        except UserError as error:
            obstacles.append(str(error))
    elif objective.needs_teacher:
        warnings.warn(
            "Nobody said which tokenizer the teacher has. If it is not the student's, its log-probs speak of other "
            "tokens: give DistillTrainer teacher_processing_class to have the two compared.",
            stacklevel=4,
        )
    longest = max(len(row.input_ids) for row in encoded)
    context = getattr(_config(teacher), "max_position_embeddings", longest)
    if longest > context:
        obstacles.append(f"the longest row has {longest} tokens and the teacher reads {context}; lower max_length")
    return obstacles


def scored_by_teacher(scorer: Mapping[str, Any]) -> bool:
    """The teacher judges the steps of VCRD."""
    by = scorer.get("by", "teacher") == "teacher"
    return bool(scorer["name"] == "likelihood" or (scorer["name"] == "rollout" and by))


def _cache_obstacles(
    objective: Objective,
    cache: LogitCache,
    student: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    *,
    live: bool,
) -> list[str]:
    obstacles = []
    temperature = getattr(objective, "temperature", 1.0)
    if cache.maker.temperature != temperature:
        obstacles.append(
            f"{cache.folder} was filled at temperature {cache.maker.temperature:g} and the objective has "
            f"{temperature:g}; a truncated softmax cannot be tempered again"
        )
    if cache.maker.tokenizer != tokenizer_hash(tokenizer):
        obstacles.append(f"{cache.folder} was filled with another tokenizer than the student's")
    if cache.maker.n_vocab > _config(student).vocab_size:
        obstacles.append(f"{cache.folder} speaks of {cache.maker.n_vocab} tokens; the student has fewer logits")
    missing = sum(row.input_ids not in cache for row in encoded)
    if missing:
        obstacles.append(f"{cache.folder} lacks {missing} of {len(encoded)} rows; fill it from the rows trained on")
    if live:
        obstacles.append(
            "samples of the student, scores by the teacher and its hidden states need a model, not stored log-probs"
        )
    return obstacles


def _config(model: nn.Module) -> Any:
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model).config
