"""ECIF on pairs of which some were shuffled: are these found, what is gained without the worst, and what an edit costs.

    python studies/ecif.py --data FOLDER --encoder FOLDER

Every run (kind, data, share of shuffled pairs, seed) is a line of docs/results/ecif-runs.jsonl and is not run again;
docs/results/ecif.json and the tables of docs/results/ecif.md are made from it. ``--runs 0`` only writes these. Without
``--encoder`` (a folder of all-MiniLM-L6-v2 in the transformers format) only the digits are run.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from ecif_data import BATCH, Features, Heads, Pairs, accuracy, digits, drawn, fit, influence_of, snli
from ecif_edit import edits, solved
from ecif_report import RESULTS, write
from ecif_trace import norms_of_changes, trace_back
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from isodistill.data.files import append_log, read_log
from isodistill.influence import Factors, Influence, plain_scores, positive_part, segment, tracin, trak

SETTINGS = ("digits", "snli")
SHARES, SEEDS = (0.05, 0.1, 0.2, 0.3), (0, 1, 2, 3, 4)
BOTH_ENDS = ("exact", "positive_only", "ekfac_positive", "trak", "tracin", "loss", "similarity", "random")
DROPPED, DAMPINGS = 0.1, (0.01, 0.1, 1.0)

Run = dict[str, Any]
Key = tuple[str, str, float, int]


def main() -> None:
    """Run what is missing, then write the records and the tables."""
    parser = argparse.ArgumentParser(description="ECIF on pairs of which some were shuffled.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--encoder", type=Path, default=None, help="folder of all-MiniLM-L6-v2; without it no SNLI")
    parser.add_argument("--runs", type=int, default=None, help="run at most so many; 0 only writes the results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*left a residual")  # EK-FAC always leaves one; it is recorded
    log = RESULTS / "ecif-runs.jsonl"
    runs = read_log(log)
    done = {(run["kind"], run["setting"], run["share"], run["seed"]) for run in runs}
    for key in [key for key in planned(given.encoder is not None) if key not in done][: given.runs]:
        kind, setting, share, seed = key
        features = digits(given.data) if setting == "digits" else snli(given.data, given.encoder)
        started = time.process_time()
        run = {"kind": kind, "setting": setting, "share": share, "seed": seed}
        run |= {"find": find, "edit": edits, "trace": trace_back}[kind](setting, features, share, seed)
        run["cpu_seconds"] = round(time.process_time() - started, 1)
        append_log(log, run)
        runs.append(run)
        print(f"{key}: {run['cpu_seconds']} s", flush=True)
    write(runs)


def planned(with_encoder: bool) -> list[Key]:
    """All runs, seed by seed, so that whatever is finished says something about everything."""
    settings = SETTINGS if with_encoder else SETTINGS[:1]
    plan: list[Key] = []
    for seed in SEEDS:
        for setting in settings:
            plan += [("find", setting, share, seed) for share in SHARES]
            plan += [("edit", setting, 0.1, seed), ("trace", setting, 0.0, seed)]
    return plan


def find(setting: str, features: Features, share: float, seed: int) -> Run:
    """Fit and score; for each score AUROC, precision at k, and accuracy without the worst and the best tenth."""
    pairs = drawn(setting, features, share, seed)
    segments = segment(len(pairs.a), BATCH, seed)
    heads, checkpoints = fit(pairs, segments, setting, seed)
    influence = influence_of(heads, pairs, segments, setting)
    g = influence.query_gradient(pairs.query_a, pairs.query_b)
    factors = influence.factors("ekfac")
    solution, rough = solved(influence, g, factors), influence.inverse_product(g, factors)
    projected = influence.inverse_product(g, "projected")
    scores = scores_of(influence, pairs, solution.q, checkpoints, seed)
    scores |= {"ekfac": influence.score_all(rough.q), "ekfac_positive": positive_part(influence, rough.q)}
    scores |= {"projected": influence.score_all(projected.q)}
    scores |= {"exact_relative": scores["exact"] / norms_of_changes(influence, factors, seed)}
    k, dropped = int(pairs.planted.sum()), round(DROPPED * len(pairs.a))
    methods: dict[str, dict[str, float]] = {"none": {"accuracy": accuracy(heads, pairs)}}
    methods["none"]["accuracy_best"] = methods["none"]["accuracy"]
    for method, values in scores.items():
        order = values.argsort()
        methods[method] = {
            "auroc": auroc(-values, pairs.planted),
            "precision_at_k": float(pairs.planted[order[:k]].double().mean()),
            "accuracy": accuracy(refit(pairs, segments, order[:dropped], setting, seed), pairs),
        }
        if method in BOTH_ENDS:
            best = refit(pairs, segments, order[-dropped:], setting, seed)
            methods[method]["accuracy_best"] = accuracy(best, pairs)
    return {
        "planted": k,
        "residual": {"ggn_cg": round(solution.residual, 6), "ekfac": rough.residual, "projected": projected.residual},
        "methods": methods,
        "damping": rank_stability(influence, factors, g, scores["exact"]) if share == 0.1 else {},
    }


def scores_of(influence: Influence, pairs: Pairs, q: Tensor, checkpoints: list[Tensor], seed: int) -> dict[str, Tensor]:
    """Method -> score of every pair, the lowest are called the worst; q = H^-1 grad L(queries)."""
    plain, queries = plain_scores(influence), (pairs.query_a, pairs.query_b)
    return {
        "exact": influence.score_all(q),
        "first_order": influence.score_all(q, "first_order"),
        "positive_only": positive_part(influence, q),
        "trak": trak(influence, *queries, seed=seed),
        "tracin": tracin(influence, checkpoints, *queries),
        "loss": plain.loss,
        "self_confidence": plain.confidence,
        "similarity": plain.similarity,
        "random": torch.rand(len(pairs.a), generator=torch.Generator().manual_seed(seed + 1000)),
    }


def refit(pairs: Pairs, segments: list[Tensor], out: Tensor, setting: str, seed: int) -> Heads:
    """Heads fitted anew, from the same start, without the pairs ``out``."""
    kept = torch.ones(len(pairs.a), dtype=torch.bool)
    kept[out] = False
    return fit(pairs, [batch[kept[batch]] for batch in segments], setting, seed)[0]


def rank_stability(influence: Influence, factors: Factors, g: Tensor, exact: Tensor) -> dict[str, float]:
    """Damping, a share of the mean diagonal -> Spearman correlation of the scores with those without it."""
    scores = {x: influence.score_all(solved(influence, g, factors, damping=x).q) for x in DAMPINGS}
    return {str(x): float(spearmanr(found.numpy(), exact.numpy()).statistic) for x, found in scores.items()}


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Share of (planted, other) pairs in which the planted one scores higher; ties count half."""
    ranks, n = rankdata(scores.double().numpy()), int(positive.sum())
    return float((ranks[positive.numpy()].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


if __name__ == "__main__":
    main()
