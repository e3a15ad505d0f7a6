"""The records, tables and figures of studies/prada.py."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from isodistill.data.files import write_between_marks, write_lines
from isodistill.evaluation import mean_sd, paired_difference
from isodistill.evaluation.statistics import MIN_SEEDS, paired_interval, ratio_of_sums, two_level_difference

__all__ = ["METHODS", "PAIRS", "report"]

BEGIN, END = "<!-- tables: begin, made by studies/prada.py from prada-runs.jsonl -->", "<!-- tables: end -->"
COMMAND = "python studies/prada.py --data FOLDER"
PAIRS = [
    ("coin_flip", "tracking_shuffled_objects"),
    ("svamp", "singleeq"),
    ("commonsenseqa", "strategyqa"),
    ("last_letters", "coin_flip"),
    ("svamp", "addsub"),
    ("gsm8k", "aqua"),
]
"""Source and target: one pair for each of the suite's categories, then more."""
METHODS = {
    "before": "before training",
    "sft": "LoRA SFT (Fine-tune-CoT)",
    "prada": "PRADA, prompt and LoRA",
    "prompt_lora": "the same, lambda 0",
    "dann": "DANN without prompt",
    "p_tuning": "P-tuning SFT",
    "prada_prompt": "PRADA, prompt alone",
    "frozen": "PRADA, frozen random classifier",
    "shuffled": "PRADA, shuffled domain labels",
    "step_by_step": "distilling step-by-step",
}
RIVALS = ("sft", "prompt_lora")
"""What a method is compared with: no adversary and no prompt, and the prompt without the adversary."""
METRICS = {
    "loss_target": "target, loss", "loss_source": "source, loss", "acc_target": "target, accuracy",
    "acc_source": "source, accuracy", "probe": "domain probe", "steps_to_90": "steps to 90 %",
}  # fmt: skip
SPLITS = {"acc_target": "ood", "acc_source": "id"}
LOWER_IS_BETTER = ("loss_target", "loss_source", "probe", "steps_to_90")
SHOWN = ("before", "sft", "prada")

Run = dict[str, Any]


def report(runs: Sequence[Run], results: Path) -> None:
    """``prada.json``, the tables of the page, and its figures."""
    every = with_untrained(runs)
    records, lines = [], []
    for lab in (True, False):
        mine = [run for run in every if run["lab"] == lab]
        if mine:
            pairs = list(dict.fromkeys((run["source"], run["target"]) for run in mine))
            made = [record for pair in pairs for record in of_pair(mine, pair)]
            made += of_all(mine, pairs) if len(pairs) > 1 else []
            records += made
            lines += ["", f"### {mine[0]['student']}", *tables(made)]
            name = "lab" if lab else "named"
            images = results.parent / "images"
            write_lines(images / f"prada-features-{name}.svg", [features_figure(mine, pairs)])
            write_lines(images / f"prada-curves-{name}.svg", [curves_figure(mine, pairs)])
            lines += ["", f"![t-SNE of the features](../images/prada-features-{name}.svg)"]
            lines += ["", f"![loss over training](../images/prada-curves-{name}.svg)"]
    write_lines(results / "prada.json", [json.dumps(records, indent=1, allow_nan=False)])
    write_between_marks(results / "prada.md", BEGIN, END, "\n".join(lines[1:]))


def with_untrained(runs: Sequence[Run]) -> list[Run]:
    """The lines, and for each one that holds the untrained student a line of its own."""
    found = []
    for run in runs:
        if "before" in run:
            found.append({**run, **run["before"], "method": "before", "curve": run["curve"][:1]})
        found.append(run)
    return found


def of_pair(runs: Sequence[Run], pair: tuple[str, str]) -> list[Run]:
    """Records of one source and target."""
    mine = [run for run in runs if (run["source"], run["target"]) == pair]
    found = by_method(mine)
    setting = f"{pair[0]} to {pair[1]}, {mine[0]['steps']} steps"
    return [made for method in found for metric in METRICS if (made := record(setting, found, method, metric))]


