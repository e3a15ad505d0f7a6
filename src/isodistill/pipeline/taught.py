"""The numbers of a teaching: yield, lengths, truncation, and where teachers disagree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from isodistill.data.rows import NO_DOMAIN, Row
from isodistill.evaluation.traces import VERDICTS, Judged

__all__ = ["Trace", "summary", "summary_lines"]


@dataclass(frozen=True)
class Trace:
    """One text of one answer.

    Attributes:
        row: the problem.
        split: its split.
        teacher: who wrote the text.
        key: of the answer in the store.
        sample: which of the answer's texts this is.
        text: the trace.
        tokens: mean length of the answer's texts, where the teacher told it.
        judged: the verdict.
    """

    row: Row
    split: str
    teacher: str
    key: str
    sample: int
    text: str
    tokens: float | None
    judged: Judged


def summary(traces: Sequence[Trace], spent: Mapping[str, Any], n_refused: int) -> dict[str, Any]:
    """All numbers of ``teach.json``; undefined ones are None.

    Args:
        traces: every trace.
        spent: requests, answers, tokens and money.
        n_refused: requests that got no answer in this sitting.
    """
    domains = sorted({trace.row.domain or NO_DOMAIN for trace in traces})
    teachers = sorted({trace.teacher for trace in traces})
    return {
        **spent,
        "refused": n_refused,
        "not_unicode": sum("\ufffd" in trace.text for trace in traces),
        "all": _numbers(traces),
        "by_domain": {d: _numbers([t for t in traces if (t.row.domain or NO_DOMAIN) == d]) for d in domains},
        "by_teacher": {name: _numbers([t for t in traces if t.teacher == name]) for name in teachers},
        "examples": _examples(traces),
        "disagreement": {f"{a} | {b}": _disagreement(traces, a, b) for a, b in combinations(teachers, 2)},
    }


def summary_lines(numbers: Mapping[str, Any]) -> list[str]:
    """``teach.json`` in words."""
    money = "" if numbers["cost"] is None else f", {numbers['cost']:.4f} in money"
    tokens = ""
    if numbers["completion_tokens"] is not None:
        tokens = f", {numbers['prompt_tokens']} + {numbers['completion_tokens']} tokens"
    lines = [
        f"teach: {numbers['answered']} of {numbers['requests']} requests answered, {numbers['refused']} refused"
        f"{tokens}{money}",
        f"  all: {_words(numbers['all'])}",
    ]
    if numbers["not_unicode"]:
        lines.append(f"  {numbers['not_unicode']} traces have characters that are no Unicode, U+FFFD in their place")
    lines += [f"  domain {name}: {_words(one)}" for name, one in numbers["by_domain"].items()]
    if len(numbers["by_teacher"]) > 1:
        lines += [f"  teacher {name}: {_words(one)}" for name, one in numbers["by_teacher"].items()]
    for pair, one in numbers["disagreement"].items():
        if one["problems"]:
            lines.append(f"  {pair}: other answers to {one['differ']} of {one['problems']} problems")
    lines += [f"  {verdict}, such as {example}" for verdict, example in numbers["examples"].items()]
    return lines


def _numbers(traces: Sequence[Trace]) -> dict[str, Any]:
    verdicts = Counter(trace.judged.verdict for trace in traces)
    tokens = [trace.tokens for trace in traces if trace.tokens is not None]
    words = [len(trace.text.split()) for trace in traces]
    return {
        "traces": len(traces),
        "yield": round(verdicts["correct"] / len(traces), 6) if traces else None,
        "verdicts": {verdict: verdicts[verdict] for verdict in VERDICTS if verdicts[verdict]},
        "mean_tokens": round(sum(tokens) / len(tokens), 2) if tokens else None,
        "mean_words": round(sum(words) / len(words), 2) if words else None,
    }


def _words(one: Mapping[str, Any]) -> str:
    others = "".join(f", {count} {verdict}" for verdict, count in one["verdicts"].items() if verdict != "correct")
    if not one["traces"]:
        return "no traces"
    correct = one["verdicts"].get("correct", 0)
    return f"{correct} of {one['traces']} traces correct ({one['yield']:.1%}){others}; {one['mean_words']} words"


def _examples(traces: Sequence[Trace]) -> dict[str, str]:
    """Verdict -> the first trace of it, in words."""
    found: dict[str, str] = {}
    for trace in traces:
        if trace.judged.verdict != "correct":
            found.setdefault(trace.judged.verdict, f"{trace.row.id} of {trace.teacher}: {trace.judged.reason}")
    return found


def _disagreement(traces: Sequence[Trace], a: str, b: str) -> dict[str, int]:
    """Problems that both answered, and those where their most frequent answers differ."""
    most = {name: _most_frequent([t for t in traces if t.teacher == name]) for name in (a, b)}
    both = most[a].keys() & most[b].keys()
    return {"problems": len(both), "differ": sum(most[a][row] != most[b][row] for row in both)}


def _most_frequent(traces: Sequence[Trace]) -> dict[str, str]:
    """Row -> the answer that a teacher gave most often; rows without one are left out."""
    counts: dict[str, Counter[str]] = {}
    for trace in traces:
        if trace.judged.answer is not None:
            counts.setdefault(trace.row.id, Counter())[trace.judged.answer] += 1
    return {row: counter.most_common(1)[0][0] for row, counter in counts.items()}
