"""The page of a staged run: what was kept, what was forgotten, and what drifted; one file that opens offline."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from isodistill.errors import UserError
from isodistill.report import plots, text
from isodistill.report.figures import Figure
from isodistill.report.html import page_template
from isodistill.report.run import Estimate
from isodistill.report.tables import DASH, Cell, Row, Table

__all__ = ["write_stage_report"]


def write_stage_report(folder: Path, *, command: str, out: Path) -> None:
    """Write the page from ``stages.json`` and ``recipe.yaml``; the same files give the same bytes.

    Args:
        folder: the run folder.
        command: shown at the end as what made it.
        out: the file to write.

    Raises:
        UserError: ``stages.json`` is damaged or of another version.
    """
    path = folder / "stages.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}. Run the recipe again; only this file is made anew.") from error
    if content.get("schema") != 1:
        raise UserError(
            f"{path} has schema {content.get('schema')!r}; this version reads schema 1. Run the recipe again."
        )
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))
    page = page_template("stages.html.j2").render(_context(content, recipe, command))
    out.write_text(page, encoding="utf-8", newline="\n")


def _context(content: Mapping[str, Any], recipe: Mapping[str, Any], command: str) -> dict[str, Any]:
    guard, stages = content["guard"], content["stages"]
    return {
        "title": f"{len(stages)} stages under the guard {guard['name']}",
        "content": content,
        "sections": [_section(content, split, i) for i, split in enumerate(content["splits"])],
        "drift": [_drift_figure(content, name, i) for i, name in enumerate(stages)],
        "nodes": content["drift"][stages[0]]["nodes"],
        "decided": _decided(content),
        "costs": _costs(content),
        "guard": yaml.safe_dump(dict(guard), sort_keys=False),
        "recipe": yaml.safe_dump(dict(recipe), sort_keys=False),
        "command": command,
    }


def _section(content: Mapping[str, Any], split: str, i: int) -> dict[str, Any]:
    numbers, stages = content["splits"][split], content["stages"]
    rows = ([numbers["b"]] if numbers["b"] else []) + numbers["R"]
    labels = (["before"] if numbers["b"] else []) + [f"after {name}" for name in stages]
    title = text.split_title(split)
    drawn = plots.heat_map(labels, stages, rows, name=f"heat-{i}", title=f"Accuracy in %: {title}")
    figures = [Figure("Who knows what, when", drawn, "Accuracy in % on the problems of each stage (columns).")]
    if numbers["change"]:
        changes = [(name, Estimate(*value)) for name, value in numbers["change"].items()]
        drawn = plots.differences(changes, name=f"change-{i}", title=f"What later stages did: {title}")
        caption = "After the last stage minus just after the stage's own, on the same problems. Left of 0: forgotten."
        figures.append(Figure("What later stages did to each", drawn, caption))
    return {"title": title, "numbers": _means(numbers), "figures": figures, "stages": _by_stage(numbers, stages)}


def _means(numbers: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Value, name and meaning of the means over stages."""
    found = [
        (numbers["acc"], "ACC", "accuracy after the last stage, mean over all stages"),
        (numbers["bwt"], "BWT", "what later stages did to earlier ones; below 0 is forgetting"),
        (numbers["forgetting"], "Forgetting", "best accuracy so far minus the last one; lower is better"),
        (numbers["fwt"], "FWT", "accuracy on a stage before it was trained, above the untrained student"),
        (fmean(row[j] for j, row in enumerate(numbers["R"])), "Copies", _COPIES),
    ]
    told = [(f"{100 * value:.1f}", name, meaning) for value, name, meaning in found if value is not None]
    return [(value.replace("-", "\N{MINUS SIGN}"), name, meaning) for value, name, meaning in told]


_COPIES = "accuracy where the task is known and each stage's own copy of the adapter answers: the diagonal of the map"


