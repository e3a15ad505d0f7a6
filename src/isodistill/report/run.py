"""What a report reads: the files of a run folder and, for two runs, their comparison."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from isodistill.errors import UserError

__all__ = [
    "Estimate",
    "Run",
    "Side",
    "estimate",
    "ordered_splits",
    "read_comparison",
    "read_if_there",
    "read_lines",
    "read_own_changes",
    "read_run",
]

MADE_BY = {
    "recipe.yaml": "isodistill train",
    "problems": "isodistill isomers",
    "predictions.jsonl": "isodistill evaluate",
    "results.json": "isodistill evaluate",
    "comparison.json": "isodistill report",
}
RECORD_KEYS = ("stage", "split", "set_id", "domain", "item_id", "gold", "parsed", "output", "outcome")
OUTCOMES = ("correct", "wrong", "truncated", "unparsed")


class Estimate(NamedTuple):
    """A number with its 95 % interval; ``lo`` and ``hi`` are None when no interval was computed."""

    value: float
    lo: float | None = None
    hi: float | None = None


@dataclass(frozen=True)
class Run:
    """One run folder, read.

    Attributes:
        path: the folder.
        recipe: recipe.yaml with every default resolved.
        results: results.json, schema 1.
        metrics: the lines of metrics.jsonl; empty for a student that something else trained.
        records: per (stage, split), item id -> line of predictions.jsonl; the last line of an item's first sample.
        prompts: item id -> text of the problem, for the splits that results.json names.
    """

    path: Path
    recipe: Mapping[str, Any]
    results: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    records: Mapping[tuple[str, str], Mapping[str, dict[str, Any]]]
    prompts: Mapping[str, str]


@dataclass(frozen=True)
class Side:
    """One student in a table or a plot: its label, its role (before, baseline, method) and its numbers per split."""

    label: str
    role: str
    splits: Mapping[str, Mapping[str, Any]]


def estimate(numbers: Mapping[str, Any], key: str, domain: str | None = None) -> Estimate | None:
    """The number under ``key`` (for one domain of a table by domain) with its ``_ci95``; None when it is undefined."""
    value, interval = numbers.get(key), numbers.get(f"{key}_ci95")
    if domain is not None:
        value, interval = (value or {}).get(domain), (interval or {}).get(domain)
    if value is None:
        return None
    return Estimate(value, *interval) if interval else Estimate(value)


def ordered_splits(results: Mapping[str, Any]) -> list[str]:
    """The evaluated splits: domains never trained on first, then the training domains, then the others by name."""
    first = ("ood", "id")
    return sorted(
        (name for name, numbers in results["splits"].items() if numbers),
        key=lambda name: (first.index(name) if name in first else len(first), name),
    )


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        UserError: the folder or one of its files is missing (the message names the verb that makes it), a line is
            damaged, or no test split was evaluated.
    """
    if not path.is_dir():
        raise UserError(f"There is no run folder at {path}. Make one with `isodistill run recipe.yaml`.")
    results = _results(path)
    recipe_file = _existing(path, "recipe.yaml")
    recipe = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    if not isinstance(recipe, dict):
        raise UserError(f"{recipe_file} holds no settings. Write it again with `isodistill train`.")
    metrics_file = path / "metrics.jsonl"
    metrics = read_lines(metrics_file) if metrics_file.exists() else []
    return Run(path, recipe, results, metrics, _records(path), _prompts(path, results))


def read_comparison(folder: Path, run: Run, baseline: Run) -> dict[str, Any]:
    """Read ``comparison.json`` of two runs.

    Raises:
        UserError: the file is missing, or it compares other runs than these two.
    """
    file = _existing(folder, "comparison.json")
    comparison: dict[str, Any] = _json(file)
    method = run.results["method"]
    known = {numbers["recipe_hash"] for numbers in comparison["runs"]}
    fits = {run.results["recipe_hash"], baseline.results["recipe_hash"]} <= known
    if not fits or method not in comparison["differences"] or comparison["baseline"] != baseline.results["method"]:
        raise UserError(
            f"{file} compares other runs than {run.path} with {baseline.path}, or older states of them. "
            f"Make it again with `isodistill report {run.path} --baseline {baseline.path}`."
        )
    return comparison


def read_own_changes(run: Run) -> dict[str, Any] | None:
    """After minus before of one run, per split, from a ``comparison.json`` in its folder that holds this run alone."""
    file = run.path / "comparison.json"
    if not file.exists():
        return None
    comparison = _json(file)
    alone = [numbers["recipe_hash"] for numbers in comparison["runs"]] == [run.results["recipe_hash"]]
    return comparison["differences"].get("before") if alone else None


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; raises UserError at a damaged one."""
    return [line for _, line in _json_lines(file)]


def _results(path: Path) -> dict[str, Any]:
    file = _existing(path, "results.json")
    results: dict[str, Any] = _json(file)
    if results.get("schema") != 1:
        raise UserError(f"{file} has schema {results.get('schema')!r}; this version reads schema 1. Evaluate again.")
    if not ordered_splits(results):
        raise UserError(f"{file} holds no evaluated test split. Run `isodistill evaluate {path}` first.")
    return results


def _records(path: Path) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    file = _existing(path, "predictions.jsonl")
    records: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for number, record in _json_lines(file):
        missing = [key for key in RECORD_KEYS if key not in record]
        if missing:
            raise UserError(f"{file}, line {number}: no {', '.join(missing)}. Make it with `isodistill evaluate`.")
        if record["outcome"] not in OUTCOMES:
            raise UserError(f"{file}, line {number}: outcome {record['outcome']!r} is none of {', '.join(OUTCOMES)}.")
        if record.get("sample", 0) == 0:
            records.setdefault((record["stage"], record["split"]), {})[record["item_id"]] = record
    return records


def _prompts(path: Path, results: Mapping[str, Any]) -> dict[str, str]:
    folder = _existing(path, "problems")
    files = [folder / f"{split}.jsonl" for split in ordered_splits(results)]
    for file in files:
        if not file.exists():
            raise UserError(
                f"{file} is missing, though results.json names its split. Make it with `isodistill isomers`."
            )
    return {row["id"]: _prompt_text(row["prompt"]) for file in files for _, row in _json_lines(file)}


def _prompt_text(prompt: str | list[dict[str, str]]) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def read_if_there(path: Path, made_by: str) -> dict[str, Any] | None:
    """A JSON object that only some runs have; None where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Delete it and steps.json; `{made_by}` makes it.") from error
    return content


def _existing(folder: Path, name: str) -> Path:
    file = folder / name
    if not file.exists():
        raise UserError(f"{folder} has no {name}, so it cannot be reported. `{MADE_BY[name]}` makes it.")
    return file


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}, line {error.lineno}: not JSON ({error.msg}). Make the file again.") from error


def _json_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{file}, line {number}: not a JSON object ({error.msg}). Remove or repair that line."
                ) from error
