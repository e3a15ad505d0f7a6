"""The teacher inside training: a frozen model, or the student's own base, asked at the trained positions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isodistill.errors import UserError
from isodistill.objectives import Objective, StudentOutput
from isodistill.teachers.vocabulary import common_vocabulary
from isodistill.terms import FeatureTerm
from isodistill.training.forward import Student

__all__ = ["LiveTeacher", "teacher_obstacles"]

TeacherModel: TypeAlias = PreTrainedModel | Literal["self"]
"""A model, or ``self``: the student's base weights, its adapter switched off."""


class LiveTeacher:
    """Hidden states of the teacher without gradient, in eval mode and its own dtype; never trained, never saved.

    Args:
        teacher: the model, or ``self``.
        student: the model that is trained.
        dtype: of the head's product.
        device: where the teacher is put; ``self`` is there already.

    Attributes:
        model: the teacher; for ``self`` the student's own, which is the teacher inside ``as_teacher`` alone.
        asked: its decoder and head.
    """

    def __init__(self, teacher: TeacherModel, student: PeftModel, dtype: torch.dtype, device: torch.device) -> None:
        self._own: PeftModel | None = None
        if teacher == "self":
            self._own = student
            self.model = cast(nn.Module, student.get_base_model())
        else:
            self.model = cast(nn.Module, teacher).to(device).eval().requires_grad_(False)
        self.asked = Student(self.model, dtype)

    def set_layers(self, layers: Sequence[int]) -> None:
        """Give the states after these earlier layers, too."""
        self.asked.layers = layers

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
        """The teacher's side of flat positions (N,) of input_ids (rows, T)."""
        with self.as_teacher():
            return self.asked(batch, positions)


def teacher_obstacles(
    objective: Objective,
    teacher: TeacherModel | None,
    student: nn.Module,
    method: str,
    tokenizer: PreTrainedTokenizerBase,
    teacher_tokenizer: PreTrainedTokenizerBase | None,
    longest: int,
    terms: Sequence[FeatureTerm] = (),
) -> list[str]:
    """Why this objective, or these terms, cannot ask this teacher; empty where they can.

    Args:
        objective: of the training.
        teacher: its teacher, or None.
        student: the model that is trained.
        method: for the messages.
        tokenizer: of the student.
        teacher_tokenizer: of the teacher; None: the user vouches that it is the same.
        longest: tokens of the longest row.
        terms: beside the objective; all of them look at the teacher's hidden states.
    """
    if not objective.needs_teacher and not terms:
        if teacher is None:
            return []
        return [f"{method} learns from traces on disk and asks no teacher while it trains; leave teacher_model out"]
    if teacher is None:
        return [
            f"{method} asks a teacher at every token: set teacher (in Python teacher_model) to a model or to `self`"
        ]
    if teacher == "self":
        return []
    obstacles = []
    cut = getattr(objective, "vocab", "same") == "truncate"
    sizes = [_config(model).vocab_size for model in (cast(nn.Module, teacher), student)]
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
    context = getattr(_config(cast(nn.Module, teacher)), "max_position_embeddings", longest)
    if longest > context:
        obstacles.append(f"the longest row has {longest} tokens and the teacher reads {context}; lower max_length")
    return obstacles


def _config(model: nn.Module) -> Any:
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model).config
