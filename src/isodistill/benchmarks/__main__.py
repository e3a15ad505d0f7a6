"""``python -m isodistill.benchmarks contexthub --data FOLDER --out FOLDER`` writes rows and a recipe to compare by."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from isodistill.benchmarks import BENCHMARKS, write_benchmark
from isodistill.errors import UserError


def main() -> int:
    """Write one benchmark and say what it holds; a mistake of the user is one paragraph and exit status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m isodistill.benchmarks",
        description="Write a benchmark's rows, its recipe and its trivial baselines to a folder.",
        epilog="\n".join(f"{one.name:15} {one.what}" for one in BENCHMARKS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=list(BENCHMARKS), help="which one")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    given = parser.parse_args()
    benchmark = BENCHMARKS[given.name]
    try:
        rows = write_benchmark(benchmark, given.data, given.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    scores = json.loads((given.out / "trivial.json").read_text(encoding="utf-8"))
    print(f"{benchmark.title}: {benchmark.what}\nlicence: {benchmark.licence}\nbudget: {benchmark.budget}")
    for split in dict.fromkeys(row.split for row in rows):
        told = Counter(row.domain for row in rows if row.split == split)
        print(f"{split}: {sum(told.values())} rows; " + ", ".join(f"{name} {n}" for name, n in told.items()))
        if split in scores:
            print("  trivial: " + ", ".join(f"{name} {value:.3f}" for name, value in scores[split].items()))
    print(f"next: isodistill compare {given.out / 'recipe.yaml'} --methods erm,iga,random_mask")
    return 0


if __name__ == "__main__":
    sys.exit(main())
