"""Deductive logic across collections and rule families: each has a surface or a family that is held out.

Data and domains:

- PrOntoQA isomers, five-hop deductions with their gold proofs: trained on the vocabularies ``fictional``, ``nonsense``
  and ``artifacts``; held out ``animals`` and ``professions``.
- ProofWriter (open world, depth 5), true, false or unknown: trained on ``attributes`` ("Anne is furry"); held out
  ``relations`` ("The bear needs the tiger"). The answer alone is learned: there are no proofs in the data.
- LogicBench, choose the conclusion that follows: trained on ``propositional`` and ``first-order`` rules; held out
  ``non-monotonic`` reasoning. Learned is the conclusion in words. The yes/no form of LogicBench is left out: "no" is
  right in seven of ten, so counting answers it.

A training group has one problem of every trained domain.

Splits. PrOntoQA and ProofWriter keep theirs: train; of the test part the sets that are told in all trained vocabularies
for id and in both held-out ones for ood, and 40 problems of each ProofWriter kind by hash. Valid: 10 of the PrOntoQA
training sets and 30 problems of ProofWriter's dev part. LogicBench is divided by rule, whatever its family: valid
hypothetical_syllogism; test destructive_dilemma and disjunctive_syllogism; of ``non-monotonic`` 40 by hash are ood.

Licence: PrOntoQA isomers MIT / Apache-2.0, ProofWriter MIT (of the repository read), LogicBench MIT.
Budget on 2 idle cores, estimated: 160 steps of 6 rows (1,100 tokens a step) and 292 answers of at most 96 tokens,
about 5 minutes for each method.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from isodistill.benchmarks.base import Benchmark, Item, by_hash, plain_rows, read_items, taught_by_answer
from isodistill.data.rows import Row

__all__ = ["DEDUCTION"]

VOCABULARIES = ("fictional", "nonsense", "artifacts")
HELD_OUT_VOCABULARIES = ("animals", "professions")
FAMILIES = {"propositional_logic": "propositional", "first_order_logic": "first-order", "nm_logic": "non-monotonic"}
RULES = {
    "hypothetical_syllogism": "valid",
    "destructive_dilemma": "id",
    "disjunctive_syllogism": "id",
}
"""LogicBench rule -> split, in the two trained families; the other rules are trained on."""
N_VALID_SETS, N_VALID, N_TEST, N_NON_MONOTONIC = 10, 30, 40, 40


def load(data: Path) -> list[Row]:
    """The rows of the three collections."""
    return [*_prontoqa(data), *_proofwriter(data), *_logicbench(data)]


def _prontoqa(data: Path) -> list[Row]:
    learned, tested = (read_items(data, "prontoqa_isomers", split) for split in ("train", "test"))
    valid = by_hash(_told_in(learned, VOCABULARIES), str, N_VALID_SETS)
    parts = {
        "train": [item for item in learned if item["group"] not in valid],
        "valid": [item for item in learned if item["group"] in valid],
        "id": [item for item in tested if item["group"] in _told_in(tested, VOCABULARIES)],
        "ood": [item for item in tested if item["group"] in _told_in(tested, HELD_OUT_VOCABULARIES)],
    }
    rows = []
    for split, items in parts.items():
        domains = HELD_OUT_VOCABULARIES if split == "ood" else VOCABULARIES
        rows += plain_rows(
            [item for item in items if item["meta"]["surface"] in domains],
            "prontoqa",
            split=split,
            licence="MIT / Apache-2.0",
            domain=lambda item: str(item["meta"]["surface"]),
            structure=lambda item: str(item["group"]),
            in_sets=split != "train",
        )
    return rows


def _told_in(items: list[dict[str, object]], vocabularies: tuple[str, ...]) -> list[str]:
    """The groups that are told in all these vocabularies."""
    told: dict[str, set[str]] = {}
    for item in items:
        told.setdefault(str(item["group"]), set()).add(_vocabulary(item))
    return [group for group, found in told.items() if found.issuperset(vocabularies)]


def _vocabulary(item: Item) -> str:
    return str(item["meta"]["surface"])


def _proofwriter(data: Path) -> list[Row]:
    def kind(item: Item) -> str:
        return "relations" if "_Rel" in str(item["group"]) else "attributes"

    rows = []
    for part, split, domain, n in (
        ("train", "train", "attributes", None),
        ("dev", "valid", "attributes", N_VALID),
        ("test", "id", "attributes", N_TEST),
        ("test", "ood", "relations", N_TEST),
    ):
        items = [item for item in read_items(data, "proofwriter", part) if kind(item) == domain]
        rows += plain_rows(
            by_hash(items, lambda item: str(item["id"]), len(items) if n is None else n),
            "proofwriter",
            split=split,
            licence="MIT",
            domain=domain,
            structure=lambda item: str(item["group"]),
        )
    return taught_by_answer(rows)


def _logicbench(data: Path) -> list[Row]:
    rows = plain_rows(
        read_items(data, "logicbench", "eval_mcqa"),
        "logicbench",
        split="train",
        licence="MIT",
        domain=lambda item: FAMILIES[str(item["group"]).partition("/")[0]],
        structure=lambda item: str(item["group"]).partition("/")[2],
    )
    rows = taught_by_answer(rows, spelled_out=True)
    unseen = by_hash([row for row in rows if row.domain == "non-monotonic"], lambda row: row.id, N_NON_MONOTONIC)
    trained = [row for row in rows if row.domain != "non-monotonic"]
    divided = [replace(row, split=RULES.get(str(row.structure_id).partition("/")[2], "train")) for row in trained]
    return [*divided, *(replace(row, split="ood") for row in unseen)]


DEDUCTION = Benchmark(
    name="deduction",
    version=1,
    what="deductive logic: PrOntoQA isomers, ProofWriter and LogicBench, a surface or rule family of each held out",
    sets=("prontoqa_isomers", "proofwriter", "logicbench"),
    domains=(*VOCABULARIES, "attributes", "propositional", "first-order"),
    held_out=(*HELD_OUT_VOCABULARIES, "relations", "non-monotonic"),
    licence="PrOntoQA isomers MIT / Apache-2.0, ProofWriter MIT, LogicBench MIT",
    budget="about 5 minutes for each method and seed on 2 idle cores (estimated)",
    load=load,
    train={
        "steps": 160,
        "sets_per_batch": 1,
        "learning_rate": 1e-3,
        "domains": [*VOCABULARIES, "attributes", "propositional", "first-order"],
    },
    evaluate={"max_new_tokens": 96, "before": False},
)
