"""Which members of isomer sets do not belong: the file of their scores, and the rows that are worth keeping."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from isodistill.data.files import write_lines
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.influence import SET_FIT, Fit, belonging, centred
from isodistill.isomers import CheckReport
from isodistill.pipeline.pair_features import load_encoder

__all__ = ["SetAudit", "audit_sets"]

_BATCH = 32


@dataclass(frozen=True)
class SetAudit:
    """What was found.

    Attributes:
        n_members: rows of sets that were judged.
        flagged: those that fit their own set the least, the worst first.
        kept: rows of sets that were proved, and of sets that could not be read without their flagged members.
        file: the scores of all members and pairs.
    """

    n_members: int
    flagged: list[Row]
    kept: list[Row]
    file: Path


def audit_sets(
    rows: Sequence[Row], verdict: CheckReport, model: str | None, folder: Path, flag: float = 0.1, how: Fit = SET_FIT
) -> SetAudit:
    """Judge every member of a set by its likeness to the others, under heads fitted to other sets.

    Args:
        rows: rows of sets, and others, which are not judged.
        verdict: of ``check_sets``: what it proved is kept whatever is found here, what it refuted is not.
        model: folder or hub id of a text encoder; None takes all-MiniLM-L6-v2.
        folder: where ``audit-members.jsonl`` and ``audit-pairs.jsonl`` go.
        flag: the share of members that is flagged.
        how: settings of the heads.

    Raises:
        UserError: a share outside [0, 1), fewer than four sets of two members, or no encoder.
    """
    if not 0 <= flag < 1:
        raise UserError(f"--flag is a share of the members, 0 or more and below 1; got {flag:g}.")
    sizes = Counter(row.set_id for row in rows if row.set_id is not None)
    members = [row for row in rows if row.set_id is not None and sizes[row.set_id] > 1]
    if len({row.set_id for row in members}) < 4:
        raise UserError("An audit of sets needs four sets of two members or more: some to learn from, some to judge.")
    encoder = load_encoder(model, images=False)
    with torch.no_grad():
        texts = [_text(row) for row in members]
        parts = [encoder.encode_b(texts[n : n + _BATCH]) for n in range(0, len(texts), _BATCH)]
    features = centred(nn.functional.normalize(torch.cat(parts), dim=-1), [row.domain for row in members])
    broken = (~features.isfinite().all(1)).nonzero()[:, 0].tolist()
    if broken:
        first = members[broken[0]].id
        raise UserError(
            f"{len(broken)} members have embeddings that are not finite, first {first}: is the encoder sound?"
        )
    found = belonging(features, [str(row.set_id) for row in members], how)
    order = found.member.argsort(stable=True).tolist()
    out = set(order[: round(flag * len(members))])
    lines = [
        {"rank": rank, "id": members[n].id, "set_id": members[n].set_id, "domain": members[n].domain}
        | {"similarity": float(found.member[n]), "keep": n not in out, "text": texts[n]}
        for rank, n in enumerate(order, start=1)
    ]
    write_lines(folder / "audit-members.jsonl", (json.dumps(line, ensure_ascii=False) for line in lines))
    pairs = [
        {"set_id": members[i].set_id, "a": members[i].id, "b": members[j].id}
        | {"similarity": float(found.similarity[n]), "keep": not out & {i, j}}
        for n in found.similarity.argsort(stable=True).tolist()
        for i, j in [found.pairs[n].tolist()]
    ]
    write_lines(folder / "audit-pairs.jsonl", (json.dumps(line, ensure_ascii=False) for line in pairs))
    flagged = [members[n] for n in order[: len(out)]]
    return SetAudit(len(members), flagged, _kept(rows, verdict, flagged), folder / "audit-members.jsonl")


def _kept(rows: Sequence[Row], verdict: CheckReport, flagged: Sequence[Row]) -> list[Row]:
    """Proved sets whole; sets that could not be read without flagged members, as long as two members are left."""
    proved, out = set(verdict.accepted), {row.id for row in flagged}
    unread = {set_id for set_id, reason in verdict.rejected.items() if reason == "not readable"}
    left = [row for row in rows if row.set_id in proved or (row.set_id in unread and row.id not in out)]
    sizes = Counter(row.set_id for row in left)
    return [row for row in left if sizes[row.set_id] > 1]


def _text(row: Row) -> str:
    return row.prompt if isinstance(row.prompt, str) else row.prompt[-1]["content"]
