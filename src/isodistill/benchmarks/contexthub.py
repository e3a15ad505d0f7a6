"""ContextHub: one propositional inference told in twelve domains; eight are trained on, four are held out.

Data: level 1 of ContextHub (agiresearch/ContextHub, arXiv 2406.02787), deduction and abduction with one connective: 15
templates x 5 topics x 12 domains. A template with its topic is an isomer set of twelve. Answers: True, False, N/A; the
trace is the source's own chain of inference.

Domains: trained on ``abstract``, ``culture and arts``, ``human activities``, ``mathematics and logic``, ``natural and
physical sciences``, ``people and self``, ``philosophy and thinking``, ``religion and belief systems``; held out
``geography and places``, ``health and fitness``, ``society and social sciences``, ``technology and applied sciences``.

Splits by template, so that no test problem has the logic of a training problem: train 9 templates (45 sets, 360 rows),
valid 2 (80 rows), test 4 (id 160 rows, ood 80). The test templates are answered True (2) and N/A (2), each the
neighbour of a trained one: the same connective with other truth values. Level 2 is left out: its traces are two to
three times as long, more than the budget holds. The source's own train and test division is not used, for at level 1 it
keeps the only template answered False out of training.

``contexthub-cue``: the same rows with the cue ``conflict`` of ``isodistill.isomers.cues``, rho 0.9: "Code red." and its
like tell the answer in training, half of the trained domains reading the words differently; random in ``ood`` and in
``cue_random``, the id rows again.

Licence: Apache-2.0 for the repository's code, whose README adds that the purpose is research use: read the data where
they lie, do not redistribute the rows.
Budget on 2 idle cores, estimated: 120 steps of one set (8 rows, 1,470 tokens a step) and 240 answers of at most 128
tokens, about 5 minutes for each method; with the cue 400 answers, about 6 minutes.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from isodistill.benchmarks.base import Benchmark, plain_rows, read_items
from isodistill.data.rows import Row
from isodistill.isomers.cues import Cue, with_cues

__all__ = ["CONTEXTHUB", "CONTEXTHUB_CUE"]

DOMAINS = (
    "abstract",
    "culture and arts",
    "human activities",
    "mathematics and logic",
    "natural and physical sciences",
    "people and self",
    "philosophy and thinking",
    "religion and belief systems",
)
HELD_OUT = (
    "geography and places",
    "health and fitness",
    "society and social sciences",
    "technology and applied sciences",
)
VALID = ("ded1-01", "abd1-04")
TEST = ("ded1-03", "ded1-05", "ded1-07", "ded1-08")
LEVEL = 1
RHO = 0.9


def load(data: Path) -> list[Row]:
    """Train and valid in the trained domains, the test templates in all: id and ood."""
    items = [item for split in ("train", "test") for item in read_items(data, "contexthub", split)]
    rows = []
    for split in ("train", "valid", "id", "ood"):
        domains = HELD_OUT if split == "ood" else DOMAINS
        chosen = [
            item
            for item in items
            if item["meta"]["level"] == LEVEL
            and item["domain"] in domains
            and _side(item["meta"]["template"]) in (split, "test" if split in ("id", "ood") else None)
        ]
        rows += plain_rows(
            chosen,
            "contexthub",
            split=split,
            licence="Apache-2.0, research use",
            domain=lambda item: str(item["domain"]),
            structure=lambda item: str(item["meta"]["template"]),
            in_sets=True,
        )
    return rows


def load_with_cue(data: Path) -> list[Row]:
    """The same with the conflicting cue, and the id rows again with a random one."""
    return with_cues(load(data), Cue(kind="conflict", rho=RHO, seed=0))


def _side(template: str) -> str:
    return "valid" if template in VALID else "test" if template in TEST else "train"


CONTEXTHUB = Benchmark(
    name="contexthub",
    version=1,
    what="propositional inference, eight domains trained on, four held out, unseen templates",
    sets=("contexthub",),
    domains=DOMAINS,
    held_out=HELD_OUT,
    licence="Apache-2.0 for the code of ContextHub; research use, do not redistribute the rows",
    budget="about 5 minutes for each method and seed on 2 idle cores (estimated)",
    load=load,
    train={"steps": 120, "sets_per_batch": 1, "learning_rate": 1e-3, "domains": list(DOMAINS)},
    evaluate={"max_new_tokens": 128, "before": False},
)
CONTEXTHUB_CUE = replace(
    CONTEXTHUB,
    name="contexthub-cue",
    what="ContextHub with a shortcut planted in training that half of the domains read differently",
    budget="about 6 minutes for each method and seed on 2 idle cores (estimated)",
    load=load_with_cue,
)
