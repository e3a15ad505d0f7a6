"""Draw the numbers of templates anew, so that whole numbers stay whole and every step is worked out again."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction

from isodistill.data.files import Refusal
from isodistill.data.rows import Row
from isodistill.isomers.perturb.template import Template, derive_template
from isodistill.isomers.seeding import seeded_rng

__all__ = ["Perturbed", "perturb_rows"]

_TRIES = 2000


@dataclass(frozen=True)
class Perturbed:
    """What came of it.

    Attributes:
        rows: the new problems, problem by problem.
        refused: problems without a template, or without ``n`` new draws, and why.
        n_templates: problems that a template was derived from.
    """

    rows: list[Row]
    refused: list[Refusal]
    n_templates: int


def perturb_rows(rows: Iterable[Row], *, n: int, seed: int) -> Perturbed:
    """``n`` problems from every row with an arithmetic trace, with other numbers and the answer worked out anew.

    A number v is drawn from v/2 to 2 v (per cent: at most 99), and the draw is taken when every result that was a whole
    number or positive still is. New rows share the structure of their source and belong to no isomer set, for their
    values differ; they are correct by construction (``valid``). The same seed gives the same rows.
    """
    made: list[Row] = []
    refused: list[Refusal] = []
    n_templates = 0
    for row in rows:
        try:
            template = derive_template(row)
        except ValueError as error:
            refused.append(Refusal(row.id, None, "completion", str(error)))
            continue
        n_templates += 1
        draws = _draws(template, n, seeded_rng(seed, "perturb", row.id))
        made += draws
        if len(draws) < n:
            refused.append(Refusal(row.id, None, "prompt", f"only {len(draws)} of {n} draws keep its numbers whole"))
    return Perturbed(made, refused, n_templates)


def _draws(template: Template, n: int, rng: random.Random) -> list[Row]:
    found: dict[tuple[Fraction, ...], Row] = {}
    before = tuple(template.values.values())
    for _ in range(_TRIES):
        if len(found) == n:
            break
        values = {name: _drawn(value, name in template.percents, rng) for name, value in template.values.items()}
        key = tuple(values.values())
        if key == before or key in found or (row := template.fill(values)) is None:
            continue
        found[key] = replace(
            row,
            id=f"{row.id}/draw-{len(found)}",
            structure_id=row.structure_id or row.set_id or row.id,
            set_id=None,
            valid=True,
        )
    return list(found.values())


def _drawn(value: Fraction, percent: bool, rng: random.Random) -> Fraction:
    most = min(2 * int(value), 99) if percent else 2 * int(value)
    return Fraction(rng.randint(max(2, int(value) // 2), max(2, most)))
