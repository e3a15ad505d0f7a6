"""A folder of small data sets in the shape of the real ones, every item made up here."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isodistill.benchmarks.contexthub import DOMAINS, HELD_OUT

TEMPLATES = {
    "ded1-00": "A", "ded1-01": "A", "ded1-02": "C", "ded1-03": "A", "ded1-05": "C", "ded1-07": "C", "ded1-08": "A",
    "abd1-00": "B", "abd1-04": "C", "ded2-00": "A",
}  # fmt: skip
"""ContextHub templates of the folder and their answers."""

Item = dict[str, Any]
NAMES = [f"Name{letter}" for letter in "abcdefghijklmnopqrst"]


def item(name: str, number: int, question: str, answer: str, kind: str, group: str | None = None, **more: Any) -> Item:
    """One item of the common schema."""
    return {
        "id": f"{name}-{number:05d}", "question": question, "choices": None, "answer": answer, "answer_type": kind,
        "rationale": None, "rationale_source": None, "domain": "any", "group": group, "meta": {},
    } | more  # fmt: skip


def write(data: Path, name: str, split: str, items: list[Item]) -> None:
    (data / name).mkdir(parents=True, exist_ok=True)
    with gzip.open(data / name / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(each) + "\n" for each in items)


def contexthub() -> list[Item]:
    return [
        item(
            "contexthub", number, f"In {domain}, template {template}, topic {topic}: what follows?", answer, "choice",
            f"{template}-{topic}", choices=["True", "False", "N/A"], rationale=f"So {template} holds", domain=domain,
            meta={"level": int(template[3]), "template": template},
        )
        for number, (template, answer, topic, domain) in enumerate(
            (template, answer, topic, domain)
            for template, answer in TEMPLATES.items()
            for topic in range(2)
            for domain in (*DOMAINS, *HELD_OUT)
        )
    ]  # fmt: skip


def prontoqa(start: int, n: int) -> list[Item]:
    surfaces = [("fictional", "nonsense", "artifacts"), ("fictional", "animals", "professions")]
    return [
        item(
            "prontoqa", 10 * group + place, f"{NAMES[group % 20]} is a {surface} thing {group}. Is it sour?",
            "AB"[group % 2], "choice", f"prontoqa-{group}", choices=["True", "False"], rationale="It is one",
            meta={"surface": surface},
        )
        for group in range(start, start + n)
        for place, surface in enumerate(surfaces[group % 2])
    ]  # fmt: skip


def proofwriter(part: int, n: int) -> list[Item]:
    return [
        item(
            "proofwriter", 100 * part + number, f"Part {part}: {NAMES[number]} is kind. True, false or unknown?",
            "ABC"[number % 3], "choice", f"ProofWriter_{'Rel' if number % 2 else 'Att'}Neg-OWA-D5-{part}{number}",
            choices=["True", "False", "Unknown"],
        )
        for number in range(n)
    ]  # fmt: skip


def logicbench() -> list[Item]:
    rules = ("modus_tollens", "hypothetical_syllogism", "disjunctive_syllogism")
    groups = [f"{family}/{rule}" for family in ("propositional_logic", "first_order_logic") for rule in rules]
    return [
        item(
            "logicbench", number, f"What follows for {NAMES[number]}?", "B", "choice", group,
            choices=["He sleeps.", f"{NAMES[number]} stays at home.", "It rains"],
        )
        for number, group in enumerate([*groups, "nm_logic/default", "nm_logic/priority"])
    ]  # fmt: skip


def schools(start: int, n: int) -> list[Item]:
    return [
        item(
            "gsm", 10 * template + number, f"Template {NAMES[template % 20]}{template}: {number} and {template}?",
            str(number + template), "number", f"gsmsym-{template}", rationale=f"{number} + {template}",
        )
        for template in range(start, start + n)
        for number in range(3)
    ]  # fmt: skip


def law(start: int) -> list[Item]:
    tasks = ["cuad_audit", "contract_qa", "contract_nli_use", "hearsay"] * 20
    return [
        item("law", start + number, f"Clause {start + number} of {task}?", ["yes", "no"][number % 2], "yesno", task,
             meta={"task": task, "license": "MIT"})
        for number, task in enumerate(tasks)
    ]  # fmt: skip


def options(name: str, start: int, n: int) -> list[Item]:
    return [
        item(
            name, number, f"What warms {name} hand {number}?", "A", "choice",
            choices=["dry palms", "wet palms", "oil", "wax"],
        )
        for number in range(start, start + n)
    ]  # fmt: skip


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every data set that a benchmark reads; not to be changed."""
    folder = tmp_path_factory.mktemp("data")
    items = contexthub()
    write(folder, "contexthub", "train", items[::2])
    write(folder, "contexthub", "test", items[1::2])
    write(folder, "gsm_symbolic", "train", schools(0, 10))
    write(folder, "gsm_symbolic", "test", schools(10, 2))
    write(folder, "svamp", "test", [item("svamp", n, f"{n} sheep and 4?", str(n + 4), "number") for n in range(5)])
    write(folder, "gsm8k", "test", [item("gsm8k", n, f"{n} goats and 5?", str(n + 5), "number") for n in range(5)])
    write(folder, "prontoqa_isomers", "train", prontoqa(0, 60))
    write(folder, "prontoqa_isomers", "test", prontoqa(60, 8))
    for part, (split, n) in enumerate({"train": 12, "dev": 6, "test": 6}.items()):
        write(folder, "proofwriter", split, proofwriter(part, n))
    write(folder, "logicbench", "eval_mcqa", logicbench())
    scores = [
        item(
            "medcalc", n, f"Patient {n} coughs. Score?", str(n % 5), "number", "cough", meta={"output_type": "integer"}
        )
        for n in range(80)
    ]
    long = item("medcalc", 90, "word " * 300, "1", "number", "cough", meta={"output_type": "integer"})
    dose = item("medcalc", 91, "How much?", "1.5", "number", "dose", meta={"output_type": "decimal"})
    write(folder, "medcalc", "test", [*scores, long, dose])
    write(folder, "legalbench", "train", law(0))
    write(folder, "legalbench", "test", law(100))
    write(folder, "arc", "train", options("arc", 0, 60))
    write(folder, "arc", "test", options("arc", 100, 10))
    write(folder, "physics_formula", "test", options("physics", 0, 10))
    return folder


@pytest.fixture
def changed(data: Path, tmp_path: Path) -> Callable[[str, str, list[Item]], Path]:
    """The data folder with one file replaced: name, split, items."""

    def change(name: str, split: str, items: list[Item]) -> Path:
        folder = tmp_path / "data"
        folder.mkdir()
        for each in data.iterdir():
            if each.name != name:
                (folder / each.name).symlink_to(each)
        for file in (data / name).iterdir():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / file.name).symlink_to(file)
        (folder / name / f"{split}.jsonl.gz").unlink(missing_ok=True)
        write(folder, name, split, items)
        return folder

    return change
