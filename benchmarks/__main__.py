"""``python -m benchmarks [--quick]``: every benchmark, and their ratios in ``benchmarks/results.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import audit, floor, generate, iga, training


def main() -> None:
    """Run all and write the ratios under their fixed names."""
    quick = "--quick" in sys.argv[1:]
    ratios = training.run(quick) | iga.run(quick) | floor.run(quick) | generate.run(quick) | audit.run(quick)
    rounded = {name: round(value, 3) for name, value in sorted(ratios.items())}
    path = Path(__file__).with_name("results.json")
    path.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")
    print(f"ratios: {path}")


if __name__ == "__main__":
    main()
