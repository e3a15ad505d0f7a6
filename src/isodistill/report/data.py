"""The data of a run: how many rows, of what, how long, under which licence, and what repeats evaluation rows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from isodistill.report.run import read_lines
from isodistill.report.tables import DASH, Cell, Row, Table

__all__ = ["data_section"]

_FIRST = ("train", "valid", "id", "ood")
_TEXT_LIMIT = 1_500
_N_EXAMPLES = 12
_N_MATCHES = 5
_NOT_SPLITS = ("refused",)


def data_section(folder: Path) -> dict[str, Any]:
    """What the page shows of ``folder/problems``, and of ``folder/taught`` where teachers wrote the traces.

    The rows that traces were kept for have a column of their own. Lengths are in words, for they do not hang on a
    tokenizer. Examples are picked by a hash of their id.

    Raises:
        UserError: a file is damaged.
    """
    names = [path.stem for path in sorted((folder / "problems").glob("*.jsonl")) if path.stem not in _NOT_SPLITS]
    names.sort(key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    splits = {name: read_lines(folder / "problems" / f"{name}.jsonl") for name in names}
    taught = folder / "taught" / "train.jsonl"
    learned = {"train, taught": read_lines(taught)} if taught.exists() else {}
    shown = splits | learned
    overlaps = [folder / part / "overlap.json" for part in ("taught", "problems")]
    return {
        "licences": _licences([row for rows in splits.values() for row in rows]),
        "splits": _counts(shown),
        "balance": _balance(shown),
        "overlap": _overlap(next((file for file in overlaps if file.exists()), None)),
        "examples": _examples(read_lines(taught) if taught.exists() else splits.get("train", [])),
    }


def _counts(splits: Mapping[str, Sequence[dict[str, Any]]]) -> Table:
    rows = [
        Row("Rows", "", [Cell(f"{len(rows):,}") for rows in splits.values()]),
        Row("Isomer sets", "", [Cell(_distinct(rows, "set_id")) for rows in splits.values()]),
        Row("Structures", "", [Cell(_distinct(rows, "structure_id")) for rows in splits.values()]),
    ]
    for label, column in (("Words in a prompt", "prompt"), ("Words in a completion", "completion")):
        lengths = [sorted(len(_text(row.get(column)).split()) for row in rows) for rows in splits.values()]
        rows.append(Row(label, "median, 95 of 100 at most, longest", [Cell(_spread(each)) for each in lengths]))
    return Table(list(splits), rows)


def _balance(splits: Mapping[str, Sequence[dict[str, Any]]]) -> Table:
    counts = {name: Counter(row.get("domain") for row in rows) for name, rows in splits.items()}
    domains = sorted({domain for count in counts.values() for domain in count if domain is not None})
    rows = [Row(domain, "", [_share(count, domain) for count in counts.values()]) for domain in domains]
    return Table(list(splits), rows)


def _share(count: Counter[str | None], domain: str) -> Cell:
    return Cell(f"{count[domain]:,}", f"{100 * count[domain] / count.total():.1f} %") if count[domain] else Cell()


def _licences(rows: Sequence[dict[str, Any]]) -> str:
    counts = Counter(row.get("licence") for row in rows)
    if set(counts) <= {None}:
        return "Nobody said under which licence the rows stand; the column licence or the key licence of a recipe does."
    named = [f"{name or 'none named'} ({count:,} rows)" for name, count in counts.most_common()]
    return f"Licence, as given with the data: {', '.join(named)}."


def _overlap(file: Path | None) -> dict[str, Any] | None:
    if file is None:
        return None
    found = json.loads(file.read_text(encoding="utf-8"))
    sets = found["sets"]
    n_dropped = found["n_dropped"]
    fate = f"{n_dropped:,} rows were left out with their sets." if n_dropped else "None was left out."
    table = Table(
        list(sets),
        [
            Row("Evaluation rows", "", [Cell(f"{each['n_rows']:,}") for each in sets.values()]),
            Row("The same prompt", "training rows", [Cell(f"{each['exact']:,}") for each in sets.values()]),
            Row(
                f"{found['n']} words in a row",
                "training rows, without those above; the whole prompt where it is shorter",
                [Cell(f"{each['ngram']:,}") for each in sets.values()],
            ),
        ],
    )
    sentence = f"{found['n_train']:,} training rows were compared before training. {fate}"
    return {"sentence": sentence, "table": table, "examples": found["matches"][:_N_MATCHES]}


def _examples(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    ranked = sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).digest())
    first = {row.get("domain") or "no domain": row for row in reversed(ranked)}
    return [
        {
            "domain": domain,
            "id": row["id"],
            "prompt": _text(row["prompt"])[:_TEXT_LIMIT],
            "completion": _text(row.get("completion"))[:_TEXT_LIMIT],
            "teacher": row.get("teacher"),
        }
        for domain, row in sorted(first.items())[:_N_EXAMPLES]
    ]


def _distinct(rows: Sequence[dict[str, Any]], column: str) -> str:
    names = {row[column] for row in rows if row.get(column) is not None}
    return f"{len(names):,}" if names else DASH


def _spread(lengths: Sequence[int]) -> str:
    if not any(lengths):
        return DASH
    return f"{median(lengths):g}, {lengths[int(0.95 * (len(lengths) - 1))]}, {lengths[-1]}"


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "\n".join(message["content"] for message in value)
    return value or ""
