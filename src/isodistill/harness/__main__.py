"""Tasks of lm-evaluation-harness on the student of a run, and our metrics on its samples.

    python -m isodistill.harness runs/iga --tasks ood --include tasks --metric exact_match

Prints one line for each task and writes ``harness.json`` into the run folder: ``results``, those of the harness, and
``robustness``, an entry as in results.json for each task.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from isodistill.data.files import write_lines
from isodistill.errors import UserError
from isodistill.evaluation.results import json_text
from isodistill.harness.robustness import robustness
from isodistill.pipeline.answering import open_trained
from isodistill.recipe import load_recipe


def main() -> int:
    """Read the options, run, write; a mistake of the user is one paragraph and exit status 2."""
    parser = argparse.ArgumentParser(prog="python -m isodistill.harness", description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="run folder with recipe.yaml and student/")
    parser.add_argument("--tasks", required=True, help="names of tasks, by commas")
    parser.add_argument("--include", type=Path, default=None, help="folder of task files of your own")
    parser.add_argument("--metric", default="exact_match", help="the tasks' metric that says what is right")
    parser.add_argument("--filter", default=None, help="the tasks' filter, where they have several")
    parser.add_argument("--limit", type=int, default=None, help="documents of each task")
    parser.add_argument("--before", action="store_true", help="the student before training")
    parser.add_argument("--batch-size", type=int, default=16, help="requests side by side")
    given = parser.parse_args()
    try:
        _run(given)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(given: argparse.Namespace) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from isodistill.harness.student import HarnessStudent  # says what to install where the harness is not there

    recipe = load_recipe(given.run / "recipe.yaml")
    model, tokenizer = open_trained(recipe, given.run, "before" if given.before else "after")
    student = HarnessStudent(model, tokenizer, given.batch_size)
    results = simple_evaluate(
        student,
        tasks=given.tasks.split(","),
        task_manager=TaskManager(include_path=given.include),
        limit=given.limit,
        apply_chat_template=tokenizer.chat_template is not None,
        log_samples=True,
        bootstrap_iters=0,
    )
    how = {
        "metric": given.metric, "filter_name": given.filter, "generations": student.generations,
        "method": "none" if given.before else recipe.method, "seed": recipe.seed,
    }  # fmt: skip
    told = {task: robustness(samples, **how) for task, samples in results["samples"].items()}
    name = "harness-before.json" if given.before else "harness.json"
    plain = {
        task: {key: value for key, value in of.items() if key != "alias"} for task, of in results["results"].items()
    }
    write_lines(given.run / name, [json_text({"results": plain, "robustness": told}).rstrip("\n")])
    for task, entry in told.items():
        print(
            f"{task}: {entry['n_items']} items, accuracy {entry['acc_macro']:.3f}, worst domain "
            f"{entry['acc_worst']:.3f}, {entry['n_sets']} sets, all correct {entry['all_correct']}"
        )
    print(f"results: {given.run / name}")


if __name__ == "__main__":
    sys.exit(main())
