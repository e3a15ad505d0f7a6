"""Train, valid and test sides that share no structure, no set and no prompt.

Rows that are linked by a structure, a set or the same prompt text form a bundle, and a bundle stands on one side as a
whole. Which side is drawn from a hash of the bundle's name, so the split depends on neither the order of the rows nor
on Python's random state. Splitting by structure before sets is the rule of reasoning-teacher's template split (Ho et
al., arXiv 2212.10071) carried to isomer sets; bundles, hashing and the balance over families are our choices.
"""

from __future__ import annotations

import difflib
import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from isodistill.data.rows import NO_DOMAIN, Row
from isodistill.errors import UserError

__all__ = ["check_leaks", "split_rows", "validate_domains"]


def split_rows(
    rows: Sequence[Row],
    *,
    valid: float = 0.1,
    test: float = 0.2,
    held_out_domains: Sequence[str] = (),
    seed_data: int = 0,
) -> list[Row]:
    """The rows with ``split`` set to train, valid, id or ood, in their order.

    Test-side rows are "ood" in a held-out domain and "id" elsewhere. Rows of a held-out domain on the train or valid
    side are left out: ``len(rows) - len(result)`` of them. Rows that have a split keep it, and what is linked to them
    goes to the same side. Shares are of bundles, per family (``structure_id`` up to the first "/"), each side getting
    at least one bundle of every family that has enough of them.

    Args:
        rows: all rows of a run.
        valid: share of the bundles for model selection.
        test: share of the bundles for the report.
        held_out_domains: domains never trained on.
        seed_data: another seed, another split.

    Raises:
        UserError: impossible shares, an id that stands on two rows, too few structures to fill every side, an unknown
            held-out domain, or given splits that leak.
    """
    if min(valid, test) < 0 or valid + test >= 1:
        raise UserError(f"valid = {valid:g} and test = {test:g} leave nothing to train on; their sum must be below 1.")
    _check_known(rows, held_out_domains)
    if repeated := [name for name, times in Counter(row.id for row in rows).items() if times > 1]:
        raise UserError(f"The id {repeated[0]!r} stands on several rows ({len(repeated)} such ids); make ids unique.")
    bundles = _bundles(rows)
    given = {name: {_side(row.split) for row in bundle if row.split} for name, bundle in bundles.items()}
    free = [name for name in bundles if not given[name]]
    sides = {name: max(found) for name, found in given.items() if found}
    sides |= _assign(free, bundles, valid, test, seed_data)
    side_of = {row.id: sides[name] for name, bundle in bundles.items() for row in bundle}
    out = []
    for row in rows:
        split = row.split or _split(side_of[row.id], row.domain in held_out_domains)
        if split is not None:
            out.append(replace(row, split=split))
    check_leaks(out, held_out_domains)
    return out


def check_leaks(rows: Iterable[Row], held_out_domains: Sequence[str] = ()) -> None:
    """Makes sure that nothing trained on stands in another split.

    Raises:
        UserError: a structure, a set or a prompt text (case and white space aside) is in train and elsewhere, or a
            held-out domain, or one of the split "ood", is in train; names the first five.
    """
    trained: dict[tuple[str, str], Row] = {}
    tested: dict[tuple[str, str], str] = {("domain", domain): "held_out_domains" for domain in held_out_domains}
    for row in rows:
        domain = ("domain", row.domain or NO_DOMAIN)
        if row.split == "train":
            trained.update((link, row) for link in [domain, *_links(row)])
        elif row.split is not None:
            links = [domain, *_links(row)] if row.split == "ood" else _links(row)
            tested.update((link, f"row {row.id!r} of {row.split}") for link in links)
    leaks = [
        f"  {kind} {value[:60]!r}: train row {trained[kind, value].id!r} and {other}"
        for (kind, value), other in tested.items()
        if (kind, value) in trained
    ]
    if leaks:
        first = "\n".join(leaks[:5])
        raise UserError(
            f"{len(leaks)} things stand in train and in another split, so a score there would flatter:\n{first}\n"
            "Clear the column split and let the rows be split by structure, or take these rows out of one side."
        )


