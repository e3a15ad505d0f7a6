"""ECIF on pairs of which some were shuffled: are these found, and what is gained by leaving the worst out.

    python studies/ecif.py --data FOLDER --encoder FOLDER

Every run (data, share of shuffled pairs, seed) is a line of docs/results/ecif-runs.jsonl and is not run again;
docs/results/ecif.json and the tables of docs/results/ecif.md are made from it. ``--runs 0`` only writes these. Without
``--encoder`` (a folder of all-MiniLM-L6-v2 in the transformers format) only the digits are run.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.func import jvp
from torch.nn import functional as F

from isodistill.data.files import append_log, read_log, write_between_marks, write_lines
from isodistill.evaluation import mean_sd
from isodistill.evaluation.statistics import paired_interval
from isodistill.influence import Influence, segment

RESULTS = Path("docs/results")
BEGIN, END = "<!-- tables: begin, made by studies/ecif.py from ecif.json -->", "<!-- tables: end -->"
SHARES, SEEDS = (0.05, 0.1, 0.2, 0.3), (0, 1, 2, 3, 4)
BATCH, TEMPERATURE, WIDTH, DROPPED = 100, 0.1, 16, 0.1
SETTINGS = {
    "digits": "digits with captions, 1,000 pairs",
    "snli": "SNLI entailment pairs, all-MiniLM-L6-v2 features, 700 pairs",
}
STUDENTS = {"digits": f"two linear heads of width {WIDTH}", "snli": "two residual linear heads of width 64"}
N_PAIRS = {"digits": 1000, "snli": 700}
DELTA = {"digits": 3.0, "snli": 100.0}
LABELS = {
    "exact": "ECIF, exact",
    "exact_relative": "ECIF, exact, relative to own gradient",
    "first_order": "ECIF, first order",
    "positive_only": "positive part only",
    "tracin": "TracIn-like, 3 checkpoints",
    "loss": "loss",
    "self_confidence": "self-confidence",
    "similarity": "similarity",
    "random": "random",
    "none": "no removal",
}
METRICS = ("auroc", "precision_at_k", "accuracy")
RIVALS = ("similarity", "random", "none")

Run = dict[str, Any]


class Heads(nn.Module):
    """A linear projection of frozen features for each side: x A, or x (I + A) where the features match already."""

    def __init__(self, wide_a: int, wide_b: int, residual: bool, generator: torch.Generator) -> None:
        super().__init__()
        width = wide_a if residual else WIDTH
        start = 0.0 if residual else 1.0
        self.I = torch.eye(width) if residual else torch.zeros(())
        self.A = nn.Parameter(start * torch.randn(wide_a, width, generator=generator) / math.sqrt(wide_a))
        self.B = nn.Parameter(start * torch.randn(wide_b, width, generator=generator) / math.sqrt(wide_b))

    def encode_a(self, items: Tensor) -> Tensor:
        """(n, width)."""
        return items @ (self.I + self.A)

    def encode_b(self, items: Tensor) -> Tensor:
        """(n, width)."""
        return items @ (self.I + self.B)


@dataclass(frozen=True)
class Pairs:
    """Features of the searched pairs, of clean queries, and of the test: test_a[i] belongs to choices[answer[i]]."""

    a: Tensor
    b: Tensor
    planted: Tensor
    query_a: Tensor
    query_b: Tensor
    test_a: Tensor
    choices: Tensor
    answer: Tensor


Features = dict[str, tuple[Tensor, Tensor]]


def main() -> None:
    """Run what is missing, then write the records and the tables."""
    parser = argparse.ArgumentParser(description="ECIF on pairs of which some were shuffled.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the real data sets")
    parser.add_argument("--encoder", type=Path, default=None, help="folder of all-MiniLM-L6-v2; without it no SNLI")
    parser.add_argument("--runs", type=int, default=None, help="run at most so many; 0 only writes the results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    log = RESULTS / "ecif-runs.jsonl"
    runs = read_log(log)
    done = {(run["setting"], run["share"], run["seed"]) for run in runs}
    settings = SETTINGS if given.encoder else ("digits",)
    planned = [(setting, share, seed) for setting in settings for seed in SEEDS for share in SHARES]
    for setting, share, seed in [run for run in planned if run not in done][: given.runs]:
        features = digits(given.data) if setting == "digits" else snli(given.data, given.encoder)
        started = time.perf_counter()
        run = {"setting": setting, "share": share, "seed": seed, **one_run(setting, features, share, seed)}
        run["seconds"] = round(time.perf_counter() - started, 1)
        append_log(log, run)
        runs.append(run)
        print(f"{setting}, {share}, seed {seed}: {run['methods']['exact']}, {run['seconds']} s", flush=True)
    records = collect(runs)
    write_lines(RESULTS / "ecif.json", [json.dumps(records, indent=1, allow_nan=False)])
    page = RESULTS / "ecif.md"
    write_between_marks(page, BEGIN, END, tables(records))


def read(path: Path) -> list[Run]:
    """The rows of a gzipped file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def digits(data: Path) -> Features:
    """Pixels / 16 (N, 64) and a 1, and the words of the captions (N, V)."""
    rows = {split: read(data / "pairs" / "digits_captions" / f"{split}.jsonl.gz") for split in ("train", "test")}
    words = sorted({word for found in rows.values() for row in found for word in row["caption"].split()})
    features: Features = {}
    for split, found in rows.items():
        pixels = torch.tensor([[*row["image"], 16.0] for row in found]) / 16
        bag = torch.tensor([[float(word in row["caption"].split()) for word in words] for row in found])
        features[split] = (pixels, bag)
    return features


