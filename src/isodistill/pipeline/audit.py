"""Which pairs of a file do not belong together: features, heads, influences, and the files of an audit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isodistill.data.files import Refusal, write_lines, write_refusals
from isodistill.data.pairs import Pair, find_duplicates, load_pairs, refuse_shared
from isodistill.errors import UserError
from isodistill.influence import Fit, Suspicion, fit_heads, suspect
from isodistill.pipeline.audit_findings import explain_query, planted_findings, removal_findings
from isodistill.pipeline.pair_features import Encoder, Features, load_encoder, read_features
from isodistill.report.audit import write_audit_page

__all__ = ["audit_pairs"]


def audit_pairs(
    file: Path,
    queries: Path,
    model: str | None,
    folder: Path,
    command: str,
    remove: float = 0.1,
    explain: str | None = None,
    how: Fit | None = None,
) -> Path:
    """Rank the pairs of ``file`` by suspicion and write the files and the page of an audit.

    Args:
        file: the pairs, rows {"a", "b", "id"?} or {"image", "caption", "id"?}.
        queries: clean pairs of the same kind, none of them in ``file``.
        model: folder or hub id of a text encoder, for images of CLIP or ``open_clip:MODEL@PRETRAINED``; None takes
            all-MiniLM-L6-v2, for images CLIP ViT-B/32.
        folder: where the files go.
        command: shown on the page.
        remove: the share of pairs that gets keep = false; nothing is deleted.
        explain: id of the query that is traced back; the worst mistake without it.
        how: settings of the heads.

    Returns:
        The page.

    Raises:
        UserError: a rate outside [0, 1), fewer than two readable pairs or queries, a missing column, queries among the
            pairs or of another kind, no query of the id ``explain``, or no encoder.
    """
    if not 0 <= remove < 1:
        raise UserError(f"--remove is a share of the pairs, 0 or more and below 1; got {remove:g}.")
    pairs, clean = _at_least_two(file, "pairs"), _at_least_two(queries, "queries")
    if pairs[0].image != clean[0].image:
        raise UserError(f"One of {file} and {queries} holds texts and the other images: queries judge their own kind.")
    if explain is not None and explain not in {pair.id for pair in clean}:
        raise UserError(f"--explain takes the id of a query, such as {clean[0].id!r}; {queries} has no {explain!r}.")
    refuse_shared(pairs, clean, (file, queries))
    encoder, how = load_encoder(model, pairs[0].image), how or Fit()
    read, asked = _readable(encoder, pairs, file), _readable(encoder, clean, queries)
    influence = fit_heads(read.a, read.b, how)
    found = suspect(influence, asked.a, asked.b, how.probes, how.seed)
    ranked = _ranked(read.pairs, found, round(remove * len(read.pairs)))
    duplicates = find_duplicates(pairs)
    summary = {
        "pairs": str(file),
        "queries": str(queries),
        "model": encoder.name,
        "images": pairs[0].image,
        "n_pairs": len(read.pairs),
        "n_queries": len(asked.pairs),
        "n_unread": len(read.unread),
        "n_unread_queries": len(asked.unread),
        "remove": remove,
        "n_harmful": int((found.influence < 0).sum()),
        "n_longer": read.n_longer + asked.n_longer,
        "context": encoder.context,
        "n_duplicates": sum(len(ids) - 1 for ids in duplicates),
        "duplicates": duplicates,
        "residual": found.residual,
        "planted": planted_findings(read.pairs, found),
        "removal": removal_findings(read, asked, influence, found, how),
        "explained": explain_query(read, asked, influence, found.norms, how, explain),
        "fit": asdict(how),
    }
    _write(folder, summary, ranked, pairs, [*read.unread, *asked.unread])
    page = folder / "audit.html"
    write_audit_page(summary, ranked, [*read.unread, *asked.unread], command=command, out=page)
    return page


def _at_least_two(file: Path, what: str) -> list[Pair]:
    pairs = load_pairs(file)
    if len(pairs) < 2:
        raise UserError(f"{file} holds one row; {what} need at least two, for a pair alone has no contrast.")
    return pairs


def _readable(encoder: Encoder, pairs: Sequence[Pair], file: Path) -> Features:
    """The features of a file, if at least two of its pairs could be read."""
    read = read_features(encoder, pairs, file)
    if len(read.pairs) < 2:
        raise UserError(f"Only one of the {len(pairs)} pairs of {file} could be read. Of the others: {read.unread[0]}.")
    return read


def _ranked(pairs: Sequence[Pair], found: Suspicion, n_out: int) -> list[dict[str, Any]]:
    """The lines of ``audit-pairs.jsonl``, the most suspicious first."""
    lines = []
    for rank, n in enumerate(found.influence.argsort(stable=True).tolist(), start=1):
        pair = pairs[n]
        line = {"rank": rank, "id": pair.id, "line": pair.line, "score": float(found.influence[n])}
        line |= {name: float(getattr(found, name)[n]) for name in ("relative", "similarity", "loss")}
        lines.append(line | {"keep": rank > n_out, "planted": pair.planted, "a": pair.a, "b": pair.b})
    return lines


def _write(
    folder: Path,
    summary: dict[str, Any],
    ranked: Sequence[dict[str, Any]],
    pairs: Sequence[Pair],
    unread: Sequence[Refusal],
) -> None:
    """All files but the page; the cleaned one has every row as it stood, in its order, with ``keep``."""
    kept = {line["line"]: line["keep"] for line in ranked}
    cleaned = ({**pair.fields, "keep": kept.get(pair.line, False)} for pair in pairs)
    write_lines(folder / "audit-pairs.jsonl", (json.dumps(line, ensure_ascii=False) for line in ranked))
    write_lines(folder / "audit-cleaned.jsonl", (json.dumps(row, ensure_ascii=False, default=str) for row in cleaned))
    write_refusals(folder / "audit-unread.jsonl", unread)
    write_lines(folder / "audit.json", [json.dumps(summary, ensure_ascii=False, indent=1)])