def validate_domains(rows: Sequence[Row], domains: Sequence[str]) -> None:
    """Makes sure that every domain to be trained on has rows to train on (those of split train, or of no split).

    Raises:
        UserError: a domain that no row has (names the nearest one), or one without training rows.
    """
    _check_known(rows, domains)
    for domain in domains:
        splits = [row.split for row in rows if (row.domain or NO_DOMAIN) == domain]
        if not {None, "train"} & set(splits):
            where = ", ".join(sorted({split for split in splits if split is not None}))
            raise UserError(
                f"The domain {domain!r} has no rows to train on: its {len(splits)} rows are in the split {where}. "
                "Take it off the training domains, or off held_out_domains."
            )


def _check_known(rows: Iterable[Row], domains: Iterable[str]) -> None:
    known = {row.domain or NO_DOMAIN for row in rows}
    for domain in domains:
        if domain not in known:
            close = difflib.get_close_matches(domain, known, n=1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise UserError(f"No row has the domain {domain!r}.{meant} The rows have: {', '.join(sorted(known))}.")


def _links(row: Row) -> list[tuple[str, str]]:
    """What ties a row to others: kind and value, the prompt text normalised."""
    text = row.prompt if isinstance(row.prompt, str) else " ".join(message["content"] for message in row.prompt)
    links = [("prompt", " ".join(unicodedata.normalize("NFKC", text).casefold().split()))]
    if row.set_id is not None:
        links.append(("set", row.set_id))
    if row.structure_id is not None:
        links.append(("structure", row.structure_id))
    return links


def _bundles(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows that must stay together, by the smallest name among them."""
    parent: dict[tuple[str, str], tuple[str, str]] = {}

    def root(link: tuple[str, str]) -> tuple[str, str]:
        while parent.setdefault(link, link) != link:
            parent[link] = parent[parent[link]]
            link = parent[link]
        return link

    for row in rows:
        first, *others = _links(row)
        for link in others:
            parent[root(link)] = root(first)
    members: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        members[root(_links(row)[0])].append(row)
    return {min(map(_name, bundle)): bundle for bundle in members.values()}


def _name(row: Row) -> str:
    """Structure before set before row, so that a bundle keeps its name, and its side, when rows are added to it."""
    if row.structure_id is not None:
        return f"0 {row.structure_id}"
    return f"1 {row.set_id}" if row.set_id is not None else f"2 {row.id}"


def _side(split: str | None) -> str:
    return split if split in ("train", "valid") else "test"


def _split(side: str, held_out: bool) -> str | None:
    if side == "test":
        return "ood" if held_out else "id"
    return None if held_out else side


def _assign(names: list[str], bundles: dict[str, list[Row]], valid: float, test: float, seed: int) -> dict[str, str]:
    """A side for each bundle, family by family; families too small to reach every side are drawn together."""
    if not names:
        return {}
    wanted = ["train"] + ["test"] * (test > 0) + ["valid"] * (valid > 0)
    families: dict[str, list[str]] = defaultdict(list)
    for name in names:
        structure = min((row.structure_id for row in bundles[name] if row.structure_id), default="")
        families[structure.partition("/")[0]].append(name)
    groups = [family for family in families.values() if len(family) >= len(wanted)]
    if pooled := [name for family in families.values() if len(family) < len(wanted) for name in family]:
        groups.append(pooled)
    sides: dict[str, str] = {}
    for group in groups:
        group.sort(key=lambda name: hashlib.sha256(f"{seed}\0{name}".encode()).digest())
        sides.update(zip(group, _sides(len(group), valid, test), strict=True))
    if missing := [side for side in wanted if side not in sides.values()]:
        raise UserError(
            f"{len(names)} separate structures are too few for {', '.join(wanted)}: nothing is left for "
            f"{', '.join(missing)}. Give more structures, or set the share of that side to 0."
        )
    return sides


def _sides(n: int, valid: float, test: float) -> list[str]:
    """The sides of n bundles: one for train first, then one for test, one for valid, the rest by the shares."""
    room_for_test = max(n - 1 - (valid > 0), min(n - 1, 1))
    n_test = min(max(round(n * test), test > 0), room_for_test)
    n_valid = min(max(round(n * valid), valid > 0), n - 1 - n_test)
    return ["test"] * n_test + ["valid"] * n_valid + ["train"] * (n - n_test - n_valid)
