"""Teachers from their settings: asked for texts, beside the student in training, as judges of steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from isodistill.data.encode import encode_rows
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.evaluation.generate import generate
from isodistill.models.device import choose_placement
from isodistill.models.load import Student, load_student
from isodistill.objectives import VCRD
from isodistill.pipeline.ranks import is_main, wait_for_all
from isodistill.recipe import Recipe, parse_settings
from isodistill.teachers.base import Teacher
from isodistill.teachers.local import LocalTeacher
from isodistill.teachers.logits import LogitCache, fill_cache, made_by
from isodistill.teachers.replay import ReplayTeacher
from isodistill.teachers.server import ServerTeacher
from isodistill.teachers.settings import TeacherSettings
from isodistill.teachers.vocabulary import common_vocabulary
from isodistill.training import DistillConfig
from isodistill.training.slots import fill_slots
from isodistill.training.teaching import TeacherModel, scored_by_teacher
from isodistill.validity import JudgeScorer, Scorer
from isodistill.validity.identity import fingerprint

__all__ = ["judge_settings", "make_teacher", "training_scorer", "training_teacher"]


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


def training_teacher(
    recipe: Recipe, folder: Path, student: Student, rows: Sequence[Row], config: DistillConfig
) -> tuple[TeacherModel | None, PreTrainedTokenizerBase | None]:
    """Teacher and tokenizer of a training; None where objective and term ask none, as a baseline beside them.

    With ``teacher_top_k`` every row is asked here, and the teacher is let go before training.

    Args:
        recipe: of the run.
        folder: the log-probs go into its ``teacher-logits``.
        student: as it is before training, which is the teacher ``self``.
        rows: all rows that the objective will see.
        config: of the training.

    Raises:
        UserError: the teacher cannot be loaded, or its log-probs would mean nothing to the student.
    """
    objective, _, term, _ = fill_slots(recipe.method, recipe.objective, recipe.alignment, recipe.term)
    steps = objective.step_settings if isinstance(objective, VCRD) else None
    by_text = steps is not None and scored_by_teacher(steps.scorer)
    features = term is not None and term.needs_teacher
    if recipe.teacher is None or not (objective.needs_teacher or by_text or features):
        return None, None
    if recipe.teacher_top_k and features:
        raise UserError(
            f"teacher_top_k is {recipe.teacher_top_k}, and the term looks at the teacher's hidden states, which are "
            "not kept on disk. Set teacher_top_k to 0."
        )
    if recipe.teacher == "self" and not recipe.teacher_top_k:
        return "self", None
    teacher = student if recipe.teacher == "self" else load_student(recipe.teacher)
    if not recipe.teacher_top_k:
        return teacher.model, teacher.tokenizer
    truncate = getattr(objective, "vocab", "same") == "truncate"
    tokenizer, sizes = student.tokenizer, (student.model.config.vocab_size, teacher.model.config.vocab_size)
    n_vocab = common_vocabulary(tokenizer, teacher.tokenizer, *sizes, truncate=truncate)
    temperature = getattr(objective, "temperature", 1.0)
    maker = made_by(recipe.teacher, fingerprint(teacher.model), tokenizer, n_vocab, temperature)
    if is_main():
        encoded, _ = encode_rows(rows, tokenizer, config.max_length, max_refused=1.0)
        cache = LogitCache(folder / "teacher-logits", maker, k=recipe.teacher_top_k)
        filled = fill_cache(cache, teacher.model.to(config.device), encoded)
        print(f"The teacher was asked for {filled} of {len(encoded)} rows; the others were known.", flush=True)
    wait_for_all()
    return LogitCache(folder / "teacher-logits", maker, k=recipe.teacher_top_k), None


def judge_settings(recipe: Recipe) -> tuple[TeacherSettings, int] | None:
    """Teacher and ``max_tokens`` of the judge that ``steps.scorer`` of VCRD names; None for every other scorer.

    Raises:
        UserError: an unknown key, or settings of a teacher that do not go together.
    """
    objective = fill_slots(recipe.method, recipe.objective, recipe.alignment)[0]
    settings = objective.step_settings if isinstance(objective, VCRD) else None
    if settings is None or settings.scorer["name"] != "judge":
        return None
    given = {key: value for key, value in settings.scorer.items() if key != "name"}
    if not isinstance(given.get("teacher"), dict) or set(given) - {"teacher", "max_tokens"}:
        raise UserError(
            "A judge is given as {name: judge, teacher: {kind: server, model: ..., base_url: ...}, max_tokens: 8}."
        )
    asked = parse_settings(TeacherSettings, given["teacher"], [], "the judge of the objective vcrd")
    return asked, given.get("max_tokens", 8)


def training_scorer(recipe: Recipe) -> Scorer | None:
    """The judge of ``judge_settings``; None for every other scorer, which the trainer makes itself.

    Raises:
        UserError: its teacher cannot be made.
    """
    judge = judge_settings(recipe)
    if judge is None:
        return None
    asked, max_tokens = judge
    return JudgeScorer(make_teacher(asked, recipe), asked.workers, max_tokens)
