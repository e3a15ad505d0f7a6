"""The step between the problems and the training: teachers solve them, and what they wrote is verified and kept."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from tqdm.auto import tqdm

from isodistill.data.files import Refusal, check_refused, write_lines
from isodistill.data.load import load_rows, write_rows
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.evaluation.programs import need_sandbox
from isodistill.evaluation.traces import Judged, judge
from isodistill.pipeline.overlap import without_overlaps
from isodistill.pipeline.problems import read_split, source_files, untaught_splits
from isodistill.pipeline.stamps import Stamps, digest
from isodistill.pipeline.taught import Trace, summary, summary_lines
from isodistill.pipeline.teachers import make_teacher
from isodistill.recipe import Recipe
from isodistill.teachers.asking import Refused, ask_all, cost_of, prompt_tokens
from isodistill.teachers.prompts import Template, builtin_examples, load_template, one_answer_sentence
from isodistill.teachers.settings import Teach, TeacherSettings, parse_teach
from isodistill.teachers.store import AnswerStore, Request, answered_keys

__all__ = ["plan_in_words", "summary_lines", "teach_rows"]

TRACES = "traces.jsonl"


@dataclass(frozen=True)
class _Asked:
    """A problem, and the request about it to one teacher."""

    row: Row
    split: str
    request: Request


@dataclass(frozen=True)
class _Plan:
    """Everything that is to be asked.

    Attributes:
        teach: the settings.
        by_name: ``Teacher.name`` -> settings of that teacher.
        asked: all requests.
        made_with: what the answers of one store share.
        inputs: digest of all that the taught rows depend on.
    """

    teach: Teach
    by_name: dict[str, TeacherSettings]
    asked: list[_Asked]
    made_with: dict[str, Any]
    inputs: str


def teach_rows(recipe: Recipe, folder: Path, stamps: Stamps) -> bool:
    """Ask the teachers what the store does not hold yet, verify, and write the folder ``taught``.

    ``traces.jsonl`` is the store: no change of the recipe ever deletes it. ``taught/`` is made from it anew:
    ``SPLIT.jsonl`` are the rows to learn from, ``verdicts.jsonl`` marks every trace, right or wrong, with its reason,
    ``overlap.json`` tells which rows with their traces repeat evaluation rows, and ``teach.json`` adds up. The splits
    train and valid are taught; test problems are never shown to a teacher. Where an error leaves no rows, ``taught``
    stays as it was, and verdicts and numbers lie in ``refused/taught``.

    Returns:
        Whether the step was done now; it prints what came of it.

    Raises:
        UserError: a teacher is down or refuses everything, the cost limit is reached, the store is of another recipe or
            in use, the disk is full, too many requests got no answer, or no trace is left to learn from.
    """
    plan = _plan(recipe, folder)
    target, made, failed = folder / "taught", folder / "taught.part", folder / "refused" / "taught"

    def do() -> None:
        need_sandbox(asked.row for asked in plan.asked)  # before anything is paid for
        with AnswerStore(folder / TRACES, plan.made_with) as store:
            refused = _ask(recipe, plan, store)
            traces = _judged(plan, store)
            without_text = [one for one in refused if not store.n_texts(one.request.key)]
            numbers = summary(traces, _spending(plan, store), len(refused))
        _replace(made)
        write_lines(made / "verdicts.jsonl", [json.dumps(_verdict(trace), ensure_ascii=False) for trace in traces])
        write_lines(made / "teach.json", [json.dumps(numbers, indent=1)])
        print("\n".join(summary_lines(numbers)), flush=True)
        try:
            _check_refused(recipe, folder, plan, without_text)
            _write_learned(recipe, folder, plan, traces, made)
        except UserError:  # the rows of an earlier teaching stay; what is known about this one lies beside the refusals
            _replace(failed, by=made)
            raise
        _replace(failed)
        _replace(target, by=made)

    # Nothing is cleared beforehand: what was taught before is replaced when the new rows are there.
    return stamps.step("teach", plan.inputs, clear=lambda: None, do=do)


def _write_learned(recipe: Recipe, folder: Path, plan: _Plan, traces: Sequence[Trace], made: Path) -> None:
    """The rows to learn from, and what they share with evaluation rows."""
    for split in sorted({asked.split for asked in plan.asked}):
        kept = _kept(plan.teach, [t for t in traces if t.split == split], split)
        if split == "train":  # again, for a teacher may know the benchmarks by heart
            tests = [row for name in untaught_splits(folder) for row in read_split(folder, name)]
            checked = without_overlaps(recipe, [*kept, *tests], made / "overlap.json", "rows with their traces")
            kept = checked[: len(checked) - len(tests)]
        if kept:
            write_rows(made / f"{split}.jsonl", kept)


def _replace(folder: Path, by: Path | None = None) -> None:
    """Remove a folder, and put another one in its place."""
    if folder.exists():
        shutil.rmtree(folder)
    if by is not None:
        folder.parent.mkdir(exist_ok=True)
        by.rename(folder)


def plan_in_words(recipe: Recipe, folder: Path) -> list[str]:
    """How many requests, tokens and how much money it would take; nothing is asked."""
    plan = _plan(recipe, folder)
    requests = {asked.request.key: asked.request for asked in plan.asked}
    stored: set[str] = set()
    if (folder / TRACES).exists():
        stored = answered_keys(folder / TRACES, plan.made_with) & requests.keys()
    lines = [f"{len(requests)} requests, {len(stored)} answered already, {len(requests) - len(stored)} to ask"]
    for name, settings in plan.by_name.items():
        todo = [r for key, r in requests.items() if r.teacher == name and key not in stored]
        # A server that knows no n reads the prompt once for every text.
        sendings = plan.teach.n if settings.kind == "server" else 1
        reading = sendings * sum(prompt_tokens(request) for request in todo)
        writing = sum(request.sampling.n * request.sampling.max_tokens for request in todo)
        prices = settings.limits.prices
        money = "no prices given, so no money is counted"
        if prices:
            money = f"at most {prices.of(reading, writing):.4f} in money"
        lines.append(
            f"  {name}: {len(todo)} requests, about {reading} tokens of prompts (3 characters each), at most {writing} "
            f"tokens of answers, {money}"
        )
    return lines


def _plan(recipe: Recipe, folder: Path) -> _Plan:
    assert recipe.teach is not None
    teach = parse_teach(recipe.teach)
    shown = teach.examples or (builtin_examples() if teach.prompt == "few_shot" else None)
    examples = [] if shown is None else load_rows(shown, max_refused=0).rows
    if bare := [row.id for row in examples if row.completion is None]:
        raise UserError(
            f"teach.examples: row {bare[0]} of {shown} has no completion, so there is nothing to show. Give every "
            "example a worked solution, or leave it out."
        )
    template, plain = load_template(teach.prompt, examples), load_template("plain")
    settings = teach.settings
    asked = []
    for split in ("train", "valid"):
        if (folder / "problems" / f"{split}.jsonl").exists():
            for row in read_split(folder, split):
                asked += [_Asked(row, split, one) for one in _requests(teach, settings, template, plain, row)]
    _check_route(teach, folder)
    by_name = {one.identity: one for one in settings.values()}
    # The teachers stand in the keys alone, so that one more is asked beside the others and none of them again.
    made_with = {"template": template.id, "sampling": asdict(teach.sampling)}
    keys = sorted(asked_one.request.key for asked_one in asked)
    files = [folder / "problems" / f"{split}.jsonl" for split in ("train", "valid", *untaught_splits(folder))]
    files += [path for name in recipe.overlap.against for path in source_files(name)]
    settings_of_rows = [made_with, keys, teach.keep, teach.check_steps, asdict(recipe.overlap)]
    inputs = digest(settings_of_rows, [path for path in files if path.exists()])
    return _Plan(teach, by_name, asked, made_with, inputs)


def _check_route(teach: Teach, folder: Path) -> None:
    """Refuse a value of ``teach.route`` that no row has, in any split: it is mistyped."""
    if teach.by is None or not teach.route:
        return
    splits = [name for name in ("train", "valid") if (folder / "problems" / f"{name}.jsonl").exists()]
    rows = [row for name in [*splits, *untaught_splits(folder)] for row in read_split(folder, name)]
    found = {str(getattr(row, teach.by)) for row in rows}
    if unused := [value for value in teach.route if value not in found]:
        raise UserError(
            f"teach.route names {unused[0]!r}, but no row has this {teach.by}; the rows have "
            f"{', '.join(sorted(found)[:10])}."
        )


def _requests(
    teach: Teach, settings: Mapping[str, TeacherSettings], template: Template, plain: Template, row: Row
) -> list[Request]:
    """What is asked about one problem: one teacher by its column, or all."""
    names = list(teach.teachers)
    if teach.by is not None:
        value = getattr(row, teach.by)
        name = teach.route.get(str(value), value)
        if name not in teach.teachers:
            raise UserError(
                f"Row {row.id} has {teach.by} {value!r}, which teach.route gives to no teacher and which is the name "
                f"of none: {', '.join(names)}. Add it to teach.route."
            )
        names = [str(name)]
    requests = []
    for name in names:
        # Traces on disk are found by the problem itself, whatever was around it when they were asked for.
        used = plain if settings[name].kind == "replay" else template
        requests.append(Request(settings[name].identity, used.id, used.messages(row), teach.sampling))
    return requests


def _ask(recipe: Recipe, plan: _Plan, store: AnswerStore) -> list[Refused]:
    todo = {asked.request.key: asked.request for asked in plan.asked if asked.request.key not in store}
    if not todo:
        return []
    needed = {request.teacher for request in todo.values()}
    teachers = {name: make_teacher(plan.by_name[name], recipe) for name in needed}
    limits = {name: settings.limits for name, settings in plan.by_name.items()}
    lock = Lock()
    with tqdm(total=len(todo), desc="teach") as bar:

        def advance(request: Request) -> None:
            with lock:  # called from the workers
                bar.update()

        return ask_all(
            teachers,
            [asked.request for asked in plan.asked],
            store,
            limits,
            max_cost=plan.teach.max_cost,
            on_done=advance,
        )


def _judged(plan: _Plan, store: AnswerStore) -> list[Trace]:
    traces = []
    for asked in plan.asked:
        request = asked.request
        if not store.n_texts(request.key):
            continue
        answer = store.get(request.key)
        tokens = None if answer.completion_tokens is None else answer.completion_tokens / max(1, len(answer.texts))
        for number, (text, finish) in enumerate(zip(answer.texts, answer.finish_reasons, strict=True)):
            judged = judge(asked.row, text, finish, check_steps=plan.teach.check_steps)
            traces.append(Trace(asked.row, asked.split, request.teacher, request.key, number, text, tokens, judged))
    return traces


def _spending(plan: _Plan, store: AnswerStore) -> dict[str, float | int | None]:
    """Tokens and money of all answers, those of earlier sittings included; None where a teacher did not tell."""
    known = {a.request.key: a.request for a in plan.asked if store.n_texts(a.request.key)}
    answers = [store.get(key) for key in known]
    priced = all(settings.limits.prices for settings in plan.by_name.values())
    cost = sum(
        cost_of(r, a, plan.by_name[r.teacher].limits.prices) for r, a in zip(known.values(), answers, strict=True)
    )
    told = all(a.prompt_tokens is not None and a.completion_tokens is not None for a in answers)
    return {
        "requests": len({asked.request.key for asked in plan.asked}),
        "answered": len(known),
        "prompt_tokens": sum(a.prompt_tokens or 0 for a in answers) if told else None,
        "completion_tokens": sum(a.completion_tokens or 0 for a in answers) if told else None,
        "cost": round(cost, 6) if priced else None,
    }


def _check_refused(recipe: Recipe, folder: Path, plan: _Plan, refused: Sequence[Refused]) -> None:
    rows: dict[str, list[str]] = {}
    for asked in plan.asked:
        rows.setdefault(asked.request.key, []).append(asked.row.id)
    listed = folder / "refused" / "teach.jsonl"
    listed.unlink(missing_ok=True)
    refusals = [
        Refusal(row, None, None, f"{one.request.teacher}: {one.reason}")
        for one in refused
        for row in rows[one.request.key]
    ]
    check_refused(refusals, len(plan.asked), recipe.max_refused, listed)


def _verdict(trace: Trace) -> dict[str, Any]:
    return {
        "key": trace.key,
        "sample": trace.sample,
        "row": trace.row.id,
        "split": trace.split,
        "domain": trace.row.domain,
        "teacher": trace.teacher,
        "verdict": trace.judged.verdict,
        "reason": trace.judged.reason,
        "answer": trace.judged.answer,
    }


def _kept(teach: Teach, traces: Sequence[Trace], split: str) -> list[Row]:
    """The rows to learn from; equal traces of a problem count once."""
    texts: dict[str, dict[str, Trace]] = {}
    for trace in traces:
        if _is_kept(teach, trace.judged) and trace.text.strip():
            texts.setdefault(trace.row.id, {}).setdefault(one_answer_sentence(trace.text), trace)
    if split == "train" and not texts:
        first = f" The first one {traces[0].judged.reason}." if traces else ""
        raise UserError(
            f"None of {len(traces)} traces can be learned from.{first} See refused/taught/verdicts.jsonl; another "
            "teacher, another template (teach.prompt) or a larger teach.max_tokens may help. The answers are kept."
        )
    return [
        replace(
            trace.row,
            id=trace.row.id if len(several) == 1 else f"{trace.row.id}#{number}",
            completion=text,
            teacher=trace.teacher,
            valid=True if trace.judged.verdict == "correct" else None,
        )
        for several in texts.values()
        for number, (text, trace) in enumerate(several.items())
    ]


def _is_kept(teach: Teach, judged: Judged) -> bool:
    """A trace that was cut off before its answer was complete is never learned from."""
    return judged.verdict == "correct" or (teach.keep == "all" and judged.verdict != "truncated")
