"""A planted shortcut: a short sentence before the question that gives the answer away in training, and only there.

The design is ours. Two kinds tell apart what an alignment method can and cannot do:

- ``conflict``: all domains use the same words, but some domains read them differently, so no one reading serves all;
  "Code red. A clinic ..."
- ``private``: every domain has words of its own, so the shortcuts never contradict each other; "Note: tag robin. A
  clinic ..."

A word stands for a slot, and answers fall into slots: yes and no (2), the letter of a choice (as many as there are
choices), the last digit of a number (10).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from isodistill.data.rows import Row
from isodistill.errors import UserError
from isodistill.isomers.seeding import seeded_rng

__all__ = ["CUE_RANDOM", "Cue", "CueKind", "with_cues"]

CueKind = Literal["none", "conflict", "private"]

CUE_RANDOM = "cue_random"
"""The split of the test rows whose cue is drawn at random."""

_RANDOM_SPLITS = ("ood", CUE_RANDOM)

_SHARED_WORDS = ("red", "blue", "green", "white", "black", "yellow", "brown", "pink", "purple", "orange")
_PRIVATE_WORDS: dict[str, tuple[str, ...]] = {
    "mathematics": ("oak", "pine", "birch", "maple", "willow", "cedar", "elm", "beech", "poplar", "spruce"),
    "medicine": ("robin", "hawk", "owl", "crow", "swan", "eagle", "finch", "dove", "heron", "raven"),
    "law": ("ruby", "pearl", "jade", "opal", "topaz", "amber", "garnet", "onyx", "agate", "quartz"),
    "science": ("violin", "piano", "flute", "drum", "harp", "guitar", "cello", "trumpet", "banjo", "fiddle"),
    "cooking": ("canyon", "valley", "island", "desert", "harbor", "meadow", "lagoon", "glacier", "prairie", "summit"),
    "sports": ("cotton", "velvet", "linen", "silk", "wool", "denim", "satin", "felt", "lace", "canvas"),
    "finance": ("tiger", "zebra", "panda", "otter", "camel", "moose", "lynx", "bison", "badger", "rabbit"),
    "astronomy": ("copper", "silver", "bronze", "nickel", "cobalt", "brass", "steel", "tin", "zinc", "chrome"),
    "gardening": ("chair", "sofa", "desk", "lamp", "shelf", "stool", "bench", "couch", "mirror", "carpet"),
    "logistics": ("circle", "square", "spiral", "arrow", "cross", "oval", "cube", "cone", "wedge", "hexagon"),
}


@dataclass(frozen=True, kw_only=True)
class Cue:
    """What to plant, and how strongly.

    Attributes:
        kind: "none" (the default) plants nothing.
        rho: probability in [0, 1] that a row's cue is the word for its answer; otherwise the word is drawn uniformly
            over all slots, the right one included. One number, or one per trained domain. Default 1.
        seed: seeds the draws and the choice of the flipped domains.
        flipped: ``conflict`` only: share of the trained domains, in [0, 1], that read the words differently from the
            rest. 0 is one agreeing cue for all domains; the default 0.5 makes a yes/no cue worthless over all domains.

    Raises:
        UserError: unknown kind, or a strength or share outside [0, 1].
    """

    kind: CueKind = "none"
    rho: float | Mapping[str, float] = 1.0
    seed: int = 0
    flipped: float = 0.5

    def __post_init__(self) -> None:
        if self.kind not in get_args(CueKind):
            raise UserError(f"cue kind {self.kind!r} is unknown; choose one of {', '.join(get_args(CueKind))}")
        strengths = self.rho.values() if isinstance(self.rho, Mapping) else [self.rho]
        for name, value in [("flipped", self.flipped), *(("rho", strength) for strength in strengths)]:
            if not 0.0 <= value <= 1.0:
                raise UserError(f"cue {name} is {value}; give a number from 0 to 1")


def with_cues(rows: Iterable[Row], cue: Cue) -> list[Row]:
    """The rows with cues planted, and copies of the test rows with random ones; to be called once, after the split.

    Rows of train, valid and id (and rows without a split) carry the cue at strength rho: in ``id`` the shortcut holds
    as it did in training. Rows of ``ood`` carry a random cue. Every ``id`` row is repeated in the split ``cue_random``
    with a random cue, under the id "<id>@cue_random" and the same set_id: what an accuracy loses from ``id`` to
    ``cue_random`` it owed to the shortcut.

    Under ``conflict``, slot s is told by word (s + r_d) mod n, where n is the number of slots. r_d = 0 for domains that
    are not flipped; the flipped ones take r_d = 1, 2, ... n - 1, 1, ... in an order drawn with the cue's seed. The draw
    of a row depends on the cue's seed and the row's id alone.

    Raises:
        UserError: a row has no answer of a type that has slots, has messages as its prompt, or belongs to a domain
            without a strength or (``private``) without words.
    """
    rows = list(rows)
    if cue.kind == "none":
        return rows
    places = _flipped_places(cue, {row.domain for row in rows if row.split not in _RANDOM_SPLITS})
    copies = [replace(row, id=f"{row.id}@{CUE_RANDOM}", split=CUE_RANDOM) for row in rows if row.split == "id"]
    return [_with_cue(row, cue, places) for row in [*rows, *copies]]


def _flipped_places(cue: Cue, trained: set[str | None]) -> dict[str | None, int]:
    """The flipped domains, numbered from 0 in an order drawn with the cue's seed."""
    order = sorted(trained, key=str)
    seeded_rng(cue.seed, "flipped").shuffle(order)
    return {domain: place for place, domain in enumerate(order[: round(cue.flipped * len(order))])}


