"""``stages`` of a recipe: one student distilled several times in a row, and asked again about all it learned before.

stages/1-NAME/            a run folder for each stage: problems, traces, student after it, guard/
answers/before/1-NAME/    every stage's problems, answered by the student before any training,
answers/2-NAME/1-NAME/    and by the student after each stage
stages.json               R_ij and what follows from it, drift, costs
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from isodistill.data.encode import encode_rows
from isodistill.data.load import load_rows
from isodistill.errors import UserError
from isodistill.models.load import student_tokenizer
from isodistill.models.tiny import TINY, make_tiny_student
from isodistill.objectives import LabelMultitask
from isodistill.pipeline.problems import check_askable, learned_file, make_problems
from isodistill.pipeline.ranks import is_main, wait_for_all
from isodistill.pipeline.stage_numbers import STAGES, asked, write_numbers
from isodistill.pipeline.stamps import Stamps, digest, share_step
from isodistill.pipeline.steps import evaluate_student, resolved, train_student, write_recipe, write_results
from isodistill.pipeline.target import check_target
from isodistill.pipeline.teach import teach_rows
from isodistill.recipe import Recipe, parse_recipe
from isodistill.report import write_stage_report
from isodistill.training.config import DistillConfig
from isodistill.training.guarding import guard_clashes, never_measures
from isodistill.training.slots import fill_guard, fill_slots

__all__ = ["STAGES", "run_stages", "stage_recipes", "train_stages"]

_OF_THE_RUN = ("student", "lora", "guard", "stages", "baseline", "seed", "seed_hparam")
"""Keys that all stages share, since there is one student and one guard."""
_SLOTS = ("objective", "alignment", "term", "teach")
_ALIKE = ("problems", "real_data", "columns", "isomers", "split", "teach")
"""Keys that say what a stage learns; two stages that agree in them are one stage twice."""


def run_stages(recipe: Recipe, folder: Path, command: str) -> Path:
    """Train stage after stage, answer every earlier stage's problems after each one, and write the report.

    Finished stages and answers are skipped; an interrupted run goes on in the stage where it stopped. No baseline is
    trained beside a staged run: what it is compared with is the same recipe with another guard.

    Returns:
        The path of ``report.html``.

    Raises:
        UserError: see ``train_stages``.
    """
    train_stages(recipe, folder)
    recipes = stage_recipes(_with_base(recipe, folder))
    for after, tasks in asked(recipe, list(recipes)).items():
        for task in tasks:
            _answer(recipes[task], folder, task, after)
    write_numbers(recipe, recipes, folder)
    write_stage_report(folder, command=command, out=folder / "report.html")
    return folder / "report.html"


def train_stages(recipe: Recipe, folder: Path) -> Path:
    """Problems, traces and training of all stages, by one process or by all of a launch.

    The problems of all stages are made before any of them is trained.

    Returns:
        Where the student of the last stage lies.

    Raises:
        UserError: a stage has no rows, is repeated, or sets a key of the whole run; and what the steps raise.
    """
    if recipe.evaluate.backend != "local":
        raise UserError("A recipe with stages asks a student for every stage; set evaluate.backend to local.")
    if is_main():
        _prepare(recipe, folder)
    wait_for_all()
    earlier = None
    for name, stage in stage_recipes(_with_base(recipe, folder)).items():
        path = folder / "stages" / name
        train_student(stage, path, Stamps(path), earlier)
        earlier = path
    return path / "student"


def stage_recipes(recipe: Recipe) -> dict[str, Recipe]:
    """``1-NAME`` -> the recipe of each stage, in order: the whole one with the stage's own keys over it.

    A group of keys is merged key by key, a slot is replaced; a stage that names a method takes the slots of its preset.

    Raises:
        UserError: a stage has no name, shares its name or its problems with another one, or sets a key of the run.
    """
    found: dict[str, Recipe] = {}
    learned: dict[str, str] = {}
    for number, given in enumerate(recipe.stages or [], start=1):
        name = given.get("name")
        if not isinstance(name, str) or not name or any(character in name for character in "/\\"):
            raise UserError(f"Stage {number} needs a name, the name of a folder; it is {name!r}.")
        taken = [key for key in given if key in _OF_THE_RUN]
        if taken:
            raise UserError(f"Stage {name} sets {', '.join(taken)}, which all stages share; set it beside stages.")
        if name in {known.partition("-")[2] for known in found}:
            raise UserError(
                f"The stage {name} is there twice; a student learns a stage once, so give each its own name."
            )
        own = {key: value for key, value in given.items() if key != "name"}
        stage = _merged(recipe, own, f"stage {name}")
        alike = digest([asdict(stage)[key] for key in _ALIKE])
        if alike in learned:
            raise UserError(f"The stages {learned[alike]} and {name} learn from the same problems; leave one out.")
        learned[alike] = name
        found[f"{number}-{name}"] = stage
    if not found:
        raise UserError("The recipe has an empty list of stages; give at least one, or leave the key out.")
    return found


def _merged(recipe: Recipe, own: Mapping[str, Any], where: str) -> Recipe:
    tree = asdict(recipe) | {"stages": None, "baseline": None, "guard": recipe.guard or {"name": "none"}}
    if "method" in own:
        tree |= {"objective": None, "alignment": None, "term": None}
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(tree.get(key), dict) and key not in _SLOTS
        tree[key] = tree[key] | value if both else value
    return parse_recipe(tree, where=where)


def _prepare(recipe: Recipe, folder: Path) -> None:
    """The problems and traces of every stage, and the student that all start from."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The run folder {folder} cannot be made: {error}. Choose another one with --out.") from error
    for left in folder.glob("**/.*.tmp"):  # by a killed run
        left.unlink()
    stages = stage_recipes(recipe)
    for number, (name, stage) in enumerate(stages.items()):
        resolved(stage)  # refuses unknown keys before they are written down
        _require_fit(name, stage, first=number == 0)
    write_recipe(recipe, folder)
    for name, stage in stages.items():
        path = folder / "stages" / name
        path.mkdir(parents=True, exist_ok=True)
        try:
            make_problems(stage, path, Stamps(path))
            check_askable(stage, path)
            check_target(stage, path)
            if stage.teach is not None:
                teach_rows(stage, path, Stamps(path))
        except UserError as error:
            raise UserError(f"Stage {name}: {error}") from error
    if recipe.student == TINY:
        _save_tiny(recipe, stages, folder)
    stages = stage_recipes(_with_base(recipe, folder))
    _require_rows(stages, folder)
    for name, stage in stages.items():
        write_recipe(stage, folder / "stages" / name)


