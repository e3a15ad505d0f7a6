"""Benchmarks of three task families as rows: mathematics (gsm8k), code (humaneval, mbpp), instructions (ifeval).

The files are those of a folder of data sets, ``FOLDER/NAME/SPLIT.jsonl.gz``; sources and licences of the sets:

- ``gsm8k``: openai/grade-school-math, MIT (arXiv 2110.14168). A number; the trace is the human solution.
- ``humaneval``: openai/human-eval, MIT (arXiv 2107.03374). A function from its head and docstring.
- ``mbpp``: google-research/google-research, CC-BY-4.0 (arXiv 2108.07732). A function from a sentence and its tests.
- ``ifeval``: google-research/google-research, CC-BY-4.0 (arXiv 2311.07911). A text that follows instructions.

A row of type code has its tests as ``answer`` (``evaluation.programs``), one of type instructions the list of them
(``evaluation.instructions``). Test rows are in the split that has the name of their set, so that several sets can be
asked for at once: ``real:mbpp+humaneval``.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from isodistill.data.files import Refusal, read_records
from isodistill.data.load import TEMPLATE_COLUMNS, load_rows
from isodistill.data.rows import Row, RowError, row_from_dict
from isodistill.errors import UserError

__all__ = ["TASKS", "load_task"]

_SPLITS = {"train": "train", "dev": "valid"}
_REPLY = "Reply with one block of Python code."


def load_task(name: str, folder: Path) -> list[Row]:
    """All items of a benchmark as rows, as this module says.

    Args:
        name: a key of ``TASKS``.
        folder: the folder that holds the data sets.

    Raises:
        UserError: unknown name, no files, or an item that cannot be read, with its file and line.
    """
    if name not in TASKS:
        raise UserError(f"no data set {name}; known are {', '.join(TASKS)}")
    files = sorted((folder / name).glob("*.jsonl.gz"))
    if not files:
        raise UserError(f"no data set {name} in {folder}: expected files such as {folder / name / 'test.jsonl.gz'}")
    return [row for path in files for row in TASKS[name](path, _SPLITS.get(path.name.split(".")[0], name))]


def _gsm8k(path: Path, split: str) -> list[Row]:
    columns = {**TEMPLATE_COLUMNS}
    del columns["valid"]
    rows = load_rows(path, columns, max_refused=0.0).rows
    return [replace(row, structure_id=f"gsm8k/{row.structure_id}", domain="mathematics", split=split) for row in rows]


def _humaneval(path: Path, split: str) -> list[Row]:
    """The tests of an item may call the helpers that its prompt shows, so those stand among the tests as well."""

    def columns(item: Mapping[str, Any]) -> dict[str, Any]:
        head, entry = item["question"], item["meta"]["entry_point"]
        helpers = [
            ast.unparse(node)
            for node in ast.parse(head).body
            if not (isinstance(node, ast.FunctionDef) and node.name == entry)
        ]
        tests = "\n".join([*helpers, item["meta"]["test"].strip(), f"check({entry})"])
        return {
            "prompt": f"Complete this Python function. {_REPLY}\n```python\n{head.rstrip()}\n```",
            "completion": f"```python\n{head}{item['answer'].rstrip()}\n```",
            "answer": f"{head}\n# tests\n{tests}\n",
        }

    return _code(path, split, columns)


def _mbpp(path: Path, split: str) -> list[Row]:
    """As in the paper the prompt shows the tests, for they alone say what the function is called."""

    def columns(item: Mapping[str, Any]) -> dict[str, Any]:
        shown = "\n".join(item["meta"]["tests"])
        tests = [item["meta"]["test_setup"], *item["meta"]["tests"], *item["meta"]["challenge_tests"]]
        return {
            "prompt": f"{item['question']} {_REPLY} It has to pass these tests:\n```python\n{shown}\n```",
            "completion": f"```python\n{item['answer'].strip()}\n```",
            "answer": "\n".join(tests),
        }

    return _code(path, split, columns)


def _code(path: Path, split: str, columns: Callable[[Mapping[str, Any]], dict[str, Any]]) -> list[Row]:
    return _rows(path, lambda item: columns(item) | {"answer_type": "code", "domain": "code"}, split)


def _ifeval(path: Path, split: str) -> list[Row]:
    def columns(item: Mapping[str, Any]) -> dict[str, Any]:
        kinds = zip(item["instruction_id_list"], item["kwargs"], strict=True)
        asked = [{"id": kind, **arguments} for kind, arguments in kinds]
        return {
            "prompt": item["prompt"],
            "answer": json.dumps(asked, ensure_ascii=False),
            "answer_type": "instructions",
            "domain": "instructions",
        }

    return _rows(path, columns, split)


def _rows(path: Path, columns: Callable[[Mapping[str, Any]], dict[str, Any]], split: str) -> list[Row]:
    rows = []
    for record in read_records(path):
        if isinstance(record, Refusal):
            raise UserError(f"{record}. Restore the file.")
        try:
            values = {"id": record.fields["id"], "split": split, **columns(record.fields)}
            rows.append(row_from_dict(values, record.where))
        except (KeyError, TypeError, SyntaxError) as error:
            raise RowError("meta", f"lacks what the data set has: {error!r}", record.where) from error
    return rows


TASKS: dict[str, Callable[[Path, str], list[Row]]] = {
    "gsm8k": _gsm8k,
    "humaneval": _humaneval,
    "ifeval": _ifeval,
    "mbpp": _mbpp,
}
"""Data set -> how a file of it becomes rows of a split."""
