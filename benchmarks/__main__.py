"""``python -m benchmarks [--quick]``: every benchmark but that of teachers; ratios in ``benchmarks/results.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import audit, evaluation, floor, generate, guards, iga, methods, plot, training, vcrd

RATIOS = (training, iga, methods, vcrd, guards, floor, generate, audit)


def main() -> None:
    """Run all, write the ratios under their fixed names, draw them."""
    quick = "--quick" in sys.argv[1:]
    ratios: dict[str, float] = {}
    for benchmark in RATIOS:
        ratios |= benchmark.run(quick)
    evaluation.run(100 if quick else 1000, None)
    rounded = {name: round(value, 3) for name, value in sorted(ratios.items())}
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")
    print(f"ratios: {path}")
    plot.main()


if __name__ == "__main__":
    main()
