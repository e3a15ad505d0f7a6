"""Which pairs of a file do not belong together: features, heads, influences, and the files of an audit."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from isodistill.data.files import write_lines
from isodistill.data.pairs import Pair, find_duplicates, load_pairs, refuse_shared
from isodistill.errors import UserError
from isodistill.influence import Fit, Suspicion, fit_heads, suspect
from isodistill.models.text_encoder import load_text_encoder
from isodistill.report.audit import write_audit_page

__all__ = ["audit_pairs"]


def audit_pairs(
    file: Path, queries: Path, model: str, folder: Path, command: str, remove: float = 0.1, how: Fit | None = None
) -> Path:
    """Rank the pairs of ``file`` by suspicion and write ``audit-pairs.jsonl``, ``audit.json`` and ``audit.html``.

    Args:
        file: the pairs, rows {"a", "b", "id"?}.
        queries: clean pairs, none of them in ``file``.
        model: folder or hub id of a text encoder.
        folder: where the files go.
        command: shown on the page.
        remove: the share of pairs that gets keep = false; nothing is deleted.
        how: settings of the heads.

    Returns:
        The page.

    Raises:
        UserError: a rate outside [0, 1), fewer than two pairs or queries, a missing column, queries among the pairs, or
            no encoder.
    """
    if not 0 <= remove < 1:
        raise UserError(f"--remove is a share of the pairs, 0 or more and below 1; got {remove:g}.")
    pairs, clean = _at_least_two(file, "pairs"), _at_least_two(queries, "queries")
    refuse_shared(pairs, clean, (file, queries))
    encoder, how = load_text_encoder(model), how or Fit()
    texts = [pair.a for pair in pairs] + [pair.b for pair in pairs]
    query_texts = [pair.a for pair in clean] + [pair.b for pair in clean]
    features = encoder.features([*texts, *query_texts])
    a, b, query_a, query_b = features.split([len(pairs), len(pairs), len(clean), len(clean)])
    found = suspect(fit_heads(a, b, how), query_a, query_b, how)
    ranked = _ranked(pairs, found, round(remove * len(pairs)))
    duplicates = find_duplicates(pairs)
    summary = {
        "pairs": str(file),
        "queries": str(queries),
        "model": model,
        "n_pairs": len(pairs),
        "n_queries": len(clean),
        "remove": remove,
        "n_harmful": int((found.influence < 0).sum()),
        "n_longer": encoder.count_longer([*texts, *query_texts]),
        "context": encoder.context,
        "n_duplicates": sum(len(ids) - 1 for ids in duplicates),
        "duplicates": duplicates,
        "residual": found.residual,
        "fit": asdict(how),
    }
    write_lines(folder / "audit-pairs.jsonl", (json.dumps(pair, ensure_ascii=False) for pair in ranked))
    write_lines(folder / "audit.json", [json.dumps(summary, ensure_ascii=False, indent=1)])
    page = folder / "audit.html"
    write_audit_page(summary, ranked, command=command, out=page)
    return page


def _at_least_two(file: Path, what: str) -> list[Pair]:
    pairs = load_pairs(file)
    if len(pairs) < 2:
        raise UserError(f"{file} holds one row; {what} need at least two, for a pair alone has no contrast.")
    return pairs


def _ranked(pairs: list[Pair], found: Suspicion, n_out: int) -> list[dict[str, Any]]:
    """The lines of ``audit-pairs.jsonl``, the most suspicious first."""
    lines = []
    for rank, n in enumerate(found.relative.argsort(stable=True).tolist(), start=1):
        line = {"rank": rank, "id": pairs[n].id, "line": pairs[n].line, "score": float(found.relative[n])}
        line |= {name: float(getattr(found, name)[n]) for name in ("influence", "similarity", "loss")}
        lines.append(line | {"keep": rank > n_out, "a": pairs[n].a, "b": pairs[n].b})
    return lines
