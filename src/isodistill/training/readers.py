"""The models of a training as plain ones that generate, outside the training step."""

from __future__ import annotations

import copy
from functools import cached_property

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isodistill.evaluation.generate import merged_copy
from isodistill.training.teaching import TeacherModel

__all__ = ["Readers"]


class Readers:
    """The student as it stands, its base as it was before training, and the teacher.

    Args:
        student: with its adapter.
        tokenizer: of the student.
        teacher: a model, ``self`` (the base), or anything else for none.
        teacher_tokenizer: None: the student's.
        dtype: that copies answer in.
    """

    def __init__(
        self,
        student: PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        teacher: TeacherModel | None,
        teacher_tokenizer: PreTrainedTokenizerBase | None,
        dtype: torch.dtype,
    ) -> None:
        self._student, self._teacher, self._dtype = student, teacher, dtype
        self.tokenizer, self.teacher_tokenizer = tokenizer, teacher_tokenizer or tokenizer

    def student(self) -> PreTrainedModel:
        """A copy of the student with its adapter merged; another one every time, for it learns."""
        return merged_copy(self._student, self._dtype)

    def base(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The student without its adapter."""
        return self._base, self.tokenizer

    def teacher(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase] | None:
        """The teacher and its tokenizer; None where there is none that could be asked for more than stored logits."""
        if self._teacher == "self":
            return self.base()
        if isinstance(self._teacher, PreTrainedModel):
            return self._teacher.eval(), self.teacher_tokenizer
        return None

    @cached_property
    def _base(self) -> PreTrainedModel:
        bare: PreTrainedModel = copy.deepcopy(self._student).unload()
        return bare.to(self._dtype).eval().requires_grad_(False)
