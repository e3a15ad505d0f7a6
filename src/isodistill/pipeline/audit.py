"""Which pairs of a file do not belong together: features, a fit, influences, and the files of an audit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from isodistill.data.files import Refusal, write_lines, write_refusals
from isodistill.data.pairs import Pair, find_duplicates, load_pairs, refuse_shared
from isodistill.errors import UserError
from isodistill.influence import Fit, Suspicion, suspect
from isodistill.pipeline.audit_findings import explain_query, planted_findings, removal_findings
from isodistill.pipeline.audit_model import audit_model, parameter_patterns
from isodistill.pipeline.pair_features import Encoder, Features, load_encoder, read_features
from isodistill.report.audit import write_audit_page

__all__ = ["CURVE_PAIRS", "audit_pairs"]

CURVE_PAIRS = 4000
"""Most pairs that the removal curve is fitted to, so that its cost has a bound."""

_ENOUGH_QUERIES = 4


def audit_pairs(
    file: Path,
    queries: Path,
    model: str | None,
    folder: Path,
    command: str,
    remove: float = 0.1,
    explain: str | None = None,
    parameters: str = "heads",
    curve_pairs: int | None = None,
    how: Fit | None = None,
) -> Path:
    """Rank the pairs of ``file`` by suspicion and write the files and the page of an audit; the removal curve is last.

    Args:
        file: the pairs, rows {"a", "b", "id"?} or {"image", "caption", "id"?}.
        queries: clean pairs of the same kind, none of them in ``file``.
        model: folder or hub id of a text encoder, for images of CLIP or ``open_clip:MODEL@PRETRAINED``; None takes
            all-MiniLM-L6-v2, for images CLIP ViT-B/32.
        folder: where the files go.
        command: shown on the page.
        remove: the share of pairs that gets keep = false; nothing is deleted.
        explain: id of the query that is traced back; the worst mistake without it.
        parameters: what is fitted: "heads", "lora", or patterns of names of the encoder's parameters.
        curve_pairs: most pairs that the removal curve is fitted to; 0 leaves it out. None takes ``CURVE_PAIRS`` for
            heads, and 0 for parameters of the encoder, where each of its 13 fits reads all texts or images.
        how: settings of the fit.

    Returns:
        The page.

    Raises:
        UserError: a rate outside [0, 1), a negative ``curve_pairs``, fewer than two readable pairs or queries, a
            missing column, queries among the pairs or of another kind, no query of the id ``explain``, no encoder, or
            no such parameter.
        KeyboardInterrupt: with what has been written by then.
    """
    if not 0 <= remove < 1:
        raise UserError(f"--remove is a share of the pairs, 0 or more and below 1; got {remove:g}.")
    if curve_pairs is not None and (curve_pairs < 0 or curve_pairs == 1):
        raise UserError(f"--curve-pairs is a number of pairs, two or more, or 0 for no curve; got {curve_pairs}.")
    page = folder / "audit.html"
    with _told_when_stopped("Stopped; nothing has been written, and the same command starts over."):
        pairs, clean = _loaded(file, queries, explain)
        encoder = load_encoder(model, pairs[0].image)
        patterns = parameter_patterns(encoder, parameters)
        read, asked = _readable(encoder, pairs, file), _readable(encoder, clean, queries)
        fitted = audit_model(encoder, patterns, read, asked, how)
        with tqdm(total=3, desc="fit, influences, trace") as bar:
            influence = fitted.fit_to_all()
            bar.update()
            found = suspect(influence, fitted.query_a, fitted.query_b, fitted.how.probes, fitted.how.seed)
            bar.update()
            explained = explain_query(fitted, read, asked, influence, found.norms.values, explain)
            bar.update()
        n_curve = CURVE_PAIRS * fitted.frozen if curve_pairs is None else curve_pairs
        summary: dict[str, Any] = {"pairs": str(file), "queries": str(queries)}
        summary |= {"model": encoder.name, "parameters": parameters}
        summary |= _counts(encoder, pairs, clean, read, asked, found)
        summary |= {"remove": remove, "planted": planted_findings(read.pairs, found), "explained": explained}
        summary |= {"removal": None, "no_removal": _why_no_curve(n_curve, asked), "fit": asdict(fitted.how)}
        ranked = _ranked(read.pairs, found, round(remove * len(read.pairs)))
        unread = [*read.unread, *asked.unread]
        _write_rows(folder, ranked, pairs, unread)
        _write_summary(folder, summary, ranked, unread, command)
    if summary["no_removal"] is None:
        with _told_when_stopped(f"Stopped in the removal curve; all else is in {page}."):
            summary |= {"removal": removal_findings(fitted, asked, influence, found, n_curve)}
        _write_summary(folder, summary, ranked, unread, command)
    return page


@contextmanager
def _told_when_stopped(message: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(message) from None


def _loaded(file: Path, queries: Path, explain: str | None) -> tuple[list[Pair], list[Pair]]:
    """The pairs and the queries, once it is sure that these can judge those."""
    pairs, clean = _at_least_two(file, "pairs"), _at_least_two(queries, "queries")
    if pairs[0].image != clean[0].image:
        raise UserError(f"One of {file} and {queries} holds texts and the other images: queries judge their own kind.")
    if explain is not None and explain not in {pair.id for pair in clean}:
        raise UserError(f"--explain takes the id of a query, such as {clean[0].id!r}; {queries} has no {explain!r}.")
    refuse_shared(pairs, clean, (file, queries))
    return pairs, clean


def _why_no_curve(n_pairs: int, asked: Features) -> str | None:
    """Why there is no removal curve; None where there will be one."""
    if n_pairs == 0:
        return "It was not asked for: --curve-pairs N fits it to N pairs."
    if len(asked.pairs) < _ENOUGH_QUERIES:
        return "There are fewer than four queries: too few to rank with one half and judge with the other."
    return None


def _counts(
    encoder: Encoder, pairs: Sequence[Pair], clean: Sequence[Pair], read: Features, asked: Features, found: Suspicion
) -> dict[str, Any]:
    """What of an audit can be counted, and how well the influences were solved for."""
    duplicates, solved = find_duplicates(pairs), found.norms.solved
    return {
        "images": pairs[0].image,
        "n_pairs": len(read.pairs),
        "n_queries": len(asked.pairs),
        "n_unread": len(read.unread),
        "n_unread_queries": len(asked.unread),
        "n_harmful": int((found.influence < 0).sum()),
        "n_longer": read.n_longer + asked.n_longer,
        "context": encoder.context,
        "n_duplicates": sum(len(ids) - 1 for ids in duplicates),
        "duplicates": duplicates,
        "n_duplicate_queries": sum(len(ids) - 1 for ids in find_duplicates(clean)),
        "residual": found.solution.residual,
        "converged": found.solution.converged,
        "norms_residual": solved.residual,
        "norms_open": solved.n_open,
    }


def _at_least_two(file: Path, what: str) -> list[Pair]:
    pairs = load_pairs(file)
    if len(pairs) < 2:
        raise UserError(f"{file} holds one row; {what} need at least two, for a pair alone has no contrast.")
    if len({pair.key for pair in pairs}) < 2:
        raise UserError(f"All {len(pairs)} rows of {file} are one pair; {what} need two different ones for a contrast.")
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


def _write_rows(
    folder: Path, ranked: Sequence[dict[str, Any]], pairs: Sequence[Pair], unread: Sequence[Refusal]
) -> None:
    """The files of rows; the cleaned one has every row as it stood, in its order, with ``keep``."""
    kept = {line["line"]: line["keep"] for line in ranked}
    cleaned = ({**pair.fields, "keep": kept.get(pair.line, False)} for pair in pairs)
    write_lines(folder / "audit-pairs.jsonl", (json.dumps(line, ensure_ascii=False) for line in ranked))
    write_lines(folder / "audit-cleaned.jsonl", (json.dumps(row, ensure_ascii=False, default=str) for row in cleaned))
    write_refusals(folder / "audit-unread.jsonl", unread)


def _write_summary(
    folder: Path,
    summary: dict[str, Any],
    ranked: Sequence[dict[str, Any]],
    unread: Sequence[Refusal],
    command: str,
) -> None:
    write_lines(folder / "audit.json", [json.dumps(summary, ensure_ascii=False, indent=1)])
    write_audit_page(summary, ranked, unread, command=command, out=folder / "audit.html")
