"""The target of an adversary: questions of another domain, read without their answers."""

from __future__ import annotations

from pathlib import Path

from isodistill.data.load import load_rows
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.pipeline.problems import read_split, test_splits
from isodistill.pipeline.ranks import is_main
from isodistill.recipe import Recipe
from isodistill.terms import PRADA
from isodistill.training.slots import fill_slots

__all__ = ["target_rows"]


def target_rows(recipe: Recipe, folder: Path) -> list[Row] | None:
    """The rows of ``recipe.target``; None where no term asks for them, as in a baseline beside it.

    Questions of the target that are test problems too are counted and told: the student then sees them while it trains,
    though never their answers.

    Raises:
        UserError: the file cannot be read, or has no rows.
    """
    term = fill_slots(recipe.method, recipe.objective, recipe.alignment, recipe.term)[2]
    if recipe.target is None or not isinstance(term, PRADA) or term.lam == 0:
        return None
    rows = load_rows(recipe.target, max_refused=recipe.max_refused).rows
    if not rows:
        raise UserError(f"The target {recipe.target} has no rows. prada needs questions of another domain.")
    tested = {str(row.prompt) for split in test_splits(folder) for row in read_split(folder, split)}
    shared = sum(str(row.prompt) in tested for row in rows)
    if shared and is_main():
        print(f"{shared} of {len(rows)} questions of the target are test problems, too", flush=True)
    return rows
