"""Isomer sets from the user's own problems: rows in, teachers asked through a store, accepted sets and refusals out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from isodistill.data.files import Refusal, check_refused, write_lines
from isodistill.data.load import load_rows, write_rows
from isodistill.errors import UserError
from isodistill.isomers.rewrite import Rewriting, asking, rewrite_problems
from isodistill.isomers.rewrite.settings import parse_rewrite
from isodistill.pipeline.teachers import make_teacher
from isodistill.recipe import Recipe
from isodistill.report.rewriting import write_rewriting_page
from isodistill.teachers.base import Sampling, Teacher
from isodistill.teachers.store import AnswerStore

__all__ = ["rewrite_run"]


def rewrite_run(recipe: Recipe, folder: Path, command: str) -> Rewriting:
    """Rewrite the rows of ``recipe.problems`` and write into ``folder``:

    ``rows.jsonl`` (the accepted sets), ``rejected.jsonl`` (every set that was not accepted, with its reason),
    ``attempts.jsonl`` (every refused text), ``answers.jsonl`` (the store: nothing in it is asked again),
    ``report.html`` and, where a teacher gave no answer, ``refused.jsonl``.

    Raises:
        UserError: no group ``rewrite``, unreadable rows, a teacher that is down or gives no answer about more than the
            share ``max_refused`` of the problems, another run's store; what an earlier call wrote then stays.
    """
    if recipe.rewrite is None:
        raise UserError(
            "The recipe has no group rewrite. Give it one: {domains: [law, medicine], writer: {kind: ...}}."
        )
    settings = parse_rewrite(recipe.rewrite)
    of_writer, of_reader = settings.of_writer, settings.of_reader
    rows = load_rows(recipe.problems, recipe.columns, max_refused=recipe.max_refused).rows
    writer: Teacher = make_teacher(of_writer, recipe)
    reader = writer if of_reader == of_writer else make_teacher(of_reader, recipe)
    drawn = Sampling(settings.temperature, max_tokens=settings.max_tokens, seed=settings.seed)
    greedy = Sampling(max_tokens=settings.max_tokens, seed=settings.seed)
    with AnswerStore(folder / "answers.jsonl", {"writer": writer.name, "reader": reader.name}) as store:
        made = rewrite_problems(
            rows,
            settings.domains,
            writer=asking(writer, drawn, store, of_writer.limits),
            reader=asking(reader, greedy, store, of_reader.limits),
            near_copy=settings.near_copy,
        )
    listed = folder / "refused.jsonl"
    listed.unlink(missing_ok=True)
    refused = [
        Refusal(each.set_id, None, None, f"no answer from the teacher: {each.detail}") for each in made.unanswered
    ]
    check_refused(refused, made.n_problems, recipe.max_refused, listed)
    write_rows(folder / "rows.jsonl", made.rows)
    for name, attempts in (("rejected", made.rejected.values()), ("attempts", made.attempts)):
        write_lines(folder / f"{name}.jsonl", (json.dumps(asdict(each), ensure_ascii=False) for each in attempts))
    write_rewriting_page(made, command=command, out=folder / "report.html")
    return made