def _by_stage(numbers: Mapping[str, Any], stages: Sequence[str]) -> Table:
    """Accuracy, LCS and LCS ratio of every stage: untrained, just after it, and at the end."""
    rows, measured = [], [key for key in _LCS if any(value is not None for row in numbers[key] for value in row)]
    for j, name in enumerate(stages):
        cells = [_share(numbers["b"][j] if numbers["b"] else None)]
        cells += [_share(numbers["R"][i][j], numbers["R_ci95"][i][j]) for i in (j, len(stages) - 1)]
        for key in measured:
            before = numbers[f"{key}_before"]
            values = [before[j] if before else None, *(numbers[key][i][j] for i in (j, len(stages) - 1))]
            cells += [Cell(DASH if value is None else f"{value:.3f}") for value in values]
        rows.append(Row(name, "", cells))
    moments = ("untrained", "after it", "at the end")
    columns = [f"{what}, {moment}" for what in ("accuracy", *(_LCS[key] for key in measured)) for moment in moments]
    return Table(columns, rows, [] if measured else [_NO_LCS])


_LCS = {"lcs": "LCS", "lcs_ratio": "LCS ratio"}
_NO_LCS = "LCS and its ratio need complete isomer sets, and the stages have none."


def _share(value: float | None, interval: Sequence[float] | None = None) -> Cell:
    if value is None:
        return Cell()
    return Cell(f"{100 * value:.1f}", "" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}")


def _drift_figure(content: Mapping[str, Any], stage: str, i: int) -> Figure:
    """Mean angle per layer, one line for each kind of layer; the same scale in every stage."""
    kinds: dict[str, tuple[list[float], list[float]]] = {}
    for name, numbers in content["drift"][stage]["layers"].items():
        depth = re.search(r"\d+", name)
        steps, values = kinds.setdefault(name.rpartition(".")[2].removesuffix("_proj"), ([], []))
        steps.append(float(depth[0]) if depth else 0.0)
        values.append(numbers["mean"])
    title = f"Drift in stage {stage}"
    every = [layer["mean"] for told in content["drift"].values() for layer in told["layers"].values()]
    svg = plots.curves(
        kinds,
        ylabel="mean angle / pi",
        name=f"drift-{i}",
        title=title,
        xlabel="layer",
        top=1.05 * max(every, default=0.0),
    )
    return Figure(stage, svg, "")


def _decided(content: Mapping[str, Any]) -> Table:
    rows = []
    for name, growth in zip(content["stages"], content["growth"], strict=True):
        told = content["drift"][name]
        layers = list(told["layers"].values())
        mean = sum(layer["mean"] for layer in layers) / max(len(layers), 1)
        largest = max((layer["max"] for layer in layers), default=0.0)
        shares = [told["shares"][key] for key in ("frozen", "restored", "updated", "duplicated")]
        cells = [f"{mean:.4f}", f"{largest:.4f}", *(f"{100 * share:.1f} %" for share in shares), f"{growth:.2f}"]
        rows.append(Row(name, "", [Cell(cell) for cell in cells]))
    columns = ["mean angle / pi", "largest", "frozen", "restored", "updated", "duplicated", "adapter growth"]
    return Table(columns, rows, ["Nodes of a LoRA student are never duplicated: it cannot grow them."])


def _costs(content: Mapping[str, Any]) -> Table:
    rows = []
    for name, cost in zip(content["stages"], content["train"], strict=True):
        per_step = cost["seconds"] / cost["steps"] if cost["steps"] else 0.0
        cells = [str(cost["steps"]), f"{cost['tokens']:,}", f"{cost['seconds']:.1f}", f"{per_step:.3f}"]
        cells += [f"{cost['guard_seconds']:.1f}", f"{cost['adapter_parameters']:,}"]
        rows.append(Row(name, "", [Cell(cell) for cell in cells]))
    columns = ["steps", "tokens", "seconds", "seconds per step", "guard at the end, seconds", "adapter parameters"]
    kept = sum(cost["adapter_parameters"] for cost in content["train"])
    return Table(columns, rows, [f"{_KEPT} {kept:,} parameters in all."])


_KEPT = (
    "The adapter of every stage is kept, in stages/NAME/student: a copy per task for who knows the task of a question."
)
