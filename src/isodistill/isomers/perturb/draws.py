"""Draw the numbers of templates anew, so that whole numbers stay whole and every step is worked out again."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterable, Sequence
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
    number or positive still is. New rows share the structure of their source and are correct by construction
    (``valid``). Members of an isomer set with the same numbers and steps, in the same order, get the same draws, and
    those of one draw are an isomer set; other rows belong to none, for their values differ. The same seed gives the
    same rows.
    """
    made: list[Row] = []
    refused: list[Refusal] = []
    groups: dict[tuple[str, str], list[Template]] = {}
    for row in rows:
        try:
            template = derive_template(row)
        except ValueError as error:
            refused.append(Refusal(row.id, None, "completion", str(error)))
            continue
        groups.setdefault(("row", row.id) if row.set_id is None else ("set", row.set_id), []).append(template)
    for (kind, name), members in groups.items():
        alike = kind == "set" and len(members) > 1 and len({_calculation(template) for template in members}) == 1
        for together in [members] if alike else [[template] for template in members]:
            rng = seeded_rng(seed, "perturb", name if alike else together[0].row.id)
            draws = _draws(together, n, rng)
            made += [row for rows_of_member in zip(*draws, strict=True) for row in rows_of_member]
            if len(draws) < n:
                why = f"only {len(draws)} of {n} draws keep its numbers whole"
                refused += [Refusal(template.row.id, None, "prompt", why) for template in together]
    return Perturbed(made, refused, sum(map(len, groups.values())))


def _calculation(template: Template) -> str:
    """What a template works out, without its words."""
    steps = [(name, ast.dump(expression)) for name, expression in template.steps]
    return repr((list(template.values.items()), steps, sorted(template.percents)))


def _draws(templates: Sequence[Template], n: int, rng: random.Random) -> list[list[Row]]:
    """Up to ``n`` draws, each a row of every template: one problem, or members of one set with the same numbers."""
    first = templates[0]
    found: dict[tuple[Fraction, ...], list[Row]] = {}
    before = tuple(first.values.values())
    for _ in range(_TRIES):
        if len(found) == n:
            break
        values = {name: _drawn(value, name in first.percents, rng) for name, value in first.values.items()}
        key = tuple(values.values())
        filled = [template.fill(values) for template in templates]
        rows = [row for row in filled if row is not None]
        if key == before or key in found or len(rows) < len(templates):
            continue
        found[key] = [
            replace(
                row,
                id=f"{row.id}/draw-{len(found)}",
                structure_id=row.structure_id or row.set_id or row.id,
                set_id=f"{row.set_id}/draw-{len(found)}" if len(templates) > 1 else None,
                valid=True,
            )
            for row in rows
        ]
    return list(found.values())


def _drawn(value: Fraction, percent: bool, rng: random.Random) -> Fraction:
    most = min(2 * int(value), 99) if percent else 2 * int(value)
    return Fraction(rng.randint(max(2, int(value) // 2), max(2, most)))
