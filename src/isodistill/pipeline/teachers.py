"""A teacher from its settings."""

from __future__ import annotations

from isodistill.evaluation.generate import generate
from isodistill.models.device import choose_placement
from isodistill.models.load import load_student
from isodistill.recipe import Recipe
from isodistill.teachers.base import Teacher
from isodistill.teachers.local import LocalTeacher
from isodistill.teachers.replay import ReplayTeacher
from isodistill.teachers.server import ServerTeacher
from isodistill.teachers.settings import TeacherSettings

__all__ = ["make_teacher"]


def make_teacher(settings: TeacherSettings, recipe: Recipe) -> Teacher:
    """The teacher; a local one is loaded onto the device and in the dtype that the recipe trains with.

    Raises:
        UserError: a model, file or package is missing.
    """
    if settings.kind == "server":
        return ServerTeacher(
            settings.identity, str(settings.model), str(settings.base_url), settings.key_from, settings.timeout
        )
    if settings.kind == "replay":
        return ReplayTeacher(settings.identity, str(settings.files), settings.columns, recipe.max_refused)
    student = load_student(str(settings.model))
    bf16 = recipe.train.get("bf16")
    dtype = None if bf16 is None else "bfloat16" if bf16 else "float32"
    placement = choose_placement("cpu" if recipe.train.get("use_cpu") else None, dtype)
    student.model.to(placement.device, placement.compute_dtype).eval()
    return LocalTeacher(settings.identity, student, generate, settings.workers)