def of_all(runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> list[Run]:
    """Records over all pairs that have the metric, of methods that all these have; the intervals are over pairs.

    Of every pair those seeds count that all its methods have; ``seeds`` of a record are those that all pairs have.
    """
    by_pair = [by_method([run for run in runs if (run["source"], run["target"]) == pair]) for pair in pairs]
    for one in by_pair:
        shared = set.intersection(*(set(by_seed) for by_seed in one.values()))
        for method, by_seed in one.items():
            one[method] = {seed: run for seed, run in by_seed.items() if seed in shared}
    found = []
    for metric in METRICS:
        whole = [one for one in by_pair if all(value(run, metric) is not None for run in one["sft"].values())]
        seeds = sorted(set.intersection(*(set(one["sft"]) for one in whole))) if whole else []
        means = {}
        for method in METHODS:
            values = [[value(run, metric) for run in one.get(method, {}).values()] for one in whole]
            if values and all(each and None not in each for each in values):
                means[method] = [float(np.mean(each)) for each in values]  # type: ignore[arg-type]
        for method, values in means.items():
            apart = {
                rival: paired_interval(signed(metric, zip(values, means[rival], strict=True)))
                for rival in RIVALS
                if rival != method and rival in means and len(whole) > 1
            }
            by_seed = [np.mean([value(one[method][seed], metric) for one in whole]) for seed in seeds]
            found.append(
                {
                    "setting": f"mean over {len(pairs)} pairs", "student": runs[0]["student"], "method": method,
                    "metric": metric, "mean": round(float(np.mean(values)), 6), "sd": spread(by_seed),
                    "pairs": [round(v, 6) for v in values], "seeds": [round(float(v), 6) for v in by_seed],
                    "diff_to": apart, "command": command(runs),
                }
            )  # fmt: skip
    return found


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation over seeds; None for fewer than two."""
    return round(mean_sd(values)[1], 6) if len(values) > 1 else None


def command(runs: Sequence[Run]) -> str:
    """What makes the runs of a student."""
    student = "" if runs[0]["lab"] else f" --student {runs[0]['named']}"
    pairs = sorted({PAIRS.index((run["source"], run["target"])) for run in runs})
    chosen = "" if len(pairs) == len(PAIRS) else f" --pairs {' '.join(map(str, pairs))}"
    methods = [method for method in METHODS if method != "before" and any(run["method"] == method for run in runs)]
    chosen += "" if len(methods) == len(METHODS) - 1 else f" --methods {' '.join(methods)}"
    seeds = " ".join(str(seed) for seed in sorted({run["seed"] for run in runs}))
    return f"{COMMAND}{student}{chosen} --seeds {seeds}"


def signed(metric: str, pairs: Iterable[tuple[float, float]]) -> list[float]:
    """Ours minus theirs, so that more is better."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    return [sign * (ours - theirs) for ours, theirs in pairs]


def by_method(runs: Sequence[Run]) -> dict[str, dict[int, Run]]:
    """Method -> seed -> run, in the order of ``METHODS``."""
    return {
        name: {run["seed"]: run for run in sorted(runs, key=lambda run: run["seed"]) if run["method"] == name}
        for name in METHODS
        if any(run["method"] == name for run in runs)
    }


def record(setting: str, found: dict[str, dict[int, Run]], method: str, metric: str) -> Run | None:
    """One record; None where the metric is not defined."""
    values = [value(run, metric) for run in found[method].values()]
    if not values or None in values:
        return None
    apart = {rival: difference(found, method, rival, metric) for rival in RIVALS if rival != method}
    return {
        "setting": setting, "student": next(iter(found[method].values()))["student"], "method": method,
        "metric": metric, "mean": round(mean_sd(values)[0], 6), "sd": spread(values),  # type: ignore[arg-type]
        "seeds": [round(number, 6) for number in values],  # type: ignore[arg-type]
        "diff_to": {rival: numbers for rival, numbers in apart.items() if numbers},
        "command": command([run for by_seed in found.values() for run in by_seed.values()]),
    }  # fmt: skip


def value(run: Run, metric: str) -> float | None:
    """A metric of one run; None where it has none."""
    if metric in SPLITS:
        return float(np.mean(right(run, SPLITS[metric])))
    if run["method"] == "step_by_step" and metric != "probe":
        return None  # it is asked for its label alone, and its held-out sequences are others
    if metric in ("probe", "loss_target"):
        return cast("float | None", run[metric])
    return steps_to_90(run["curve"]) if metric == "steps_to_90" else float(run["curve"][-1][1])


def right(run: Run, split: str) -> list[float]:
    """1 for each test problem that is answered correctly, in the order of their ids."""
    return [float(verdict == "correct") for _, verdict in sorted(run["outcomes"][split].items())]


def steps_to_90(curve: Sequence[Sequence[float]]) -> float | None:
    """The step at which the loss on held-out traces has fallen by 90 % of what it falls in all, between two points."""
    if len(curve) < 2:
        return None
    steps, losses = (np.array(column, dtype=float) for column in zip(*curve, strict=True))
    goal = losses[0] - 0.9 * (losses[0] - losses.min())
    at = int(np.argmax(losses <= goal))
    if at == 0:
        return None  # it never fell
    share = (losses[at - 1] - goal) / (losses[at - 1] - losses[at])
    return float(steps[at - 1] + share * (steps[at] - steps[at - 1]))


def difference(found: dict[str, dict[int, Run]], method: str, rival: str, metric: str) -> list[float] | None:
    """Method minus rival, so that more is better, and its 95 % interval.

    Accuracies are paired by problem, and from three seeds on by seed and problem; the others over seeds, from two on.
    """
    seeds = [seed for seed in found[method] if seed in found.get(rival, {})]
    if not seeds:
        return None
    if metric not in SPLITS:
        pairs = [(value(found[method][seed], metric), value(found[rival][seed], metric)) for seed in seeds]
        known = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
        return paired_interval(signed(metric, known)) if len(known) > 1 else None
    each = {name: [right(found[name][seed], SPLITS[metric]) for seed in seeds] for name in (method, rival)}
    n = len(each[method][0])
    if len(seeds) >= MIN_SEEDS:
        sides = [[ratio_of_sums(one, np.ones(n)) for one in each[name]] for name in (rival, method)]
        numbers = two_level_difference(*sides, n_sets=n)[0]
    else:
        means = [ratio_of_sums(np.mean(each[name], axis=0), np.ones(n)) for name in (rival, method)]
        numbers = paired_difference(*means, n_sets=n)[0]
    return [round(float(number), 6) for number in numbers[:3]]


def tables(records: Sequence[Run]) -> list[str]:
    """Source x target for the loss on the target; then all numbers of every pair, and the means over pairs."""
    known = {(r["setting"], r["method"], r["metric"]): r for r in records}
    settings = [*dict.fromkeys(record["setting"] for record in records)]
    lines = ["", f"| target, loss | {' | '.join(settings)} |", "| --- |" + " ---: |" * len(settings)]
    for method, label in METHODS.items():
        found = [known.get((setting, method, "loss_target")) for setting in settings]
        if any(found):
            means = [f"{one['mean']:.3f}" if one else "" for one in found]
            lines.append(f"| {label} | {' | '.join(means)} |")
    for setting in settings:
        lines += ["", f"**{setting}**", "", f"| method | seeds | {' | '.join(METRICS.values())} |"]
        lines.append("| --- |" + " ---: |" * (len(METRICS) + 1))
        for method, label in METHODS.items():
            cells = [known.get((setting, method, metric)) for metric in METRICS]
            if any(cells):
                seeds = max(len(cell["seeds"]) for cell in cells if cell)
                lines.append(f"| {label} | {seeds} | {' | '.join(map(cell_text, cells))} |")
    return lines


def cell_text(cell: Run | None) -> str:
    """Mean and, in brackets, the difference to sft with its interval."""
    if cell is None:
        return ""
    apart = cell["diff_to"].get("sft")
    digits = 1 if cell["metric"] == "steps_to_90" else 3
    against = "" if apart is None else " ({0:+.{d}f}, {1:+.{d}f} to {2:+.{d}f})".format(*apart, d=digits)
    return f"{cell['mean']:.{digits}f}{against}"


def features_figure(runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> str:
    """t-SNE of q: a row per pair, a column per student, of the first seed."""
    first = {(r["source"], r["target"], r["method"]): r for r in reversed(runs) if r["seed"] == runs[0]["seed"]}
    figure = Figure(figsize=(2.6 * len(SHOWN), 2.3 * len(pairs)), layout="constrained")
    grid = figure.subplots(len(pairs), len(SHOWN), squeeze=False)
    for row, pair in zip(grid, pairs, strict=True):
        for axes, method in zip(row, SHOWN, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            run = first.get((*pair, method))
            if run is None:
                axes.set_axis_off()
                continue
            for side, name, mark, colour in (("id", pair[0], "o", "#0072b2"), ("ood", pair[1], "^", "#d55e00")):
                points = np.array(run["points"][side])
                axes.plot(*points.T, mark, color=colour, markersize=3, linestyle="", label=name)
            axes.set_title(f"{METHODS[method]}, probe {run['probe']:.2f}", fontsize=7)
        row[0].legend(fontsize=6, frameon=False)
    return as_svg(figure)


def curves_figure(runs: Sequence[Run], pairs: Sequence[tuple[str, str]]) -> str:
    """Loss on held-out traces of the source over training, the mean over seeds, a panel per pair."""
    rows = -(-len(pairs) // 2)
    figure = Figure(figsize=(8, 2.6 * rows), layout="constrained")
    grid = [*figure.subplots(rows, 2, squeeze=False).flat]
    for axes in grid[len(pairs) :]:
        axes.set_axis_off()
    for axes, pair in zip(grid, pairs, strict=False):
        found = by_method([run for run in runs if (run["source"], run["target"]) == pair and run["curve"]])
        for i, (method, by_seed) in enumerate(found.items()):
            if method in ("before", "step_by_step"):
                continue  # one point; held-out sequences that are others
            curve = np.mean([run["curve"] for run in by_seed.values()], axis=0)
            axes.plot(curve[:, 0], curve[:, 1], "-" if i < 5 else "--", label=METHODS[method], linewidth=1.2)
        axes.set_title(f"{pair[0]} to {pair[1]}", fontsize=8)
        axes.set_xlabel("training step", fontsize=7)
        axes.set_ylabel("loss on held-out source traces", fontsize=7)
        axes.tick_params(labelsize=7)
    grid[0].legend(fontsize=6, frameon=False)
    return as_svg(figure)


def as_svg(figure: Figure) -> str:
    """The same bytes for the same numbers."""
    file = io.StringIO()
    with matplotlib.style.context({"svg.hashsalt": "prada", "svg.fonttype": "none"}):
        figure.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
    return re.sub(r"<metadata>.*?</metadata>\s*", "", file.getvalue(), flags=re.DOTALL).rstrip("\n")
