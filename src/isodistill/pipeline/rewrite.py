"""Isomer sets from the user's own problems: rows in, teachers asked through a store, accepted sets and refusals out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from isodistill.data.files import Refusal, check_refused, write_lines
from isodistill.data.load import load_rows, write_rows
from isodistill.errors import UserError
from isodistill.isomers.rewrite import Desk, Rewriting, load_prompts, rewrite_problems
from isodistill.isomers.rewrite.settings import Rewrite, parse_rewrite
from isodistill.pipeline.teachers import make_teacher
from isodistill.recipe import Recipe
from isodistill.report.rewriting import write_rewriting_page
from isodistill.teachers.asking import prompt_tokens
from isodistill.teachers.base import Sampling, Teacher
from isodistill.teachers.pace import Prices
from isodistill.teachers.store import AnswerStore, Request, answered_keys

__all__ = ["rewrite_plan", "rewrite_run"]

_STORE = "answers.jsonl"


def rewrite_run(recipe: Recipe, folder: Path, command: str) -> Rewriting:
    """Rewrite the rows of ``recipe.problems`` and write into ``folder``:

    ``rows.jsonl`` (the accepted sets), ``rejected.jsonl`` (every set that was not accepted, with its reason),
    ``attempts.jsonl`` (every refused text), ``answers.jsonl`` (the store: nothing in it is asked again),
    ``report.html`` and, where a teacher gave no answer, ``refused.jsonl``.

    Raises:
        UserError: no group ``rewrite``, unreadable rows or prompts, a teacher that is down or gives no answer about
            more than the share ``max_refused`` of the problems, the limit of cost, another run's store; what an earlier
            call wrote then stays.
    """
    settings = _settings(recipe)
    prompts = load_prompts(settings.prompts)
    of_writer, of_reader = settings.of_writer, settings.of_reader
    rows = load_rows(recipe.problems, recipe.columns, max_refused=recipe.max_refused).rows
    writer: Teacher = make_teacher(of_writer, recipe)
    reader = writer if of_reader == of_writer else make_teacher(of_reader, recipe)
    drawn, greedy = _samplings(settings)
    limits = {writer.name: of_writer.limits, reader.name: of_reader.limits}
    with AnswerStore(folder / _STORE, {"writer": writer.name, "reader": reader.name}) as store:
        desk = Desk(store, limits, prompts.id, settings.max_cost)
        made = rewrite_problems(
            rows,
            settings.domains,
            writer=desk.asking(writer, drawn),
            reader=desk.asking(reader, greedy),
            prompts=prompts,
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


def rewrite_plan(recipe: Recipe, folder: Path) -> list[str]:
    """How many requests, tokens and how much money the rewriting would take; nothing is asked.

    What the reader will be shown of rewritings is not written yet, and is taken to be as long as the problem.

    Raises:
        UserError: no group ``rewrite``, unreadable rows or prompts, another run's store.
    """
    settings = _settings(recipe)
    prompts = load_prompts(settings.prompts)
    of_writer, of_reader = settings.of_writer, settings.of_reader
    drawn, greedy = _samplings(settings)
    loaded = load_rows(recipe.problems, recipe.columns, max_refused=recipe.max_refused).rows
    rows = [row for row in loaded if isinstance(row.prompt, str) and row.answer_type == "number"]
    read = {row.id: Request(of_reader.identity, prompts.id, prompts.read(str(row.prompt)), greedy) for row in rows}
    wanted = [(row, domain) for row in rows for domain in settings.domains if domain != row.domain]
    written = [
        Request(of_writer.identity, prompts.id, prompts.rewrite(str(row.prompt), domain), drawn)
        for row, domain in wanted
    ]
    read_back = [read[row.id] for row, _ in wanted]
    stored: set[str] = set()
    if (folder / _STORE).exists():
        made_with = {"writer": of_writer.identity, "reader": of_reader.identity}
        stored = answered_keys(folder / _STORE, made_with) & {request.key for request in [*read.values(), *written]}
    return [
        f"{len(rows)} problems of {len(loaded)} can be rewritten, into {len(wanted)} texts; of the questions that are "
        f"known already {len(stored)} are answered",
        _told("writer", of_writer.identity, written, stored, of_writer.limits.prices, repeats=2),
        _told("reader", of_reader.identity, [*read.values()], stored, of_reader.limits.prices, repeats=2),
        _told("reader of rewritings", of_reader.identity, read_back, set(), of_reader.limits.prices, repeats=4),
    ]


def _told(
    who: str, name: str, requests: list[Request], stored: set[str], prices: Prices | None, *, repeats: int
) -> str:
    """What the requests take once, and with every repair and second reading."""
    todo = [request for request in requests if request.key not in stored]
    reading = sum(prompt_tokens(request) for request in todo)
    writing = sum(request.sampling.max_tokens for request in todo)
    # A repetition shows question and reply again.
    most_reading, most_writing = repeats * (reading + writing), repeats * writing
    money = "no prices given, so no money is counted"
    if prices:
        once, most = prices.of(reading, writing), prices.of(most_reading, most_writing)
        money = f"at most {once:.4f} in money, {most:.4f} if all is asked again"
    return (
        f"  {who}, {name}: {len(todo)} requests, at most {repeats * len(todo)} if all is asked again; once they are "
        f"about {reading} tokens of prompts (3 characters each) and at most {writing} tokens of answers, {money}"
    )


def _settings(recipe: Recipe) -> Rewrite:
    if recipe.rewrite is None:
        raise UserError(
            "The recipe has no group rewrite. Give it one: {domains: [law, medicine], writer: {kind: ...}}."
        )
    return parse_rewrite(recipe.rewrite)


def _samplings(settings: Rewrite) -> tuple[Sampling, Sampling]:
    """Of the writer and of the reader."""
    return (
        Sampling(settings.temperature, max_tokens=settings.max_tokens, seed=settings.seed),
        Sampling(max_tokens=settings.max_tokens, seed=settings.seed),
    )
