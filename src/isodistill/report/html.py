"""The page: everything a run measured, in one file that opens offline."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from isodistill.report import figures, tables, text
from isodistill.report.data import data_section
from isodistill.report.domains import read_apart
from isodistill.report.sets import isomer_sets
from isodistill.report.study import Study, cautions, claims, read_study
from isodistill.report.traces import read_taught
from isodistill.report.validity import read_validity

__all__ = ["page_template", "write_report"]


def write_report(run: Path, *, baseline: Path | None, command: str, out: Path) -> None:
    """Write ``report.html`` for one run, or for a run with its baseline.

    The same files give the same bytes: nothing is taken from the clock or the machine.

    Args:
        run: run folder of the method.
        baseline: run folder of the baseline; then ``comparison.json`` is read from the folder of ``out``. Without a
            baseline the headline is after minus before; its interval comes from a ``comparison.json`` in the run
            folder that holds this run alone.
        command: the command that made the run or the comparison, shown at the end.
        out: the file to write.

    Raises:
        UserError: a folder is no run, a file is damaged, or the comparison belongs to other runs.
    """
    study = read_study(run, baseline, out.parent)
    page = page_template("page.html.j2").render(_context(study, command))
    out.write_text(page, encoding="utf-8", newline="\n")


def page_template(name: str) -> jinja2.Template:
    """A template of this folder; text is escaped, plots are not."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isodistill.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup  # plots escape their own text
    return environment.get_template(name)


def _context(study: Study, command: str) -> dict[str, Any]:
    found = claims(study)
    students = [(label, run, "after") for label, run in study.runs]
    if study.baseline is None and any(stage == "before" for stage, _ in study.run.records):
        students.insert(0, ("before training", study.run, "before"))
    return {
        "title": study.label if study.baseline is None else f"{study.label} against {study.baseline_label}",
        "results": study.run.results,
        "headline": found[0],
        "claims": found[1:],
        "overview": figures.overview_figure(found),
        "cautions": cautions(study),
        "sections": [_section(study, split) for split in study.splits],
        "consistency": figures.consistency_figures(study),
        "data": data_section(study.run.path),
        "taught": read_taught(study.run.path),
        "validity": [
            (label, pull) for label, run in study.runs if (pull := read_validity(run.path, run.metrics)) is not None
        ],
        "apart": read_apart(study),
        "training": figures.training_figures(study),
        "bad_losses": [(label, count) for label, run in study.runs if (count := _not_finite(run.metrics))],
        "students": [label for label, _, _ in students],
        "sets": isomer_sets(students),
        "differing": tables.differing_settings(study.runs),
        "costs": tables.costs(study.runs),
        "versions": tables.versions(study.runs),
        "recipes": [(label, yaml.safe_dump(dict(run.recipe), sort_keys=False)) for label, run in study.runs],
        "command": command,
    }


def _section(study: Study, split: str) -> dict[str, Any]:
    difference = study.difference(split)
    head = "after minus before" if study.baseline is None else "difference"
    test = (difference or {}).get("mcnemar_all_correct")
    left = "before training" if study.baseline is None else study.baseline_label
    plots = [figures.accuracy_figure(study, split), figures.difference_figure(study, split)]
    return {
        "title": text.split_title(split),
        "n_items": study.run.results["splits"][split].get("n_items"),
        "n_sets": study.run.results["splits"][split].get("n_sets"),
        "figures": [figure for figure in plots if figure is not None],
        "table": tables.robustness(split, study.sides, difference, head),
        "pass_at_k": tables.pass_at_k(split, study.sides),
        "reasons": tables.reasons(split, study.sides),
        "domains": tables.by_domain(split, figures.domain_order(study, split), study.sides, difference, head),
        "mcnemar": text.mcnemar_sentence(test, left, study.label) if test else "",
    }


def _not_finite(metrics: list[dict[str, Any]]) -> int:
    return sum(1 for line in metrics if "loss" in line and (line["loss"] is None or not math.isfinite(line["loss"])))
