"""The student of a run: as it is before training, and as it answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from isodistill.data.load import load_rows
from isodistill.errors import UserError
from isodistill.evaluation.backends import Backend, LocalBackend, OpenAIBackend
from isodistill.evaluation.generate import merged_copy
from isodistill.evaluation.records import Stage
from isodistill.models.device import choose_placement
from isodistill.models.load import SMOLLM2, Student, load_model, load_student
from isodistill.models.prompt import PROMPT, WEIGHTS, with_prompt
from isodistill.models.tiny import TINY, make_tiny_student
from isodistill.pipeline.problems import learned_file
from isodistill.pipeline.stamps import files_under
from isodistill.recipe import Recipe

__all__ = ["files_of_trained", "name_of", "open_backend", "open_base", "open_trained"]


def open_base(recipe: Recipe, folder: Path) -> Student:
    """The student before training."""
    if recipe.student != TINY:
        return load_student(recipe.student)
    rows = load_rows(learned_file(recipe, folder, "train"), max_refused=0).rows
    return make_tiny_student([f"{row.prompt}\n{row.completion}" for row in rows], recipe.seed)


def open_backend(recipe: Recipe, folder: Path, student: Student, stage: Stage) -> Backend:
    """Who answers: the server of the recipe, or the student itself, its adapter merged after training.

    Raises:
        UserError: the student has a soft prompt, and a server is to answer.
    """
    settings = recipe.evaluate
    if settings.backend == "openai":
        if (folder / "student" / PROMPT).exists():
            raise UserError(
                f"The student in {folder / 'student'} has a soft prompt, which no server puts before its questions. "
                "Set evaluate.backend to local."
            )
        print("Answers come from a server, which gives no hidden states: the LCS family is null.", flush=True)
        return OpenAIBackend(str(settings.base_url), str(settings.model), student.context)
    return LocalBackend(*_answering(recipe, folder, student, stage))


def open_trained(recipe: Recipe, folder: Path, stage: Stage) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The student of a run as it answers, its adapter merged, and its tokenizer.

    Raises:
        UserError: the run has no trained student, or one with a soft prompt, and ``stage`` is after.
    """
    if stage == "after":
        files_of_trained(folder)
    student = open_base(recipe, folder)
    model, before = _answering(recipe, folder, student, stage)
    if before:
        raise UserError(
            f"The student in {folder / 'student'} has a soft prompt, which is no part of its model. Only "
            "`isodistill evaluate` puts it before the questions."
        )
    return model, student.tokenizer


def files_of_trained(folder: Path) -> list[Path]:
    """What the trained student of a run is made of, beside its base.

    Raises:
        UserError: there is none.
    """
    adapter = folder / "student" / "adapter_model.safetensors"
    if not adapter.exists():
        raise UserError(f"{folder} has no trained student ({adapter} is missing). `isodistill train` makes one.")
    return [adapter, *files_under(folder / "student" / PROMPT), *files_under(folder / "student" / WEIGHTS)]


def name_of(student: str) -> str:
    """What results print."""
    names = {SMOLLM2: "SmolLM2-135M-Instruct, dequantised from Q4_1", TINY: "tiny, made on the spot"}
    return names.get(student, student)


def _answering(recipe: Recipe, folder: Path, student: Student, stage: Stage) -> tuple[PreTrainedModel, Sequence[int]]:
    """The student where the recipe puts it, after training with its adapter merged; and what stands before prompts."""
    bf16 = recipe.train.get("bf16")
    dtype = None if bf16 is None else "bfloat16" if bf16 else "float32"
    placement = choose_placement("cpu" if recipe.train.get("use_cpu") else None, dtype)
    model, before = student.model, list[int]()
    if stage == "after":
        trained = folder / "student"
        if (trained / WEIGHTS).exists():
            model = load_model(trained / WEIGHTS)
        model = merged_copy(PeftModel.from_pretrained(model, trained), placement.compute_dtype)
        if (trained / PROMPT).exists():
            before = with_prompt(model, trained / PROMPT)
    return model.to(placement.device, placement.compute_dtype).eval(), before
