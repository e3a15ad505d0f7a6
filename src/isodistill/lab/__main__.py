"""One run of the laboratory: ``python -m isodistill.lab --method iga --seed 0 --set alignment.tau=3`` prints JSON."""

from __future__ import annotations

import argparse
import sys

from isodistill.errors import UserError
from isodistill.evaluation import json_text
from isodistill.lab.run import run_lab
from isodistill.lab.settings import LabSettings
from isodistill.recipe import parse_settings


def main() -> int:
    """Read the options, run, print the record; a mistake of the user is one paragraph and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m isodistill.lab", description="Train and test one lab student.")
    parser.add_argument("--method", default="iga", help="erm, iga, ...; as in a recipe")
    parser.add_argument("--seed", type=int, default=0, help="of the task, the student, the batches and the tests")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", help="alignment.tau=3, task.rho=.95, ..."
    )
    given = parser.parse_args()
    try:
        tree = {"method": given.method, "seed": given.seed}
        record = run_lab(parse_settings(LabSettings, tree, given.overrides, "the lab's settings"))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json_text(record), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
