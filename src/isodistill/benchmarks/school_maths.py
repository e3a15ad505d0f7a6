"""Grade-school mathematics told on several surfaces: trained on templates and isomers, tested on other collections.

Data and domains. Trained on ``school`` (GSM-Symbolic style templates of reasoning-gym, with the templates' own worked
solutions) and on our generated isomers of two numeric families (rates, comparison; level 1, two steps) told in
``mathematics``, ``cooking`` and ``sports``. Held out: the isomers' domains ``gardening`` and ``logistics``, ``svamp``
(SVAMP test) and ``gsm8k`` (GSM8K test). A training group has one problem of every domain; the problems of a group
differ, for the templates are told on one surface alone.

Splits. Templates stand on one side, and so do isomer sets; the structures of the isomers do not, so an isomer of the
tests has new numbers (id) or is told in a new domain as well (ood). train: the problems of the training templates but
those of valid, and 230 isomer sets; valid: 30 problems of 6 templates, and 10 sets; id: 30 problems of the 24 test
templates, and 20 sets in the trained domains; ood: the same 20 sets in the held-out domains, 30 problems of SVAMP and
30 of GSM8K, drawn by hash. GSM-Symbolic templates were made from GSM8K test problems: a GSM8K problem that shares six
words in a row with a training problem, numbers aside, is not drawn.

Licence: gsm_symbolic Apache-2.0, SVAMP MIT, GSM8K MIT, isomers ours.
Budget on 2 idle cores, estimated: 300 steps of 4 rows (540 tokens a step) and 190 answers of at most 160 tokens, about
4 minutes for each method.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from isodistill.benchmarks.base import Benchmark, by_hash, plain_rows, read_items
from isodistill.data.rows import Row
from isodistill.isomers.generate import generate_sets

__all__ = ["SCHOOL_MATHS"]

ISOMER_DOMAINS = ("mathematics", "cooking", "sports")
HELD_OUT_ISOMERS = ("gardening", "logistics")
FAMILIES = ("rates", "comparison")
N_ISOMER_SETS = 260
N_TEST, N_TEST_SETS, N_VALID_TEMPLATES, N_VALID_SETS = 30, 20, 6, 10
SHARED_WORDS = 6


def load(data: Path) -> list[Row]:
    """School templates and isomers for train, valid and id; held-out isomers, SVAMP and GSM8K for ood."""
    rows = _school(data) + _isomers()
    learned = {run for row in rows if row.split == "train" for run in _runs(str(row.prompt))}
    gsm8k = [item for item in read_items(data, "gsm8k", "test") if not learned & _runs(item["question"])]
    for name, items in (("svamp", read_items(data, "svamp", "test")), ("gsm8k", gsm8k)):
        drawn = by_hash(items, lambda item: str(item["id"]), N_TEST)
        rows += plain_rows(drawn, name, split="ood", licence="MIT", domain=name)
    return rows


def _school(data: Path) -> list[Row]:
    items = read_items(data, "gsm_symbolic", "train")
    templates = sorted({str(item["group"]) for item in items})
    valid = by_hash(templates, str, N_VALID_TEMPLATES)
    parts = {
        "train": [item for item in items if item["group"] not in valid],
        "valid": by_hash([i for i in items if i["group"] in valid], lambda item: str(item["id"]), N_TEST),
        "id": by_hash(read_items(data, "gsm_symbolic", "test"), lambda item: str(item["id"]), N_TEST),
    }
    return [
        row
        for split, chosen in parts.items()
        for row in plain_rows(
            chosen,
            "gsm_symbolic",
            split=split,
            licence="Apache-2.0",
            domain="school",
            structure=lambda item: str(item["group"]),
        )
    ]


def _isomers() -> list[Row]:
    """Isomer sets, divided by set; in training their members are single problems."""
    domains = (*ISOMER_DOMAINS, *HELD_OUT_ISOMERS)
    rows = generate_sets(n_sets=N_ISOMER_SETS, seed=0, families=FAMILIES, domains=domains, difficulty=(1,))
    order = by_hash(sorted({str(row.set_id) for row in rows}), str, N_ISOMER_SETS)
    tested, valid = order[:N_TEST_SETS], order[N_TEST_SETS : N_TEST_SETS + N_VALID_SETS]
    out = []
    for row in rows:
        side = "test" if row.set_id in tested else "valid" if row.set_id in valid else "train"
        held_out = row.domain in HELD_OUT_ISOMERS
        if side == "test":
            side = "ood" if held_out else "id"
        elif held_out:
            continue
        set_id = None if side == "train" else row.set_id
        out.append(replace(row, split=side, set_id=set_id, structure_id=None, licence="Apache-2.0"))
    return out


def _runs(text: str) -> set[tuple[str, ...]]:
    """Runs of six words with the numbers taken out."""
    words = re.findall(r"[a-z]+", text.casefold())
    return {tuple(words[i : i + SHARED_WORDS]) for i in range(len(words) - SHARED_WORDS + 1)}


SCHOOL_MATHS = Benchmark(
    name="school-maths",
    version=1,
    what="grade-school mathematics, trained on templates and isomers, tested on unseen templates, SVAMP and GSM8K",
    sets=("gsm_symbolic", "svamp", "gsm8k"),
    domains=("school", *ISOMER_DOMAINS),
    held_out=(*HELD_OUT_ISOMERS, "svamp", "gsm8k"),
    licence="gsm_symbolic Apache-2.0, SVAMP MIT, GSM8K MIT, isomers Apache-2.0",
    budget="about 4 minutes for each method and seed on 2 idle cores (estimated)",
    load=load,
    train={
        "steps": 300,
        "sets_per_batch": 1,
        "learning_rate": 1e-3,
        "domains": ["school", *ISOMER_DOMAINS],
    },
    evaluate={"max_new_tokens": 160, "before": False},
)