def snli(data: Path, encoder: Path) -> Features:
    """Frozen features of the first entailment pair of each caption: 64 main axes of the first items, centred."""
    encoded = encode_snli(data, encoder)
    middle = encoded["train"][0].mean(0)
    axes = torch.linalg.svd(encoded["train"][0] - middle, full_matrices=False)[2][:64].T
    return {s: (F.normalize((a - middle) @ axes), F.normalize((b - middle) @ axes)) for s, (a, b) in encoded.items()}


def encode_snli(data: Path, encoder: Path) -> Features:
    """Sentence embeddings (N, 384) of these pairs, computed once and kept."""
    name = hashlib.sha256(f"{data.resolve()} {encoder.resolve()}".encode()).hexdigest()[:16]
    cache = Path(tempfile.gettempdir()) / f"isodistill-snli-{name}.safetensors"
    if cache.is_file():
        cached = load_file(cache)
        return {split: (cached[f"{split}/a"], cached[f"{split}/b"]) for split in {key.split("/")[0] for key in cached}}
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()

    @torch.no_grad()
    def encode(texts: list[str]) -> Tensor:
        parts = []
        for start in range(0, len(texts), 64):
            batch = tokenizer(texts[start : start + 64], padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"][..., None].float()
            parts.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
        return F.normalize(torch.cat(parts), dim=-1)

    features: Features = {}
    for split, name in {"train": "dev", "test": "test"}.items():
        rows = read(data / "pairs" / "snli_pairs" / f"{name}.jsonl.gz")
        first = {row["anchor"]: row for row in reversed(rows) if row["label"] == "entailment"}
        a, b = (encode([row[side] for row in first.values()]) for side in ("text_a", "text_b"))
        features[split] = (a, b)
    save_file(
        {f"{split}/{side}": x for split, pair in features.items() for side, x in zip("ab", pair, strict=True)}, cache
    )
    return features


def drawn(setting: str, features: Features, share: float, seed: int) -> Pairs:
    """The seed draws which rows are pairs and which queries, and which second items are passed on in a ring."""
    generator = torch.Generator().manual_seed(seed)
    (a, b), (test_a, test_b) = features["train"], features["test"]
    order, n = torch.randperm(len(a), generator=generator), N_PAIRS[setting]
    rows, queries = order[:n], order[n:]
    ring = torch.randperm(n, generator=generator)[: round(share * n)]
    shuffled = b[rows].clone()
    shuffled[ring] = b[rows][ring.roll(1)]
    planted = (shuffled != b[rows]).any(1)
    choices, answer = test_b.unique(dim=0, return_inverse=True)
    return Pairs(a[rows], shuffled, planted, a[queries], b[queries], test_a, choices, answer)


def fit(pairs: Pairs, segments: list[Tensor], setting: str, seed: int) -> tuple[Heads, list[Tensor]]:
    """Heads at the minimum of the summed loss + (delta / 2) norm^2 over the recorded batches, and three checkpoints."""
    generator, delta = torch.Generator().manual_seed(seed), DELTA[setting]
    heads = Heads(pairs.a.shape[1], pairs.b.shape[1], setting == "snli", generator)
    optimizer = torch.optim.LBFGS(heads.parameters(), max_iter=40, history_size=20, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        u = F.normalize(heads.encode_a(pairs.a), dim=-1)
        v = F.normalize(heads.encode_b(pairs.b), dim=-1)
        loss = delta / 2 * (heads.A.square().sum() + heads.B.square().sum())
        for batch in segments:
            S = u[batch] @ v[batch].T / TEMPERATURE
            loss = loss + (S.logsumexp(0) + S.logsumexp(1) - 2 * S.diagonal()).sum()
        loss.backward()
        return loss

    checkpoints = []
    for _ in range(3):
        optimizer.step(closure)
        checkpoints.append(torch.cat([p.detach().reshape(-1) for p in heads.parameters()]))
    return heads, checkpoints


def positive_part(influence: Influence, direction: Tensor, theta: Tensor) -> Tensor:
    """<grad of the pair's own two loss terms, direction> at theta, (N,)."""
    scores = torch.zeros(len(influence.a))
    for batch in influence.segments:
        terms = jvp(lambda t, batch=batch: own_loss(influence.batch_logits(t, batch)), (theta,), (direction,))[1]
        scores[batch] += terms
    return scores


def own_loss(S: Tensor) -> Tensor:
    """lse_j S_nj + lse_j S_jn - 2 S_nn, (N,)."""
    return S.logsumexp(0) + S.logsumexp(1) - 2 * S.diagonal()


def scores_of(influence: Influence, pairs: Pairs, q: Tensor, checkpoints: list[Tensor], seed: int) -> dict[str, Tensor]:
    """Method -> score of every pair, the lowest are called the worst; q = H^-1 grad L(queries)."""
    similarity, confidence, loss = (torch.zeros(len(pairs.a)) for _ in range(3))
    sizes = torch.zeros(len(pairs.a), dtype=torch.float64)
    for batch in influence.segments:
        S = influence.batch_logits(influence.theta, batch)
        similarity[batch], loss[batch] = S.diagonal(), own_loss(S)
        confidence[batch] = S.softmax(0).diagonal() + S.softmax(1).diagonal()
    for n in range(len(pairs.a)):
        alone = torch.zeros(len(pairs.a), dtype=torch.bool)
        alone[n] = True
        sizes[n] = influence.removal_gradient(alone).norm()
    tracin = torch.zeros(len(pairs.a))
    for theta in checkpoints:
        influence.theta = theta  # the last checkpoint is the fit itself
        tracin += positive_part(influence, influence.query_gradient(pairs.query_a, pairs.query_b), theta)
    exact = influence.score_all(q)
    return {
        "exact": exact,
        "exact_relative": exact / (sizes + 1e-12),
        "first_order": influence.score_all(q, "first_order"),
        "positive_only": positive_part(influence, q, influence.theta),
        "tracin": tracin,
        "loss": -loss,
        "self_confidence": confidence,
        "similarity": similarity,
        "random": torch.rand(len(pairs.a), generator=torch.Generator().manual_seed(seed + 1000)),
    }


def one_run(setting: str, features: Features, share: float, seed: int) -> Run:
    """Fit, score, and for each score the fit without the worst tenth: AUROC, precision at k, accuracy."""
    pairs, delta = drawn(setting, features, share, seed), DELTA[setting]
    segments = segment(len(pairs.a), BATCH, seed)
    heads, checkpoints = fit(pairs, segments, setting, seed)
    influence = Influence(heads, ["A", "B"], pairs.a, pairs.b, segments, temperature=TEMPERATURE, delta=delta)
    solution = influence.inverse_product(influence.query_gradient(pairs.query_a, pairs.query_b), max_steps=400)
    methods: dict[str, dict[str, float]] = {"none": {"accuracy": accuracy(heads, pairs)}}
    k, dropped = int(pairs.planted.sum()), round(DROPPED * len(pairs.a))
    for method, scores in scores_of(influence, pairs, solution.q, checkpoints, seed).items():
        worst = scores.argsort()
        kept = torch.ones(len(pairs.a), dtype=torch.bool)
        kept[worst[:dropped]] = False
        again, _ = fit(pairs, [batch[kept[batch]] for batch in segments], setting, seed)
        methods[method] = {
            "auroc": auroc(-scores, pairs.planted),
            "precision_at_k": float(pairs.planted[worst[:k]].double().mean()),
            "accuracy": accuracy(again, pairs),
        }
    return {"planted": k, "residual": round(solution.residual, 6), "methods": methods}


def auroc(scores: Tensor, positive: Tensor) -> float:
    """Share of (planted, other) pairs in which the planted one scores higher; ties count half."""
    ranks, n = rankdata(scores.double().numpy()), int(positive.sum())
    return float((ranks[positive.numpy()].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


@torch.no_grad()
def accuracy(heads: Heads, pairs: Pairs) -> float:
    """Share of the test items whose nearest choice is their own."""
    u, v = (F.normalize(x, dim=-1) for x in (heads.encode_a(pairs.test_a), heads.encode_b(pairs.choices)))
    return float(((u @ v.T).argmax(1) == pairs.answer).double().mean())


def collect(runs: list[Run]) -> list[Run]:
    """One record per setting, share, method and metric; differences are paired by seed."""
    records = []
    for setting, share in [(setting, share) for setting in SETTINGS for share in SHARES]:
        found = {run["seed"]: run["methods"] for run in runs if (run["setting"], run["share"]) == (setting, share)}
        for method in LABELS if found else ():
            metrics = METRICS if method != "none" else ("accuracy",)
            records += [record(setting, share, method, metric, found) for metric in metrics]
    return records


def record(setting: str, share: float, method: str, metric: str, found: dict[int, Run]) -> Run:
    """One metric of a method over seeds, with its differences to the rivals."""
    values = {seed: found[seed][method][metric] for seed in sorted(found)}
    differences = {}
    for rival in RIVALS:
        if rival != method and (rival != "none" or metric == "accuracy") and len(values) >= 3:
            differences[rival] = paired_interval([values[seed] - found[seed][rival][metric] for seed in values])
    mean, sd = mean_sd(list(values.values()))
    return {
        "setting": f"{SETTINGS[setting]}, {share:.0%} shuffled",
        "student": STUDENTS[setting],
        "method": method,
        "metric": metric,
        "mean": round(mean, 6),
        "sd": None if math.isnan(sd) else round(sd, 6),
        "seeds": [round(value, 6) for value in values.values()],
        "diff_to": differences,
        "command": "python studies/ecif.py --data FOLDER --encoder FOLDER",
    }


def tables(records: list[Run]) -> str:
    """A table for each setting and share, one row per method."""
    lines: list[str] = []
    for label in dict.fromkeys(r["setting"] for r in records):
        found = {(r["method"], r["metric"]): r for r in records if r["setting"] == label}
        lines += [
            "",
            f"### {label[0].upper()}{label[1:]} ({len(found['random', 'auroc']['seeds'])} seeds)",
            "",
            "| method | AUROC | above similarity by | above random by | precision at k | accuracy without worst tenth "
            "| above random removal by | above no removal by |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for method, name in LABELS.items():
            ranked, kept = found.get((method, "auroc")), found[method, "accuracy"]
            cells = [spread(ranked), *(difference(ranked, r) for r in ("similarity", "random"))]
            cells += [spread(found.get((method, "precision_at_k"))), spread(kept)]
            cells += [difference(kept, r) for r in ("random", "none")]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines).strip()


def spread(record: Run | None) -> str:
    """Mean and standard deviation; a dash where there is none."""
    if record is None:
        return "-"
    return f"{record['mean']:.3f}" + ("" if record["sd"] is None else f" ± {record['sd']:.3f}")


def difference(record: Run | None, rival: str) -> str:
    """A paired difference with its interval; a dash where there is none."""
    if record is None or rival not in record["diff_to"]:
        return "-"
    mean, low, high = record["diff_to"][rival]
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


if __name__ == "__main__":
    main()
