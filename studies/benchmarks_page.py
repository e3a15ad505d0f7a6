"""Records and tables of the four benchmarks, from the lines of docs/results/benchmarks-runs.jsonl alone."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cells import difference_cell, mean_cell

from isodistill.benchmarks import BENCHMARKS
from isodistill.data.files import read_log, write_between_marks, write_lines
from isodistill.evaluation import Record, compare_seeds, mean_sd
from isodistill.evaluation.statistics import MIN_SEEDS, paired_interval

LOG = "benchmarks-runs.jsonl"
BEGIN = "<!-- benchmarks: begin, made by studies/four_benchmarks.py from benchmarks-runs.jsonl -->"
END = "<!-- benchmarks: end -->"
SETTING = "benchmark "

TRIVIAL = {"majority": "most frequent answer", "naive_bayes": "naive Bayes on words"}
LABELS = {
    **TRIVIAL,
    "erm": "ERM",
    "iga": "IGA",
    "random_mask": "random mask, density and step ratio of IGA",
    "fish": "Fish",
    "group_dro": "GroupDRO",
}

METRICS: dict[str, tuple[str | None, str]] = {
    "acc_id": ("id", "acc_macro"),
    "acc_ood": ("ood", "acc_macro"),
    "acc_worst_ood": ("ood", "acc_worst"),
    "all_correct_id": ("id", "all_correct"),
    "all_correct_ood": ("ood", "all_correct"),
    "agreement_id": ("id", "agreement"),
    "agreement_ood": ("ood", "agreement"),
    "lcs_ratio_id": ("id", "lcs_ratio"),
    "lcs_ratio_ood": ("ood", "lcs_ratio"),
    "acc_cue_random": ("cue_random", "acc_macro"),
    "cpu_seconds": (None, "cpu_seconds"),
}
"""Metric -> split and name in a line."""
LOWER_IS_BETTER = ("lcs_ratio_id", "lcs_ratio_ood", "cpu_seconds")

Run = dict[str, Any]


def write_results_of(results: Path) -> None:
    """The records of the benchmarks in ``compare.json``, those of other studies kept; and their section of the page."""
    runs = read_log(results / LOG)
    records = collect(runs)
    path, page = results / "compare.json", results / "compare.md"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    others = [record for record in known if not record["setting"].startswith(SETTING)]
    write_lines(path, [json.dumps([*others, *records], indent=1, allow_nan=False)])
    write_between_marks(page, BEGIN, END, tables(records, runs))


def collect(runs: Sequence[Run]) -> list[Run]:
    """One record per benchmark, method and metric; differences are paired by item and, from three seeds on, by seed."""
    records = []
    for title in dict.fromkeys(run["benchmark"] for run in runs if run["kind"] == "run"):
        found: dict[str, dict[int, Run]] = {}
        for run in runs:
            if run["kind"] == "run" and run["benchmark"] == title:
                found.setdefault(run["method"], {})[run["seed"]] = run
        if "erm" not in found:  # all stand beside it
            continue
        items = next(run["items"] for run in runs if run["kind"] == "items" and run["benchmark"] == title)
        for method in (name for name in LABELS if name in found):
            rivals = ("majority", "naive_bayes") if method == "erm" else ("erm", "random_mask")
            rivals = () if method in TRIVIAL else tuple(r for r in rivals if r != method and r in found)
            apart = {rival: _differences(found[rival], found[method], items) for rival in rivals}
            records += [_record(title, found, method, metric, apart) for metric in METRICS]
    return [record for record in records if any(value is not None for value in record["seeds"])]


def _differences(rival: dict[int, Run], method: dict[int, Run], items: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Split -> metric -> method minus rival over the seeds of both; trivial answers are the same for every seed."""
    if rival[min(rival)]["method"] in TRIVIAL:
        rival = dict.fromkeys(method, rival[min(rival)])
    seeds = sorted({*rival} & {*method})
    left, right = ([_records(side[seed], items) for seed in seeds] for side in (rival, method))
    return compare_seeds(left, right) if seeds else {}


def _records(run: Run, items: Sequence[Sequence[Any]]) -> list[Record]:
    """The records of a line, as far as metrics of answers look at them."""
    made = []
    for split, item, set_id, domain, gold in items:
        outcome, said = run["answers"][f"{split}/{item}"]
        made.append(
            Record(
                run_id=f"{run['benchmark']}, {run['method']}, seed {run['seed']}", method=run["method"], tier=None,
                stage="after", split=split, item_id=item, set_id=set_id, structure_id=None, domain=domain,
                answer_type="string", seed_train=run["seed"], seed_data=0, seed_hparam=None, step=0, prompt_hash="",
                output="", n_new_tokens=0, finish="eos", parsed=said, gold=gold or "", canon_parsed=said,
                canon_gold=gold, outcome=outcome, parser_version="", sampling={},
            )
        )  # fmt: skip
    return made


