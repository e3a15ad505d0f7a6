"""The first step of a run: from a source of problems to train, valid and test rows on disk."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from isodistill.data.files import Refusal, check_refused, write_lines, write_refusals
from isodistill.data.load import load_rows, write_rows
from isodistill.data.rows import Row
from isodistill.data.split import check_leaks, split_rows, validate_domains
from isodistill.data.tasks import TASKS, load_task
from isodistill.errors import UserError
from isodistill.evaluation.answer import why_unverifiable
from isodistill.evaluation.programs import need_sandbox
from isodistill.isomers.check import check_sets
from isodistill.isomers.cues import Cue, with_cues
from isodistill.isomers.generate import generate_sets
from isodistill.isomers.real import SOURCES, import_groups
from isodistill.pipeline.overlap import without_overlaps
from isodistill.pipeline.stamps import Stamps, digest, files_under
from isodistill.recipe import Recipe

__all__ = [
    "BUILTIN",
    "answered_splits",
    "check_askable",
    "learned_file",
    "make_problems",
    "read_split",
    "source_files",
    "test_splits",
    "untaught_splits",
]

BUILTIN = "builtin:isomers"
_REAL = "real:"


def make_problems(recipe: Recipe, folder: Path, stamps: Stamps) -> None:
    """Write ``problems/SPLIT.jsonl`` and, where rows were refused, ``problems/refused.jsonl``.

    Raises:
        UserError: the source cannot be read, too many rows are refused, a split leaks, a domain has no rows.
    """
    target = folder / "problems"
    keys = ("problems", "real_data", "columns", "max_refused", "licence", "isomers", "split", "overlap")
    sources = [recipe.problems, *recipe.overlap.against]
    inputs = digest(
        {key: asdict(recipe)[key] for key in keys}, [path for name in sources for path in source_files(name)]
    )

    def clear() -> None:
        for path in target.glob("*.jsonl"):
            path.unlink()

    def do() -> None:
        rows, refused = _load(recipe, target / "refused.jsonl")
        if refused:
            write_refusals(target / "refused.jsonl", refused)
            print(f"{len(refused)} rows were refused; they are listed in {target / 'refused.jsonl'}", flush=True)
        rows = [replace(row, licence=row.licence or recipe.licence) for row in _split(recipe, rows)]
        _write_splits(recipe, without_overlaps(recipe, rows, target / "overlap.json"), target)

    stamps.step("problems", inputs, clear=clear, do=do)
    if recipe.train.get("domains"):
        validate_domains([row for name in _splits(folder) for row in read_split(folder, name)], recipe.train["domains"])


def source_files(problems: str) -> list[Path]:
    """The files of a source on this disk; none for what is generated or lies on a hub."""
    for name in (problems, problems.rpartition(":")[0]):
        if name and Path(name).exists():
            return files_under(Path(name))
    return []


def _load(recipe: Recipe, refused_to: Path) -> tuple[list[Row], list[Refusal]]:
    if recipe.problems == BUILTIN:
        isomers = recipe.isomers
        domains = list(dict.fromkeys([*isomers.domains, *recipe.split.held_out_domains]))
        rows = generate_sets(
            n_sets=isomers.n_sets,
            seed=recipe.split.seed_data,
            families=isomers.families or None,
            domains=domains,
            difficulty=isomers.difficulty,
        )
        return _checked(rows, refused_to.with_name("isomers.json")), []
    if recipe.problems.startswith(_REAL):
        if recipe.real_data is None:
            raise UserError(f"problems: {recipe.problems} needs real_data: the folder that holds the real data sets.")
        names = recipe.problems.removeprefix(_REAL).split("+")
        return [row for name in names for row in _real(name, Path(recipe.real_data))], []
    loaded = load_rows(recipe.problems, recipe.columns, max_refused=recipe.max_refused, refused_to=refused_to)
    for note in loaded.notes:
        print(note, flush=True)
    return loaded.rows, loaded.refused


def _real(name: str, folder: Path) -> list[Row]:
    if name not in (*SOURCES, *TASKS):
        raise UserError(f"problems: real:{name} is no data set that is known: {', '.join(sorted([*SOURCES, *TASKS]))}.")
    return load_task(name, folder) if name in TASKS else import_groups(name, folder)


def _checked(rows: list[Row], path: Path) -> list[Row]:
    """The rows of the sets whose texts, read back, say one thing; the rejection rate goes to ``path``."""
    verdict = check_sets(rows)
    reasons = {reason: rejection.count for reason, rejection in verdict.reasons.items()}
    found = {"n_sets": verdict.n_sets, "rejection_rate": round(verdict.rejection_rate, 6), "reasons": reasons}
    write_lines(path, [json.dumps(found)])
    print(f"{verdict.n_sets} isomer sets read back, {len(verdict.rejected)} rejected", flush=True)
    return [row for row in rows if row.set_id in set(verdict.accepted)]


def _split(recipe: Recipe, rows: list[Row]) -> list[Row]:
    split = recipe.split
    if recipe.problems.startswith(_REAL) and split.held_out_domains:
        # Published splits know no held-out surfaces; here the structures are divided anew.
        rows = [_unsplit(row) for row in rows]
    divided = split_rows(
        rows,
        valid=split.valid,
        test=split.test,
        held_out_domains=split.held_out_domains,
        seed_data=split.seed_data,
    )
    cue = recipe.isomers.cue
    if recipe.problems == BUILTIN and cue.kind != "none":
        divided = with_cues(divided, Cue(kind=cue.kind, rho=cue.rho, seed=split.seed_data))  # type: ignore[arg-type]
    return divided


def _unsplit(row: Row) -> Row:
    return replace(row, split=None)


def _write_splits(recipe: Recipe, rows: list[Row], target: Path) -> None:
    check_leaks(rows, recipe.split.held_out_domains)
    by_split: dict[str, list[Row]] = {}
    for row in rows:
        by_split.setdefault(row.split or "train", []).append(row)
    if not by_split.get("train"):
        raise UserError(
            f"No row is left to train on: the rows are in the splits {', '.join(sorted(by_split))}. Give rows "
            "the split train, or hold fewer domains out (split.held_out_domains)."
        )
    for name, members in by_split.items():
        write_rows(target / f"{name}.jsonl", members)


def read_split(folder: Path, split: str) -> list[Row]:
    """Rows of one split of a run folder."""
    return load_rows(folder / "problems" / f"{split}.jsonl", max_refused=0).rows


def learned_file(recipe: Recipe, folder: Path, split: str) -> Path:
    """The rows that are learned from: those of the problems, or of the traces that teachers gave to them."""
    return folder / ("problems" if recipe.teach is None else "taught") / f"{split}.jsonl"


def untaught_splits(folder: Path) -> list[str]:
    """All splits but train and valid; it may have none."""
    return [name for name in _splits(folder) if name not in ("train", "valid")]


def test_splits(folder: Path) -> list[str]:
    """The splits that are evaluated: all but train and valid.

    Raises:
        UserError: there is none.
    """
    names = untaught_splits(folder)
    if not names:
        raise UserError(f"{folder / 'problems'} has no test split. Raise split.test, or give rows the split id or ood.")
    return names


def answered_splits(recipe: Recipe, folder: Path) -> list[str]:
    """The splits that ``evaluate.splits`` names; all test splits where it names none.

    Raises:
        UserError: a split that the run folder does not have.
    """
    for name in recipe.evaluate.splits:
        if name not in _splits(folder):
            raise UserError(
                f"evaluate.splits names {name}, but {folder / 'problems'} has {', '.join(_splits(folder))}. "
                "The shares split.valid and split.test say which splits are made."
            )
    return recipe.evaluate.splits or test_splits(folder)


def check_askable(recipe: Recipe, folder: Path) -> None:
    """Stop before hours of training when the rows to answer have no gold answers that could be verified.

    Raises:
        UserError: more than the share ``max_refused`` of these rows, or all of them; they are listed in
            ``refused/test.jsonl``. Or programs would have to be run, and no sandbox can be made here.
    """
    rows = [row for name in answered_splits(recipe, folder) for row in read_split(folder, name)]
    refused = [refusal for row in rows if (refusal := why_unverifiable(row)) is not None]
    check_refused(refused, len(rows), recipe.max_refused, folder / "refused" / "test.jsonl")
    if len(refused) == len(rows):
        raise UserError(f"No test row could be asked, the first one because: {refused[0]}.")
    need_sandbox(rows)


def _splits(folder: Path) -> list[str]:
    return sorted(p.stem for p in (folder / "problems").glob("*.jsonl") if p.stem != "refused")
