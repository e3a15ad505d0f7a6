"""The target of an adversary: questions of another domain, read without their answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from isodistill.data.load import load_rows
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.pipeline.problems import read_split, test_splits
from isodistill.pipeline.ranks import is_main
from isodistill.recipe import Recipe
from isodistill.terms import PRADA
from isodistill.training.slots import fill_slots

__all__ = ["check_target", "load_target", "target_rows"]


def load_target(recipe: Recipe) -> list[Row]:
    """The rows of ``recipe.target``.

    Raises:
        UserError: the file cannot be read, or has no rows.
    """
    assert recipe.target is not None
    rows = load_rows(recipe.target, max_refused=recipe.max_refused).rows
    if not rows:
        raise UserError(f"The target {recipe.target} has no rows. prada needs questions of another domain.")
    return rows


def check_target(recipe: Recipe, folder: Path) -> None:
    """Refuse a target that is the source, before anything is paid for; where no term asks for it, anything goes.

    Raises:
        UserError: it cannot be read, has no rows, all of its questions are problems of the source, or all questions
            that are learned from are among them.
    """
    if _is_asked_for(recipe):
        _require_another(load_target(recipe), recipe, folder)


def target_rows(recipe: Recipe, folder: Path) -> list[Row] | None:
    """The rows of ``recipe.target``; None where no term asks for them, as in a baseline beside it.

    Questions of the target that are test problems too are counted and told: the student then sees them while it trains,
    though never their answers.

    Raises:
        UserError: the file cannot be read, or has no rows.
    """
    if not _is_asked_for(recipe):
        return None
    rows = load_target(recipe)
    tested = {str(row.prompt) for split in test_splits(folder) for row in read_split(folder, split)}
    shared = sum(str(row.prompt) in tested for row in rows)
    if shared and is_main():
        print(f"{shared} of {len(rows)} questions of the target are test problems, too", flush=True)
    return rows


def _is_asked_for(recipe: Recipe) -> bool:
    term = fill_slots(recipe.method, recipe.objective, recipe.alignment, recipe.term)[2]
    return recipe.target is not None and isinstance(term, PRADA) and term.lam > 0


def _require_another(target: Sequence[Row], recipe: Recipe, folder: Path) -> None:
    of_source = [split for split in ("train", "valid", "id") if (folder / "problems" / f"{split}.jsonl").exists()]
    source = {split: {str(row.prompt) for row in read_split(folder, split)} for split in of_source}
    asked = {str(row.prompt) for row in target}
    if asked <= set().union(*source.values()):
        raise UserError(
            f"Each of the {len(asked)} questions of the target {recipe.target} is a problem of the source, so there is "
            "nothing to adapt to. Give prada questions of another domain."
        )
    if source["train"] <= asked:
        raise UserError(
            f"The target {recipe.target} holds all {len(source['train'])} questions that are learned from: the same "
            "question would be source and target. Leave them out of the target."
        )
