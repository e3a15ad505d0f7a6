"""Which members of isomer sets do not belong: files of their scores, the page, and the rows that are worth keeping."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from isodistill.data.files import write_lines
from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.influence import SET_FIT, Belonging, Fit, belonging, centred
from isodistill.isomers import CheckReport
from isodistill.models.text_encoder import TextEncoder, load_text_encoder
from isodistill.pipeline.pair_features import DEFAULTS
from isodistill.report.audit_sets import write_set_audit_page

__all__ = ["SetAudit", "audit_sets"]

_BATCH = 32
_N_OTHERS = 3


@dataclass(frozen=True)
class SetAudit:
    """What was found.

    Attributes:
        n_members: rows of sets that were judged.
        n_longer: texts of them that the encoder cut.
        flagged: those that fit their own set the least, the worst first.
        kept: rows of sets that were proved, and of sets that could not be read without their flagged members.
        page: shows the flagged members beside others of their set.
    """

    n_members: int
    n_longer: int
    flagged: list[Row]
    kept: list[Row]
    page: Path


def audit_sets(
    rows: Sequence[Row],
    verdict: CheckReport,
    model: str | None,
    folder: Path,
    command: str,
    flag: float = 0.1,
    how: Fit = SET_FIT,
) -> SetAudit:
    """Judge every member of a set by its likeness to the others, under heads fitted to other sets.

    Args:
        rows: rows of sets, and others, which are not judged.
        verdict: of ``check_sets``: what it proved is kept whatever is found here, what it refuted is not.
        model: folder or hub id of a text encoder; None takes all-MiniLM-L6-v2.
        folder: where ``audit-members.jsonl``, ``audit-pairs.jsonl`` and ``audit.html`` go.
        command: shown on the page.
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
    encoder = load_text_encoder(model or DEFAULTS[False])
    n_longer = encoder.count_longer([_text(row) for row in members])
    found = belonging(_features(encoder, members), [str(row.set_id) for row in members], how)
    order = found.member.argsort(stable=True).tolist()
    out = order[: round(flag * len(members))]
    _write(folder, members, found, order, set(out))
    page = folder / "audit.html"
    summary = {"model": encoder.name, "n_sets": len({row.set_id for row in members}), "flag": flag}
    summary |= {"n_longer": n_longer, "context": encoder.context}
    shown = [_beside_others(n, members, found, verdict) for n in out]
    write_set_audit_page(summary, found.member.tolist(), shown, command=command, out=page)
    flagged = [members[n] for n in out]
    return SetAudit(len(members), n_longer, flagged, _kept(rows, verdict, flagged), page)


@torch.no_grad()
def _features(encoder: TextEncoder, members: Sequence[Row]) -> Tensor:
    texts = [_text(row) for row in members]
    starts = tqdm(range(0, len(texts), _BATCH), desc="features")
    parts = [encoder.encode_b(texts[n : n + _BATCH]) for n in starts]
    features = centred(nn.functional.normalize(torch.cat(parts), dim=-1), [row.domain for row in members])
    broken = (~features.isfinite().all(1)).nonzero()[:, 0].tolist()
    if broken:
        raise UserError(
            f"{len(broken)} members have embeddings that are not finite, first {members[broken[0]].id}: "
            "is the encoder sound?"
        )
    return features


def _write(folder: Path, members: Sequence[Row], found: Belonging, order: Sequence[int], out: set[int]) -> None:
    """The files of members and of pairs, the least alike first."""
    lines = [
        {"rank": rank, "id": members[n].id, "set_id": members[n].set_id, "domain": members[n].domain}
        | {"similarity": float(found.member[n]), "keep": n not in out, "text": _text(members[n])}
        for rank, n in enumerate(order, start=1)
    ]
    pairs = [
        {"set_id": members[i].set_id, "a": members[i].id, "b": members[j].id}
        | {"similarity": float(found.similarity[n]), "keep": not out & {i, j}}
        for n in found.similarity.argsort(stable=True).tolist()
        for i, j in [found.pairs[n].tolist()]
    ]
    for name, written in (("members", lines), ("pairs", pairs)):
        write_lines(folder / f"audit-{name}.jsonl", (json.dumps(line, ensure_ascii=False) for line in written))


def _beside_others(n: int, members: Sequence[Row], found: Belonging, verdict: CheckReport) -> dict[str, Any]:
    """A flagged member, and the others of its set that fit this best, each with its likeness to the member."""
    beside = (found.pairs == n).any(1).nonzero()[:, 0].tolist()
    others = {int(found.pairs[pair].sum()) - n: float(found.similarity[pair]) for pair in beside}
    best = sorted(others, key=lambda other: -float(found.member[other]))[:_N_OTHERS]
    set_id = str(members[n].set_id)
    return {
        **_shown(members[n], float(found.member[n])),
        "set_id": set_id,
        "reader": "proved" if set_id in verdict.accepted else verdict.rejected[set_id],
        "n_others": len(others),
        "others": [_shown(members[other], others[other]) for other in best],
    }


def _shown(row: Row, similarity: float) -> dict[str, Any]:
    return {"id": row.id, "domain": row.domain, "text": _text(row), "similarity": similarity}


def _kept(rows: Sequence[Row], verdict: CheckReport, flagged: Sequence[Row]) -> list[Row]:
    """Proved sets whole; sets that could not be read without flagged members, as long as two members are left."""
    proved, out = set(verdict.accepted), {row.id for row in flagged}
    unread = {set_id for set_id, reason in verdict.rejected.items() if reason == "not readable"}
    left = [row for row in rows if row.set_id in proved or (row.set_id in unread and row.id not in out)]
    sizes = Counter(row.set_id for row in left)
    return [row for row in left if sizes[row.set_id] > 1]


def _text(row: Row) -> str:
    return row.prompt if isinstance(row.prompt, str) else row.prompt[-1]["content"]
