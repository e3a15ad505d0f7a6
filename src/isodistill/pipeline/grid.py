"""The runs of a comparison: one cell per method, search draw and training seed, each a run folder of its own."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from isodistill.pipeline.problems import read_split
from isodistill.pipeline.search import draw, method_recipe
from isodistill.pipeline.stamps import Stamps, digest, share_step
from isodistill.pipeline.steps import evaluate_student, resolved, write_recipe, write_results
from isodistill.pipeline.walk import evaluate_run, train_run
from isodistill.recipe import Recipe

__all__ = ["Cell", "Plan", "all_cells", "before_cell", "walk_cell"]


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        methods: presets, the baseline first.
        seeds: training seeds; every method trains with all of them.
        search: draws per method, the recipe's own settings among them.
        leave_one_out: train every cell once more without each training domain, for the rule of that name.
    """

    methods: Sequence[str]
    seeds: Sequence[int]
    search: int = 1
    leave_one_out: bool = False


@dataclass(frozen=True)
class Cell:
    """One run of a comparison.

    Attributes:
        method: preset; ``none`` is the untrained student.
        draw: number of the search draw.
        seed: training seed.
        without: training domain that is left out, for the rule ``leave_one_out``; None leaves out none.
        recipe: what is run.
        folder: where.
    """

    method: str
    draw: int
    seed: int
    without: str | None
    recipe: Recipe
    folder: Path

    @property
    def name(self) -> str:
        """The run in words."""
        if self.method == "none":
            return "before training"
        left_out = f", without {self.without}" if self.without else ""
        return f"{self.method}, draw {self.draw}, seed {self.seed}{left_out}"


def all_cells(recipe: Recipe, plan: Plan, out: Path, splits: Sequence[str]) -> list[Cell]:
    """Every run of the plan, defaults first, so that a comparison that is stopped early has them.

    Args:
        recipe: the recipe to compare with.
        plan: methods, seeds and draws.
        out: folder of the comparison; its problems are made.
        splits: the test splits.
    """
    answered = [*splits, "valid"] if plan.search > 1 else list(splits)
    domains = recipe.train.get("domains") or sorted({row.domain or "" for row in read_split(out, "train")})
    cells = []
    for number in range(plan.search):
        for method in plan.methods:
            drawn = draw(method_recipe(recipe, method), number)
            for seed in plan.seeds:
                folder = out / "runs" / method / f"draw-{number:02d}" / f"seed-{seed}"
                one = replace(drawn, seed=seed, evaluate=replace(recipe.evaluate, before=False, splits=answered))
                cells.append(Cell(method, number, seed, None, one, folder))
                for domain in domains if plan.leave_one_out else ():
                    others = one.train | {"domains": [other for other in domains if other != domain]}
                    left = replace(one, train=others, evaluate=replace(one.evaluate, splits=["valid"]))
                    at = folder.with_name(f"seed-{seed}-without-{domain}")
                    cells.append(Cell(method, number, seed, domain, left, at))
    return cells


def before_cell(recipe: Recipe, plan: Plan, out: Path, splits: Sequence[str]) -> Cell:
    """The untrained student, which answers once; only the student ``tiny`` depends on the seed, and takes the first."""
    baseline = method_recipe(recipe, plan.methods[0])
    seed = plan.seeds[0]
    one = replace(baseline, seed=seed, seed_hparam=0, evaluate=replace(recipe.evaluate, splits=list(splits)))
    return Cell("none", 0, seed, None, one, out / "before")


def walk_cell(cell: Cell, shared: Path) -> None:
    """Do what is left to do of one run; its problems are those of the folder ``shared``."""
    recipe, folder = cell.recipe, cell.folder
    folder.mkdir(parents=True, exist_ok=True)
    share_step("problems", shared, folder, "problems")
    if recipe.teach is not None:
        share_step("teach", shared, folder, "taught")
    if cell.method == "none":
        write_recipe(recipe, folder)
        evaluate_student(recipe, folder, Stamps(folder), "before")
    else:
        train_run(recipe, folder)
        evaluate_run(recipe, folder)
    inputs = digest(resolved(recipe), [p for p in (folder / "predictions.jsonl", folder / "train.json") if p.exists()])

    def clear() -> None:
        (folder / "results.json").unlink(missing_ok=True)

    def do() -> None:
        write_results(recipe, folder)

    Stamps(folder).step("results", inputs, clear=clear, do=do)
    if (folder / "checkpoints").exists():  # hundreds of runs would fill the disk; nothing resumes a finished training
        shutil.rmtree(folder / "checkpoints")
