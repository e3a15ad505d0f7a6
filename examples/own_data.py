"""From a file of your own rows to a report, in Python: the same walk as ``isodistill run examples/own.yaml``.

    python examples/own_data.py rows.jsonl runs/own-python [--set train.steps=20 ...]

The rows need the columns prompt, completion, answer, answer_type, set_id and domain; `cooking` is the domain that is
held out here, so put one of yours in its place.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from isodistill.pipeline import run_recipe
from isodistill.recipe import parse_recipe


def main() -> None:
    """Read the arguments, walk, and say where the report lies."""
    parser = argparse.ArgumentParser(description="From a file of rows to a report.")
    parser.add_argument("rows", type=Path, help="a .jsonl, .parquet or .csv file of rows")
    parser.add_argument("out", type=Path, help="the run folder")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="key=value, as in a recipe")
    given = parser.parse_args()
    recipe = parse_recipe(
        {
            "student": "smollm2-135m",
            "problems": str(given.rows),
            "method": "iga",
            "baseline": "erm",
            "split": {"valid": 0.0, "test": 0.25, "held_out_domains": ["cooking"]},
            "train": {"steps": 60, "sets_per_batch": 2, "learning_rate": 1e-3},
            "evaluate": {"max_new_tokens": 80},
        },
        given.overrides,
    )
    report = run_recipe(recipe, given.out, command=f"python examples/own_data.py {given.rows} {given.out}")
    print(f"report: {report}")


if __name__ == "__main__":
    main()