def _require_rows(stages: Mapping[str, Recipe], folder: Path) -> None:
    """Refuse, before any training, a stage that has nothing to learn, or only what another one has."""
    files = {name: learned_file(stage, folder / "stages" / name, "train") for name, stage in stages.items()}
    told = [resolved(stage) for stage in stages.values()]
    do = functools.partial(_read_rows, stages, files)
    Stamps(folder).step("rows", digest(told, [*files.values()]), clear=lambda: None, do=do)


def _read_rows(stages: Mapping[str, Recipe], files: Mapping[str, Path]) -> None:
    learned: dict[str, str] = {}
    for name, stage in stages.items():
        rows = load_rows(files[name], max_refused=0).rows
        alike = digest(sorted(str((row.prompt, row.completion)) for row in rows))
        if alike in learned:
            raise UserError(f"The stages {learned[alike]} and {name} learn the same rows; leave one out.")
        learned[alike] = name
        objective = fill_slots(stage.method, stage.objective, stage.alignment, stage.term)[0]
        if isinstance(objective, LabelMultitask):
            rows = objective.expand(rows)
        longest = stage.train.get("max_length", DistillConfig.max_length)
        try:
            encode_rows(rows, student_tokenizer(stage.student), longest, stage.max_refused)
        except UserError as error:
            raise UserError(f"Stage {name}: {error}") from error


def _require_fit(name: str, stage: Recipe, *, first: bool) -> None:
    """Refuse a guard that cannot work in a stage, before the stages ahead of it are trained."""
    alignment = fill_slots(stage.method, stage.objective, stage.alignment, stage.term)[1]
    guard, guard_name = fill_guard(stage.guard)
    found = guard_clashes(guard, guard_name, alignment)
    if not first:
        found += never_measures(guard, stage.train.get("steps", 0))
    if found:
        raise UserError(f"Stage {name} cannot be trained: {'; '.join(found)}.")
    if stage.train.get("shard_base"):
        raise UserError(f"Stage {name}: drift is measured against whole frozen layers; leave train.shard_base out.")


def _save_tiny(recipe: Recipe, stages: Mapping[str, Recipe], folder: Path) -> None:
    """The tiny student knows the words of all stages, which its tokenizer is made from."""
    files = [learned_file(stage, folder / "stages" / name, "train") for name, stage in stages.items()]

    def do() -> None:
        rows = [row for file in files for row in load_rows(file, max_refused=0).rows]
        student = make_tiny_student([f"{row.prompt}\n{row.completion}" for row in rows], recipe.seed)
        student.model.save_pretrained(folder / "base")
        student.tokenizer.save_pretrained(folder / "base")

    Stamps(folder).step("base", digest(recipe.seed, files), clear=lambda: None, do=do)


def _with_base(recipe: Recipe, folder: Path) -> Recipe:
    return replace(recipe, student=str(folder / "base")) if recipe.student == TINY else recipe


def _answer(recipe: Recipe, folder: Path, task: str, after: str) -> None:
    """Problems of a stage, answered by the student before all training or after a stage."""
    asked, target = folder / "stages" / task, folder / "answers" / after / task
    target.mkdir(parents=True, exist_ok=True)
    share_step("problems", asked, target, "problems")
    if after != "before":
        share_step("train", folder / "stages" / after, target, "student")
    write_recipe(recipe, target)
    evaluate_student(recipe, target, Stamps(target), "before" if after == "before" else "after")
    write_results(recipe, target)
