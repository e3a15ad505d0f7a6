"""Run folders made up for the tests: the file layout of a real run, with answers drawn from a seed."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

DOMAINS = {"id": ("law", "mathematics", "medicine", "science"), "ood": ("astronomy", "cooking", "finance", "sports")}
SKILL = {"before": 0.2, "erm": 0.48, "iga": 0.6}
OUTCOMES = ("correct", "wrong", "truncated", "unparsed")

MakeRun = Callable[..., Path]


def rows(split: str, n_sets: int) -> list[dict[str, Any]]:
    """Problems of one split: ``n_sets`` sets told in each of its domains."""
    return [
        {
            "id": f"{split}-{s:03d}/{domain}",
            "set_id": f"{split}-{s:03d}",
            "domain": domain,
            "prompt": f"In {domain}, {s + 3} crews handle {s + 4} orders each, and 5 are cancelled. How many remain?",
            "answer": str((s + 3) * (s + 4) - 5),
            "answer_type": "number",
        }
        for s in range(n_sets)
        for domain in DOMAINS[split]
    ]


def record(row: dict[str, Any], split: str, stage: str, outcome: str) -> dict[str, Any]:
    """One line of predictions.jsonl."""
    parsed = {"correct": row["answer"], "wrong": "7"}.get(outcome)
    closing = f" The answer is {parsed}." if parsed else ""
    return {
        "stage": stage,
        "split": split,
        "set_id": row["set_id"],
        "domain": row["domain"],
        "item_id": row["id"],
        "output": f"Each crew takes its share, so we multiply and then subtract.{closing}",
        "gold": row["answer"],
        "parsed": parsed,
        "outcome": outcome,
        "n_new_tokens": 24,
        "finish": "length" if outcome == "truncated" else "eos",
    }


def numbers(records: list[dict[str, Any]]) -> dict[str, Any]:
    """The entry of one split in results.json, by plain loops; intervals by the normal approximation."""

    def interval(value: float, n: int) -> list[float]:
        half = 1.96 * math.sqrt(max(value * (1 - value), 0.01) / n)
        return [max(0.0, value - half), min(1.0, value + half)]

    domains = sorted({r["domain"] for r in records})
    right = {d: [r["outcome"] == "correct" for r in records if r["domain"] == d] for d in domains}
    accuracy = {d: sum(right[d]) / len(right[d]) for d in domains}
    sets: dict[str, list[bool]] = {}
    for r in records:
        sets.setdefault(r["set_id"], []).append(r["outcome"] == "correct")
    everywhere = sum(all(s) for s in sets.values()) / len(sets)
    anywhere = sum(any(s) for s in sets.values()) / len(sets)
    macro, worst = sum(accuracy.values()) / len(domains), min(accuracy.values())
    return {
        "n_items": len(records),
        "n_sets": len(sets),
        "acc_macro": macro,
        "acc_macro_ci95": interval(macro, 2 * len(sets)),
        "acc_worst": worst,
        "acc_worst_ci95": interval(worst, len(sets)),
        "acc_by_domain": accuracy,
        "acc_by_domain_ci95": {d: interval(accuracy[d], len(sets)) for d in domains},
        "all_correct": everywhere,
        "all_correct_ci95": interval(everywhere, len(sets)),
        "transfer": everywhere / anywhere if anywhere else None,
        "truncated": sum(r["outcome"] == "truncated" for r in records) / len(records),
        "unparsed": sum(r["outcome"] == "unparsed" for r in records) / len(records),
        "lcs": 0.21 - 0.2 * macro,
        "lcs_random": 0.23,
        "lcs_ratio": (0.21 - 0.2 * macro) / 0.23,
        "agreement": 0.3 + 0.5 * macro,
        "agreement_ci95": interval(0.3 + 0.5 * macro, len(sets)),
        "cons_given_correct": 0.4 + 0.4 * macro,
        "cons_given_correct_ci95": interval(0.4 + 0.4 * macro, len(sets)),
    }


def metrics(method: str, rng: random.Random, n_events: int = 120) -> list[dict[str, Any]]:
    """A training log with falling losses and, for IGA, a mask that opens."""
    lines = []
    for event in range(n_events):
        step = 5 * (event + 1)
        loss = 0.35 + 1.9 * math.exp(-step / 120) + 0.04 * rng.gauss(0, 1)
        line = {"step": step, "loss": loss, "learning_rate": 2e-4 * (1 - step / 600), "tokens": step * 900}
        line |= {"grad_norm": 0.4 + 1.2 * math.exp(-step / 80) + 0.05 * rng.random(), "tokens_per_second": 2100.0}
        line |= {f"loss/{d}": loss + 0.1 * i - 0.15 + 0.04 * rng.gauss(0, 1) for i, d in enumerate(DOMAINS["id"])}
        if method == "iga":
            opening = 1 - math.exp(-step / 200)
            line |= {"mask_density": 0.25 + 0.2 * opening, "keep_rate": 0.2 + 0.25 * opening}
            line |= {"step_ratio": 0.5 + 0.2 * opening, "cosine": 0.6 + 0.2 * opening, "tangent_kept": 0.9}
            line |= {f"conflict_cosine/{kind}_proj": 0.1 * i + 0.1 * rng.random() for i, kind in enumerate("qkvo")}
        lines.append(line)
    return lines


def write_lines(file: Path, lines: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def run_folder(path: Path, method: str, *, n_sets: int = 60, before: bool = True) -> Path:
    """Write one run folder at ``path`` and return it."""
    rng = random.Random(f"{method} 1")
    (path / "problems").mkdir(parents=True)
    alignment = (
        {"name": "iga", "space": "factor", "tau": 3.0, "control": "none"} if method == "iga" else {"name": "erm"}
    )
    recipe = {
        "student": "smollm2-135m",
        "problems": "builtin:isomers",
        "objective": {"name": "ce"},
        "alignment": alignment,
        "train": {"max_steps": 600, "learning_rate": 2e-4, "seed": 0},
    }
    (path / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    records: list[dict[str, Any]] = []
    results: dict[str, Any] = {"splits": {}, "before": {}}
    for split in ("id", "ood"):
        problems = rows(split, n_sets)
        write_lines(path / "problems" / f"{split}.jsonl", problems)
        for stage, skill in (("before", SKILL["before"]), ("after", SKILL[method])):
            if stage == "before" and not before:
                continue
            p = skill - (0.1 if split == "ood" and stage == "after" else 0.0)
            drawn = [
                record(row, split, stage, rng.choices(OUTCOMES, (p, (1 - p) * 0.8, (1 - p) * 0.12, (1 - p) * 0.08))[0])
                for row in problems
            ]
            records += drawn
            results["splits" if stage == "after" else "before"][split] = numbers(drawn)
    write_lines(path / "predictions.jsonl", records)
    write_lines(path / "metrics.jsonl", metrics(method, rng))
    results |= {"schema": 1, "recipe_hash": f"{method}-3fa1", "method": method, "seed": 0}
    results |= {"student": "SmolLM2-135M-Instruct, dequantised from Q4_1"}
    results["train"] = {"steps": 600, "tokens": 540_000, "seconds": 252.0, "tokens_per_second": 2142.9}
    results["train"]["peak_memory_bytes"] = 1_610_612_736
    results["versions"] = {"python": "3.11.2", "torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2"}
    (path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return path


def differences(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any]:
    """Right minus left for the metrics that comparison.json pairs, with made-up intervals."""
    keys = ("acc_macro", "acc_worst", "all_correct", "agreement", "cons_given_correct", "lcs_ratio")
    half = {"lcs_ratio": 0.03, "acc_macro": 0.045}
    paired: dict[str, Any] = {}
    for key in keys:
        d = right[key] - left[key]
        paired[key] = [d, d - half.get(key, 0.08), d + half.get(key, 0.08)]
    by_domain = {d: right["acc_by_domain"][d] - left["acc_by_domain"][d] for d in right["acc_by_domain"]}
    paired["acc_by_domain"] = {d: [v, v - 0.11, v + 0.11] for d, v in by_domain.items()}
    paired["mcnemar_all_correct"] = {"b": 6, "c": 14, "p": 0.115}
    return paired


def comparison_file(folder: Path, baseline: Path, *methods: Path) -> Path:
    """Write comparison.json of runs into ``folder`` and return the file."""
    results = {run: json.loads((run / "results.json").read_text()) for run in (baseline, *methods)}
    base = results[baseline]
    pairs = {
        results[run]["method"]: {s: differences(base["splits"][s], results[run]["splits"][s]) for s in base["splits"]}
        for run in methods
    }
    pairs["before"] = {s: differences(base["before"][s], base["splits"][s]) for s in base["before"]}
    comparison = {"schema": 1, "baseline": base["method"], "runs": list(results.values()), "differences": pairs}
    file = folder / "comparison.json"
    file.write_text(json.dumps(comparison), encoding="utf-8")
    return file


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Make a run folder named after its method: ``make_run("iga", n_sets=60, before=True)``."""
    return lambda method, **options: run_folder(tmp_path / method, method, **options)


@pytest.fixture(scope="session")
def untouched_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Run, baseline, and where their report goes; shared by the tests that change nothing."""
    folder = tmp_path_factory.mktemp("pair")
    erm, iga = run_folder(folder / "erm", "erm"), run_folder(folder / "iga", "iga")
    comparison_file(folder, erm, iga)
    return iga, erm, folder / "report.html"


@pytest.fixture
def make_comparison() -> Callable[..., Path]:
    """Make comparison.json: ``make_comparison(folder, baseline, *methods)``."""
    return comparison_file
