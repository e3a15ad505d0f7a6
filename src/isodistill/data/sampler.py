"""Batches of whole isomer sets: every training domain once per set, in an order fixed by seed and epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Literal

from torch.utils.data import Sampler

from isodistill.data.rows import NO_DOMAIN
from isodistill.errors import UserError

__all__ = ["IsomerSetSampler"]


class IsomerSetSampler(Sampler[list[int]]):
    """A batch sampler that hands out whole sets.

    Members of a set are shuffled per domain and zipped into groups with every domain once. Where a domain has several
    rows in one set (traces of several teachers), there are as many groups as the longest domain has rows; the shorter
    ones start over, so an epoch shows every row. Rows without a set are treated as one such set: groups of one row per
    domain, each domain cycling through its own shuffled order. With one domain a group is simply a row.

    The order of an epoch is a function of (seed, epoch). The last incomplete batch is dropped.

    With accelerate, pass it as ``DataLoader(..., batch_sampler=sampler)``: ``DataLoaderShard`` and the Trainer call
    ``set_epoch``, and of n processes each takes every n-th batch. A loader fetches ahead of training, and
    ``state_dict`` counts batches handed out: whoever counts batches trained puts that number into the state.

    Attributes:
        dropped: set id -> training domains it lacks, for the sets that are not used (key None: the rows without a set).
        n_other_domains: rows of domains that are not trained on; they are never handed out.

    Args:
        set_ids: set of each row, None for a row without one.
        row_domains: domain of each row, None counts as ``NO_DOMAIN``.
        domains: training domains, in the order in which a group lists its rows.
        sets_per_batch: groups per batch; a batch has this many rows of every domain.
        seed: seed of the order.
        missing_domain: "drop_set" leaves out sets that lack a domain; "subset" uses them with the domains they have.
        domain_groups: hand every batch of sets out in this many parts, one after the other, each with every so-manieth
            domain: with as many processes, each trains its own domains of the same sets.

    Raises:
        UserError: fewer groups than one batch needs, or fewer domains than ``domain_groups``.
    """

    # accelerate reads these two: batches count whole, and a round that does not reach every process is dropped.
    batch_size = None
    drop_last = True

    def __init__(
        self,
        set_ids: Sequence[str | None],
        row_domains: Sequence[str | None],
        *,
        domains: Sequence[str],
        sets_per_batch: int,
        seed: int,
        missing_domain: Literal["drop_set", "subset"] = "drop_set",
        domain_groups: int = 1,
    ) -> None:
        if domain_groups > len(domains):
            raise UserError(
                f"{domain_groups} processes cannot each take domains of their own: there are {len(domains)} "
                f"({', '.join(domains)}). Start fewer processes, or set split_ranks_by to sets."
            )
        self.domain_groups = domain_groups
        self.domains = tuple(domains)
        self.sets_per_batch = sets_per_batch
        self.seed = seed
        self.epoch = 0
        self._start = 0  # where the next pass begins
        self._batch = 0  # batches of the epoch handed out
        self.n_other_domains = 0
        self._sets: dict[str | None, dict[str, list[int]]] = {}
        self._part: dict[int, int] = {}  # row -> which part of a batch it comes in
        for index, (set_id, row_domain) in enumerate(zip(set_ids, row_domains, strict=True)):
            domain = row_domain or NO_DOMAIN
            if domain in self.domains:
                self._sets.setdefault(set_id, {}).setdefault(domain, []).append(index)
                self._part[index] = self.domains.index(domain) % domain_groups
            else:
                self.n_other_domains += 1
        self.dropped = {
            set_id: lacking
            for set_id, members in self._sets.items()
            if (lacking := tuple(d for d in self.domains if d not in members)) and missing_domain == "drop_set"
        }
        for set_id in self.dropped:
            del self._sets[set_id]
        self.n_groups = sum(max(map(len, members.values())) for members in self._sets.values())
        if self.n_groups < sets_per_batch or sets_per_batch < 1:
            raise UserError(self._too_small(len(set_ids)))

    def __len__(self) -> int:
        """Batches per epoch, wherever the current pass began."""
        return self.n_groups // self.sets_per_batch * self.domain_groups

    def __iter__(self) -> Iterator[list[int]]:
        start, self._start = self._start, 0
        groups = self._groups(random.Random(f"{self.seed}/{self.epoch}"))
        for batch in range(start, len(self)):
            self._batch = batch + 1
            sets, part = divmod(batch, self.domain_groups)
            chosen = groups[sets * self.sets_per_batch : (sets + 1) * self.sets_per_batch]
            yield [index for group in chosen for index in group if self._part[index] == part]

    def set_epoch(self, epoch: int) -> None:
        """Starts another epoch; naming the current one changes nothing, so a loaded position is kept."""
        if epoch != self.epoch:
            self.epoch, self._start, self._batch = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """The position: epoch, and batches of it handed out; with what must be the same for it to mean anything."""
        return {"epoch": self.epoch, "batch": self._batch, **self._identity()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continues with exactly the batches that remain at the position.

        Raises:
            UserError: the position is of other data, another batch size or another seed.
        """
        for name, value in self._identity().items():
            if state[name] != value:
                raise UserError(
                    f"The checkpoint's sampler has {name} = {state[name]}, this run has {value}. An exact resume needs "
                    "the same data, batch size and seed; start anew, or restore them."
                )
        self.epoch, self._start, self._batch = state["epoch"], state["batch"], state["batch"]

    def _identity(self) -> dict[str, int]:
        return {"seed": self.seed, "n_groups": self.n_groups, "sets_per_batch": self.sets_per_batch}

    def _groups(self, rng: random.Random) -> list[list[int]]:
        groups = []
        for members in self._sets.values():
            present = [rng.sample(members[d], len(members[d])) for d in self.domains if d in members]
            longest = max(map(len, present))
            groups += [[order[i % len(order)] for order in present] for i in range(longest)]
        rng.shuffle(groups)
        return groups

    def _too_small(self, n_rows: int) -> str:
        lacking = "; ".join(
            f"{'rows without a set' if set_id is None else f'set {set_id!r}'} lack {', '.join(domains)}"
            for set_id, domains in list(self.dropped.items())[:5]
        )
        why = f" {len(self.dropped)} sets are left out ({lacking})." if self.dropped else ""
        return (
            f"{n_rows} rows make {self.n_groups} complete sets over the domains {', '.join(self.domains)}, but a batch "
            f"needs sets_per_batch = {self.sets_per_batch}.{why} Lower sets_per_batch (at least 1), train on fewer "
            'domains, or set missing_domain to "subset".'
        )