def _record(title: str, found: dict[str, dict[int, Run]], method: str, metric: str, apart: dict[str, Any]) -> Run:
    split, name = METRICS[metric]
    runs = dict(sorted(found[method].items()))
    values = [_value(run, metric) for run in runs.values()]
    defined = [value for value in values if value is not None]
    mean, sd = mean_sd(defined) if defined else (math.nan, math.nan)
    differences = {}
    for rival, found_apart in apart.items():
        if metric in LOWER_IS_BETTER:
            shared = [seed for seed in runs if seed in found[rival]]
            pairs = [(_value(runs[seed], metric), _value(found[rival][seed], metric)) for seed in shared]
            falls = [theirs - ours for ours, theirs in pairs if ours is not None and theirs is not None]
            difference = paired_interval(falls) if len(falls) >= MIN_SEEDS else None
        else:
            difference = found_apart.get(split, {}).get(name)
        if difference is not None:
            differences[rival] = [round(number, 6) for number in difference]
    first = next(iter(runs.values()))
    return {
        "setting": f"{SETTING}{title}",
        "student": first["student"],
        "method": method,
        "metric": metric,
        "mean": None if math.isnan(mean) else round(mean, 6),
        "sd": None if math.isnan(sd) else round(sd, 6),
        "seeds": values,
        "diff_to": differences,
        "command": first["command"],
    }


def _value(run: Run, metric: str) -> float | None:
    """None where the number is undefined."""
    split, name = METRICS[metric]
    value: float | None = run["train"].get(name) if split is None else run["splits"].get(split, {}).get(name)
    return value


def tables(records: Sequence[Run], runs: Sequence[Run]) -> str:
    """One table per benchmark and number of steps, in the order of ``BENCHMARKS``."""
    titles = dict.fromkeys(record["setting"].removeprefix(SETTING) for record in records)
    parts = [
        _section(title, [record for record in records if record["setting"] == f"{SETTING}{title}"], runs)
        for benchmark in BENCHMARKS.values()
        for title in titles
        if title.startswith(f"{benchmark.title},")
    ]
    return "\n\n".join(parts) or "No run yet."


def _section(title: str, records: Sequence[Run], runs: Sequence[Run]) -> str:
    found = {(record["method"], record["metric"]): record for record in records}
    methods = [name for name in LABELS if (name, "acc_ood") in found]
    in_sets, cue = ("erm", "all_correct_id") in found, ("erm", "acc_cue_random") in found
    columns = ["accuracy ID", "accuracy OOD", "OOD better than ERM by", "than random mask by", "worst domain OOD"]
    metrics = ["acc_id", "acc_ood", "", "", "acc_worst_ood"]
    if in_sets:
        sets = "ood" if ("erm", "all_correct_ood") in found else "id"
        columns += [f"all correct {sets.upper()}", f"agreement {sets.upper()}", f"LCS ratio {sets.upper()}"]
        metrics += [f"all_correct_{sets}", f"agreement_{sets}", f"lcs_ratio_{sets}"]
    columns += [*["ID, cue random"] * cue, "training against ERM, CPU", "seeds"]
    metrics += [*["acc_cue_random"] * cue, "", ""]
    lines = [
        f"### {title}",
        "",
        f"{_verdict(found)} {_shape(title, runs)}",
        "",
        f"| method | {' | '.join(columns)} |",
        f"| --- {'| ---: ' * len(columns)}|",
    ]
    for method in methods:
        cells = [mean_cell(found.get((method, metric))) for metric in metrics]
        cells[2], cells[3] = (difference_cell(found[method, "acc_ood"], rival) for rival in ("erm", "random_mask"))
        cells[-2] = _ratio(found, method)
        cells[-1] = str(len(found[method, "acc_ood"]["seeds"])) if method not in TRIVIAL else "-"
        lines.append(f"| {LABELS[method]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(found: dict[tuple[str, str], Run], method: str) -> str:
    costs = [found.get((name, "cpu_seconds")) for name in (method, "erm")]
    return "-" if None in costs else f"{costs[0]['mean'] / costs[1]['mean']:.2f}"


def _verdict(found: dict[tuple[str, str], Run]) -> str:
    """Whether the benchmark counts: ERM above both trivial answers, its interval without 0."""
    parts = []
    for metric, where in (("acc_id", "ID"), ("acc_ood", "OOD")):
        best = max(TRIVIAL, key=lambda name: found[name, metric]["mean"])
        value, low, high = found["erm", metric]["diff_to"][best]
        word = "counts" if low > 0 else "does not count"
        parts.append(
            f"{where} it {word}: ERM less the better trivial baseline is {value:+.3f} ({low:+.3f} to {high:+.3f})"
        )
    return f"{'; '.join(parts)}."


def _shape(title: str, runs: Sequence[Run]) -> str:
    """Items and trained tokens of a benchmark."""
    items = next(run["items"] for run in runs if run["kind"] == "items" and run["benchmark"] == title)
    counts = {split: sum(item[0] == split for item in items) for split in dict.fromkeys(item[0] for item in items)}
    erm = next(r for r in runs if r["kind"] == "run" and r["benchmark"] == title and r["method"] == "erm")
    told = ", ".join(f"{n} {split}" for split, n in counts.items())
    where = f" Run on {erm['device']}." if "device" in erm else ""
    rate = f"{float(erm['settings']['learning_rate']):g}"
    return f"Items: {told}. Tokens of a training: {erm['train']['tokens']}; learning rate {rate}.{where}"
