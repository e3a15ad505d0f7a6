"""What a benchmark is, how its data sets are read, and how it is written to a folder that ``isodistill`` runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import yaml

from isodistill.benchmarks.trivial import trivial_scores
from isodistill.data.files import Refusal, read_records, write_lines
from isodistill.data.load import load_rows, write_rows
from isodistill.data.rows import ANSWER_SENTENCE, Row
from isodistill.data.split import check_leaks
from isodistill.errors import UserError
from isodistill.evaluation import parse_answer

__all__ = ["Benchmark", "Item", "by_hash", "plain_rows", "read_items", "taught_by_answer", "write_benchmark"]

T = TypeVar("T")
Item = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A fixed task: which rows, which domains are trained on, which are held out.

    Attributes:
        name: what users type.
        version: whole number; rows, splits and prompts of one version never change.
        what: one sentence.
        sets: the data sets that it reads, names of folders.
        domains: trained on, in the order of a training group.
        held_out: domains of the split ``ood``; no row of them is trained on.
        licence: of the data, in words.
        budget: what one run takes on two cores, in words.
        load: folder of the data sets -> rows of all splits, each with its split.
        train: the group ``train`` of its recipe.
        evaluate: the group ``evaluate`` of its recipe.
    """

    name: str
    version: int
    what: str
    sets: tuple[str, ...]
    domains: tuple[str, ...]
    held_out: tuple[str, ...]
    licence: str
    budget: str
    load: Callable[[Path], list[Row]]
    train: Mapping[str, Any]
    evaluate: Mapping[str, Any]

    @property
    def title(self) -> str:
        """Name and version, as they stand beside a result."""
        return f"{self.name} {self.version}"

    def rows(self, data: Path) -> list[Row]:
        """The rows of all splits: train, valid (to select by), id, ood, and ``cue_random`` where a cue is planted.

        Raises:
            UserError: a data set is missing, a row cannot be used, or something stands in train and in a test split.
        """
        absent = [name for name in self.sets if not (data / name).is_dir()]
        if absent:
            raise UserError(
                f"The benchmark {self.name} needs the data sets {', '.join(self.sets)}, but {data} has no folder "
                f"{', '.join(absent)}. Give the folder that holds them with --data; docs/benchmarks.md says where each "
                "comes from and what a file looks like."
            )
        rows = self.load(data)
        check_leaks(rows, self.held_out)
        return rows


def write_benchmark(benchmark: Benchmark, data: Path, out: Path) -> list[Row]:
    """Write ``rows/SPLIT.jsonl``, ``recipe.yaml`` and ``trivial.json`` (majority and naive Bayes) to a folder.

    Returns:
        The rows.

    Raises:
        UserError: what ``Benchmark.rows`` raises, or the folder cannot be written.
    """
    rows = benchmark.rows(data)
    for split in dict.fromkeys(row.split for row in rows):
        write_rows(out / "rows" / f"{split}.jsonl", [row for row in rows if row.split == split])
    recipe = {
        "student": "smollm2-135m",
        "problems": str(out / "rows"),
        "method": "iga",
        "baseline": "erm",
        "split": {"held_out_domains": list(benchmark.held_out)},
        "train": dict(benchmark.train),
        "evaluate": dict(benchmark.evaluate),
    }
    head = [
        f"# {benchmark.title}: {benchmark.what}",
        f"# Licence: {benchmark.licence}",
        f"# Budget: {benchmark.budget}",
        f"# isodistill compare {out / 'recipe.yaml'} --methods erm,iga,random_mask",
    ]
    write_lines(out / "recipe.yaml", [*head, yaml.safe_dump(recipe, sort_keys=False).rstrip("\n")])
    write_lines(out / "trivial.json", [json.dumps(trivial_scores(rows), indent=1)])
    return rows


def read_items(data: Path, name: str, split: str) -> list[dict[str, Any]]:
    """The items of ``data/name/split.jsonl.gz`` (or ``.jsonl``), as they stand there.

    Raises:
        UserError: there is no such file, or a line of it is no JSON object.
    """
    path = data / name / f"{split}.jsonl.gz"
    if not path.exists():
        path = path.with_suffix("")
    if not path.exists():
        raise UserError(f"The data set {name} in {data} has no file {split}.jsonl.gz or {split}.jsonl.")
    items = []
    for record in read_records(path):
        if isinstance(record, Refusal):
            raise UserError(str(record))
        items.append(dict(record.fields))
    return items


def plain_rows(
    items: Iterable[Item],
    name: str,
    *,
    split: str,
    licence: str,
    domain: str | Callable[[Item], str],
    structure: Callable[[Item], str] | None = None,
    in_sets: bool = False,
) -> list[Row]:
    """Items in the schema question, choices, answer, answer_type, rationale, group, meta as rows of one split.

    The options are listed below the question and the trace ends in "The answer is X.".

    Args:
        items: of one data set.
        name: the data set; structures and sets are named "<name>/...".
        split: of these rows.
        licence: of these rows.
        domain: of all items, or of each.
        structure: what another split may not have; None: rows share nothing but a prompt.
        in_sets: ``group`` is an isomer set, and these rows are its members; otherwise they stand alone.
    """
    columns = {"prompt": "question", "completion": "rationale", "teacher": "rationale_source"}
    rows = load_rows(items, columns, max_refused=0).rows
    out = []
    for item, row in zip(items, rows, strict=True):
        out.append(
            replace(
                row,
                domain=domain if isinstance(domain, str) else domain(item),
                structure_id=None if structure is None else f"{name}/{structure(item)}",
                set_id=f"{name}/{item['group']}" if in_sets else None,
                split=split,
                licence=licence,
            )
        )
    return out


def taught_by_answer(rows: Iterable[Row], *, spelled_out: bool = False) -> list[Row]:
    """The rows with the answer sentence alone as their trace.

    Args:
        rows: without a trace, or with one that is too long to learn.
        spelled_out: say the option ("The answer is dry palms.") instead of its letter. An option that cannot be read
            back out of that sentence, such as one with a full stop inside, leaves its row out.
    """
    out = []
    for row in rows:
        answer = row.answer or ""
        if spelled_out and row.choices:
            answer = row.choices[ord(answer) - ord("A")].rstrip(".")
        sentence = ANSWER_SENTENCE.format(answer=answer)
        if row.answer_type is not None and parse_answer(sentence, row.answer_type, row.choices) == row.answer:
            out.append(replace(row, completion=sentence, teacher=None))
    return out


def by_hash(things: Sequence[T], key: Callable[[T], str], n: int) -> list[T]:
    """The first n things in the order of a hash of their names: a draw without a seed that never changes."""
    return sorted(things, key=lambda thing: sha256(key(thing).encode()).digest())[:n]
