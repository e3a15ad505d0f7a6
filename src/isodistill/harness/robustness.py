"""Our robustness metrics on the samples that lm-evaluation-harness logs.

A sample is one document with what the student said and what the task's metrics make of it. Whether it is right is the
task's own verdict; sets, domains and the common form of the answers come from the columns of the document, so a task
whose documents name them gets accuracy per domain, sets solved everywhere, transfer and agreement, with intervals over
sets, and one without gets accuracies alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from scipy.special import softmax

from isodistill.data.rows import ANSWER_TYPES, AnswerType
from isodistill.errors import UserError
from isodistill.evaluation.generate import Generation
from isodistill.evaluation.parse import PARSER_VERSION, canon
from isodistill.evaluation.records import Record
from isodistill.evaluation.results import split_results
from isodistill.evaluation.verify import Outcome

__all__ = ["records_of", "robustness"]

_NO_ANSWER = ("", "[invalid]")  # what the harness's filters leave where they find nothing


def robustness(samples: Sequence[Mapping[str, Any]], **how: Any) -> dict[str, Any]:
    """The entry of results.json for the samples of one task; arguments as in ``records_of``."""
    return split_results(records_of(samples, **how))


def records_of(
    samples: Sequence[Mapping[str, Any]],
    *,
    metric: str,
    filter_name: str | None = None,
    columns: Mapping[str, str] | None = None,
    generations: Mapping[str, Generation] | None = None,
    method: str = "none",
    seed: int = 0,
) -> list[Record]:
    """One record for each sample of a task.

    Args:
        samples: ``results["samples"][task]`` of ``lm_eval.simple_evaluate(..., log_samples=True)``.
        metric: of the task; 1 is right, anything below is not.
        filter_name: of the task; None where it has one.
        columns: our column -> the document's, for ``id``, ``set_id``, ``domain``, ``structure_id``, ``answer``,
            ``answer_type`` and ``choices`` that are called otherwise there.
        generations: context -> answer (``HarnessStudent.generations``), for lengths and for which were cut off.
        method: of the student, for the records.
        seed: of its training.

    Raises:
        UserError: there are no samples, several filters and none named, or a metric that the task does not have.
    """
    filters = sorted({str(sample["filter"]) for sample in samples})
    chosen = filter_name or (filters[0] if len(filters) == 1 else None)
    kept = [sample for sample in samples if sample["filter"] == chosen]
    if not kept:
        raise UserError(
            f"There are no samples of filter {chosen!r}: name one of {', '.join(filters) or 'none'} as filter_name, "
            "and let the harness log its samples."
        )
    for sample in kept:
        if metric not in sample:
            known = ", ".join(sample["metrics"])
            raise UserError(f"A sample of the task has no metric {metric!r}; it has {known}.")
    return [_record(sample, metric, dict(columns or {}), generations or {}, method, seed) for sample in kept]


def _record(
    sample: Mapping[str, Any],
    metric: str,
    columns: Mapping[str, str],
    generations: Mapping[str, Generation],
    method: str,
    seed: int,
) -> Record:
    doc: Mapping[str, Any] = sample["doc"]

    def column(name: str) -> Any:
        return doc.get(columns.get(name, name))

    said, answer_type, gold, pi = _answers(sample, column("answer_type"), column("answer"))
    choices = column("choices") if answer_type == "string" else None
    generation = generations.get(sample["arguments"][0][0]) if pi is None else None
    finish = "eos" if generation is None else generation.finish
    parsed = None if said in _NO_ANSWER else said
    outcome: Outcome = "correct" if float(sample[metric]) >= 1 else "wrong"
    if outcome == "wrong" and parsed is None:
        outcome = "truncated" if finish == "length" else "unparsed"
    return Record(
        run_id="lm-eval", method=method, tier=None, stage="after", split="lm-eval",
        item_id=_text(column("id")) or str(sample["doc_id"]),
        set_id=_text(column("set_id")), structure_id=_text(column("structure_id")), domain=_text(column("domain")),
        answer_type=answer_type, seed_train=seed, seed_data=0, seed_hparam=None, step=0,
        prompt_hash=str(sample["prompt_hash"]),
        output=said if pi is not None else str(sample["resps"][0][0]),
        n_new_tokens=0 if generation is None else len(generation.tokens),
        finish=finish, parsed=parsed, gold=gold,
        canon_parsed=canon(parsed, answer_type, choices), canon_gold=canon(gold, answer_type, choices),
        outcome=outcome, parser_version=PARSER_VERSION, sampling={"harness": metric}, pi=pi,
    )  # fmt: skip


def _answers(
    sample: Mapping[str, Any], answer_type: Any, answer: Any
) -> tuple[str, AnswerType, str, list[float] | None]:
    """What was said, the answer's type, the gold answer, and pi over the options of a multiple-choice sample."""
    if len(sample["arguments"]) > 1:  # one request for each option: its log-likelihood, and whether it is greedy
        pi = [float(share) for share in softmax([float(value) for value, _ in sample["filtered_resps"]])]
        gold = sample["target"]
        letter = ascii_uppercase[gold] if isinstance(gold, int) else str(gold)
        return ascii_uppercase[pi.index(max(pi))], "choice", letter, pi
    first = sample["filtered_resps"][0]
    said = str(first[0] if isinstance(first, list | tuple) else first).strip()
    known: AnswerType = answer_type if answer_type in ANSWER_TYPES else "string"
    return said, known, str(answer if answer is not None else sample["target"]), None


def _text(value: Any) -> str | None:
    return None if value is None else str(value)
