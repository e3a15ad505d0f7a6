"""Model selection after the runs: from the records of a search to one setting per method.

A setting is a search draw with its checkpoint: ``(seed_hparam, step)``. Its score is

    score = mean over training seeds of acc_macro ,   acc_macro = mean over domains of the accuracy in each

and the setting with the highest score is chosen; the earlier draw wins a tie, so the defaults do. Only the settings
that finished with the most seeds compete: a mean over fewer seeds is luckier. The three rules differ in whose answers
they read. They are DomainBed's (Gulrajani and Lopez-Paz, arXiv 2007.01434); one setting for all seeds instead of one
per seed is our choice, so that what is chosen can be used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from isodistill.errors import UserError
from isodistill.evaluation.records import Record

__all__ = ["Choice", "Setting", "choose", "leave_one_out", "oracle", "train_val"]


class Setting(NamedTuple):
    """A search draw and the optimiser steps of its checkpoint."""

    seed_hparam: int
    step: int


class Choice(NamedTuple):
    """The setting of one method: its score, the seeds behind it, and the scores of all that competed."""

    setting: Setting
    score: float
    seeds: list[int]
    scores: dict[Setting, float]


def train_val(records: Iterable[Record]) -> dict[str, Choice]:
    """Method -> the setting that is best on the split ``valid``, held-out sets of the training domains.

    Answers to other splits are not looked at, so the test problems cannot leak into the choice.
    """
    return choose(_by_seed(record for record in records if record.split == "valid"))


def leave_one_out(records: Mapping[str, Iterable[Record]]) -> dict[str, Choice]:
    """Method -> the setting that does best in training domains that it was trained without.

    Args:
        records: domain -> answers of the runs trained without it; only answers of split ``valid`` in that domain count,
            and a draw and seed that lacks a domain (its run failed) does not count at all.
    """
    left_out = (
        record
        for domain, answers in records.items()
        for record in answers
        if record.split == "valid" and record.domain == domain
    )
    return choose(_by_seed(left_out, frozenset(records)))


def oracle(records: Iterable[Record], split: str) -> dict[str, Choice]:
    """Method -> the setting that is best on the test problems themselves: an upper bound, never a headline.

    Only the last checkpoint of every draw competes: choosing the moment to stop by the test would flatter more.
    """
    by_seed = _by_seed(record for record in records if record.split == split)
    for settings in by_seed.values():
        last: dict[int, int] = {}
        for setting in settings:
            last[setting.seed_hparam] = max(setting.step, last.get(setting.seed_hparam, 0))
        for setting in [s for s in settings if s.step < last[s.seed_hparam]]:
            del settings[setting]
    return choose(by_seed)


def _by_seed(
    records: Iterable[Record], needed: frozenset[str] = frozenset()
) -> dict[str, dict[Setting, dict[int, float]]]:
    """Method -> setting -> training seed -> acc_macro, where the needed domains are all there."""
    correct: dict[tuple[str, Setting, int], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if record.seed_hparam is None:
            raise UserError(f"The records of run {record.run_id} have no seed_hparam, so they are of no search.")
        setting = Setting(record.seed_hparam, record.step)
        by_domain = correct[record.method, setting, record.seed_train]
        by_domain[record.domain or "all"].append(record.outcome == "correct")
    found: dict[str, dict[Setting, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for (method, setting, seed), by_domain in correct.items():
        if needed <= by_domain.keys():
            found[method][setting][seed] = float(np.mean([np.mean(answers) for answers in by_domain.values()]))
    return found


def choose(by_seed: Mapping[str, Mapping[Setting, Mapping[int, float]]]) -> dict[str, Choice]:
    """Method -> its best setting, from method -> setting -> training seed -> score: what all rules have in common."""
    choices = {}
    for method, settings in by_seed.items():
        most = max(len(seeds) for seeds in settings.values())
        scores = {
            setting: float(np.mean([seeds[seed] for seed in sorted(seeds)]))
            for setting, seeds in sorted(settings.items())
            if len(seeds) == most
        }
        best = max(scores, key=lambda setting: (scores[setting], -setting.seed_hparam, -setting.step))
        choices[method] = Choice(best, scores[best], sorted(settings[best]), scores)
    return choices
