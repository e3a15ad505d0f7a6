"""The overlap with evaluation rows is told, written and, when asked, dropped before training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from isodistill.errors import UserError
from isodistill.pipeline.problems import make_problems, read_split
from isodistill.pipeline.stamps import Stamps

from .conftest import recipe_of, sums

WriteRows = Callable[..., Path]


def problems(tmp_path: Path, data: Path, **overlap: Any) -> tuple[dict[str, Any], list[str]]:
    recipe = recipe_of(problems=str(data), split={"test": 0.0, "valid": 0.0}, overlap=overlap, licence="CC0-1.0")
    make_problems(recipe, tmp_path / "run", Stamps(tmp_path / "run"))
    found: dict[str, Any] = json.loads((tmp_path / "run" / "problems" / "overlap.json").read_text())
    rows = read_split(tmp_path / "run", "train")
    assert {row.licence for row in rows} == {"CC0-1.0"}
    return found, [row.id for row in rows]


@pytest.fixture
def data(write_rows: WriteRows) -> Path:
    return write_rows(sums(10))


@pytest.fixture
def benchmark(tmp_path: Path, data: Path) -> Path:
    """A benchmark with the first training row in it."""
    row = json.loads(data.read_text().splitlines()[0])
    path = tmp_path / "benchmark.jsonl"
    path.write_text(json.dumps(row | {"id": "b"}) + "\n", encoding="utf-8")
    return path


def test_it_is_told_and_kept(tmp_path: Path, data: Path, benchmark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found, ids = problems(tmp_path, data, against=[str(benchmark)])
    assert found["sets"][str(benchmark)] == {"n_rows": 1, "exact": 1, "ngram": 0}
    assert (found["n_train"], found["n_dropped"], len(ids)) == (20, 0, 20)
    assert [match["eval_id"] for match in found["matches"]] == ["b"]
    assert (
        f"1 of 20 training rows share text with an evaluation set, 13 words in a row ({benchmark}; the same prompt: 1)"
        in (capsys.readouterr().out)
    )


def test_it_is_dropped_with_its_set(tmp_path: Path, data: Path, benchmark: Path) -> None:
    first = json.loads(data.read_text().splitlines()[0])
    found, _ = problems(tmp_path, data, against=[str(benchmark)], drop=True)
    rows = read_split(tmp_path / "run", "train")
    assert (found["n_dropped"], len(rows)) == (2, 18)
    assert not any(row.set_id == first["set_id"] for row in rows)


def test_a_benchmark_with_columns_of_its_own(tmp_path: Path, data: Path, benchmark: Path) -> None:
    row = json.loads(benchmark.read_text())
    benchmark.write_text(json.dumps({"id": "b", "what": row["prompt"], "truth": row["answer"]}) + "\n")
    with pytest.raises(UserError, match="prompt"):
        problems(tmp_path, data, against=[str(benchmark)])
    found, _ = problems(tmp_path, data, against=[str(benchmark)], columns={"prompt": "what"})
    assert found["sets"][str(benchmark)] == {"n_rows": 1, "exact": 1, "ngram": 0}


def test_nothing_left_is_an_error(tmp_path: Path, data: Path) -> None:
    with pytest.raises(UserError, match="leaves no row to train on"):
        problems(tmp_path, data, against=[str(data)], drop=True)


def test_too_short_runs_are_refused() -> None:
    with pytest.raises(UserError, match=r"overlap\.n is 3"):
        recipe_of(overlap={"n": 3})


def test_without_an_evaluation_set_nothing_is_compared(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _ = problems(tmp_path, data)
    assert found["sets"] == {}
    assert "20 training rows: there is no evaluation set to compare them with" in capsys.readouterr().out
