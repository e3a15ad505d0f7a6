"""Professions and fields: medicine, law and science as real domains, two further fields held out.

Data and domains:

- ``medicine``: MedCalc-Bench, clinical scores from a patient note. Kept are the integer scores, whose answer is exact,
  with questions of at most 200 words.
- ``contracts``: LegalBench, the yes/no tasks about contract clauses (contract_nli, cuad, contract_qa, ...); held out
  ``courts``, its other yes/no tasks (jurisdiction, hearsay, judicial ethics, ...).
- ``science``: ARC, four options; held out ``physics``, the choice of a formula for a physics problem.

Answers alone are learned, of ARC and physics in words: rationales are missing or several hundred tokens long. A
training group has one problem of every trained domain. No item is told in two fields, so there are no isomer sets here:
all-correct, agreement and LCS do not exist, and a table leaves them out.

Splits. LegalBench and ARC keep theirs; a part of their training items, drawn by hash, is valid. MedCalc-Bench has a
test part only, divided here by a hash of the items. So id means new cases of known tasks, and ood another field. id
holds 60 items of each domain at most, ood 60.

Licence: MedCalc-Bench CC-BY-SA-4.0, LegalBench CC-BY-4.0, CC-BY-SA-4.0 or MIT by task, ARC CC-BY-SA-4.0, physics
Apache-2.0 (BIG-bench, whose makers ask that it never enter a pre-training corpus).
Budget on 2 idle cores, estimated: 240 steps of 3 rows (510 tokens a step) and 300 short answers, about 4 minutes for
each method.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from isodistill.benchmarks.base import Benchmark, Item, by_hash, plain_rows, read_items, taught_by_answer
from isodistill.data.rows import Row

__all__ = ["FIELDS"]

CONTRACTS = ("contract", "cuad", "jcrew_blocker")
MAX_WORDS = 200
N_TEST, N_VALID = 60, 30
SHARE_MEDICINE_TEST = 0.3


def load(data: Path) -> list[Row]:
    """The rows of all fields."""
    return [*_medicine(data), *_law(data), *_science(data)]


def _medicine(data: Path) -> list[Row]:
    items = [
        item
        for item in read_items(data, "medcalc", "test")
        if item["meta"]["output_type"] == "integer"
        and item["answer_type"] == "number"
        and len(item["question"].split()) <= MAX_WORDS
    ]
    order = by_hash(items, lambda item: str(item["id"]), len(items))
    n_test = round(SHARE_MEDICINE_TEST * len(order))
    parts = {
        "id": order[:n_test][:N_TEST],
        "valid": order[n_test : n_test + N_VALID],
        "train": order[n_test + N_VALID :],
    }
    rows = [
        row
        for split, chosen in parts.items()
        for row in plain_rows(chosen, "medcalc", split=split, licence="CC-BY-SA-4.0", domain="medicine")
    ]
    return taught_by_answer(rows)


def _law(data: Path) -> list[Row]:
    def field(item: Item) -> str:
        return "contracts" if str(item["meta"]["task"]).startswith(CONTRACTS) else "courts"

    rows: list[Row] = []
    for part in ("train", "test"):
        for item in read_items(data, "legalbench", part):
            if item["answer_type"] == "yesno":
                split = part if field(item) == "contracts" else "ood"
                licence = str(item["meta"]["license"])
                rows += plain_rows([item], "legalbench", split=split, licence=licence, domain=field(item))
    learned = [row for row in rows if row.split == "train"]
    valid = {row.id for row in by_hash(learned, lambda row: row.id, N_VALID)}
    tested = [row for row in rows if row.split == "test"]
    unseen = [row for row in rows if row.split == "ood"]
    return taught_by_answer(
        [
            *(replace(row, split="valid" if row.id in valid else "train") for row in learned),
            *(replace(row, split="id") for row in by_hash(tested, lambda row: row.id, N_TEST)),
            *by_hash(unseen, lambda row: row.id, N_TEST),
        ]
    )


def _science(data: Path) -> list[Row]:
    def key(item: Item) -> str:
        return str(item["id"])

    learned = read_items(data, "arc", "train")
    order = by_hash(learned, key, len(learned))
    parts = {
        "valid": order[:N_VALID],
        "train": order[N_VALID:],
        "id": by_hash(read_items(data, "arc", "test"), key, N_TEST),
    }
    rows = [
        row
        for split, items in parts.items()
        for row in plain_rows(items, "arc", split=split, licence="CC-BY-SA-4.0", domain="science")
    ]
    formulas = by_hash(read_items(data, "physics_formula", "test"), key, N_TEST)
    rows += plain_rows(formulas, "physics_formula", split="ood", licence="Apache-2.0", domain="physics")
    return taught_by_answer(rows, spelled_out=True)


FIELDS = Benchmark(
    name="fields",
    version=1,
    what="medicine, contracts and science trained on, courts and physics held out",
    sets=("medcalc", "legalbench", "arc", "physics_formula"),
    domains=("medicine", "contracts", "science"),
    held_out=("courts", "physics"),
    licence="MedCalc-Bench CC-BY-SA-4.0; LegalBench CC-BY-4.0, CC-BY-SA-4.0 or MIT; ARC CC-BY-SA-4.0; physics Apache",
    budget="about 4 minutes for each method and seed on 2 idle cores (estimated)",
    load=load,
    train={
        "steps": 240,
        "sets_per_batch": 1,
        "learning_rate": 1e-3,
        "domains": ["medicine", "contracts", "science"],
    },
    evaluate={"max_new_tokens": 32, "before": False},
)