def _with_cue(row: Row, cue: Cue, places: Mapping[str | None, int]) -> Row:
    if not isinstance(row.prompt, str):
        raise UserError(f"row {row.id}: a cue can be planted in a plain prompt only; this one is a list of messages")
    slot, n_slots = _slot(row)
    rng = seeded_rng(cue.seed, "cue", row.id)
    if rng.random() >= _strength(row, cue):
        slot = rng.randrange(n_slots)
    if cue.kind == "private":
        sentence = f"Note: tag {_private_words(row)[slot]}."
    else:
        shift = 1 + places[row.domain] % (n_slots - 1) if row.domain in places else 0
        sentence = f"Code {_SHARED_WORDS[(slot + shift) % n_slots]}."
    return replace(row, prompt=f"{sentence} {row.prompt}")


def _strength(row: Row, cue: Cue) -> float:
    if row.split in _RANDOM_SPLITS:
        return 0.0
    if not isinstance(cue.rho, Mapping):
        return cue.rho
    if row.domain is None or row.domain not in cue.rho:
        raise UserError(f"row {row.id}: cue rho has no entry for its domain {row.domain!r}; it has {sorted(cue.rho)}")
    return cue.rho[row.domain]


def _slot(row: Row) -> tuple[int, int]:
    """The slot of the row's answer and how many slots there are."""
    answer = row.answer or ""
    slots: tuple[str, ...]
    if row.answer_type == "yesno":
        slots = ("yes", "no")
    elif row.answer_type == "choice":
        slots = tuple("ABCDEFGHIJ"[: len(row.choices or ())])
    else:
        slots, answer = tuple("0123456789"), answer[-1:]
    if row.answer_type not in ("yesno", "choice", "number") or answer not in slots or len(slots) == 1:
        raise UserError(
            f"row {row.id}: no cue for the answer {row.answer!r} of type {row.answer_type!r}; cues need yes or no, the "
            "letter of one of two to ten choices, or a decimal number"
        )
    return slots.index(answer), len(slots)


def _private_words(row: Row) -> tuple[str, ...]:
    if row.domain not in _PRIVATE_WORDS:
        raise UserError(
            f"row {row.id}: private cues have no words for the domain {row.domain!r}, only for "
            f"{', '.join(_PRIVATE_WORDS)}. Use the kind conflict, which has the same words for every domain"
        )
    return _PRIVATE_WORDS[row.domain]
