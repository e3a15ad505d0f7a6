"""Tracing a misprediction back: wrong pairs are planted beside a test item, and looked for when it is mispredicted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from ecif_data import BATCH, Features, Heads, Pairs, drawn, fit, influence_of, predictions
from ecif_edit import solved
from torch import Tensor
from torch.nn import functional as F

from isodistill.influence import Factors, Influence, plain_scores, positive_part, segment, trak

TARGETS, RIGHT = 8, 3
WRONG = {"digits": 12, "snli": 24}
NOISE = {"digits": 0.05, "snli": 0.04}
"""Standard deviation of what is added to each feature of a planted first item."""


def trace_back(setting: str, features: Features, share: float, seed: int) -> dict[str, Any]:
    """Method -> share of the planted wrong pairs among as many of the lowest scores, and of predictions then cured.

    Eight test items that a model of clean pairs gets right; for each, 12 (SNLI 24) noisy copies are planted with one
    wrong second item, and three with the right one. Those that are mispredicted now are traced.
    """
    clean = drawn(setting, features, share, seed)
    heads, _ = fit(clean, segment(len(clean.a), BATCH, seed), setting, seed)
    right = (predictions(heads, clean) == clean.answer).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed + 500)
    targets = right[torch.randperm(len(right), generator=generator)[:TARGETS]].tolist()
    pairs, cause = plant(clean, targets, setting, generator)
    segments = segment(len(pairs.a), BATCH, seed)
    heads, _ = fit(pairs, segments, setting, seed)
    influence = influence_of(heads, pairs, segments, setting)
    factors, now = influence.factors("ekfac"), predictions(heads, pairs)
    norms = norms_of_changes(influence, factors, seed)
    missed = [number for number, t in enumerate(targets) if now[t] != pairs.answer[t]]
    hits: dict[str, list[float]] = {}
    cured: dict[str, list[float]] = {}
    for number in missed:
        t = targets[number]
        for method, scores in looks(influence, pairs, heads, factors, norms, t, seed).items():
            worst = scores.argsort()[: WRONG[setting]]
            hits.setdefault(method, []).append(float((cause[worst] == number).double().mean()))
            kept = torch.ones(len(pairs.a), dtype=torch.bool)
            kept[worst] = False
            again, _ = fit(pairs, [batch[kept[batch]] for batch in segments], setting, seed, start=heads)
            cured.setdefault(method, []).append(float(predictions(again, pairs)[t] == pairs.answer[t]))
    mean = {name: {m: sum(x) / len(missed) for m, x in of.items()} for name, of in (("hits", hits), ("cured", cured))}
    methods = {m: {name: of[m] for name, of in mean.items()} for m in hits}
    return {"targets": len(targets), "mispredicted": len(missed), "methods": methods}


def norms_of_changes(influence: Influence, factors: Factors, seed: int, n_probes: int = 64) -> Tensor:
    """norm(dtheta(n)) of every pair, H inverted by EK-FAC: sqrt of the mean of <H^-1 z, g_n>^2 over z ~ N(0, I)."""
    generator, total = torch.Generator().manual_seed(seed), torch.zeros(len(influence.a), dtype=torch.float64)
    for _ in range(n_probes):
        z = torch.randn(influence.theta.shape, generator=generator)
        total += influence.score_all(factors.inverse(z, influence.delta)).square()
    return (total / n_probes).sqrt() + 1e-12


def plant(clean: Pairs, targets: list[int], setting: str, generator: torch.Generator) -> tuple[Pairs, Tensor]:
    """The pairs with the planted ones after them; for each pair the number of its target, -1 for all but the wrong."""
    a, b, cause = [clean.a], [clean.b], [torch.full((len(clean.a),), -1)]
    for number, t in enumerate(targets):
        a.append(
            clean.test_a[t]
            + NOISE[setting] * torch.randn(WRONG[setting] + RIGHT, clean.a.shape[1], generator=generator)
        )
        other = int(torch.randint(len(clean.choices) - 1, (), generator=generator))
        other += other >= int(clean.answer[t])
        b += [clean.choices[other].expand(WRONG[setting], -1), clean.choices[clean.answer[t]].expand(RIGHT, -1)]
        cause += [torch.full((WRONG[setting],), number), torch.full((RIGHT,), -1)]
    return replace(clean, a=torch.cat(a), b=torch.cat(b)), torch.cat(cause)


def looks(
    influence: Influence, pairs: Pairs, heads: Heads, factors: Factors, norms: Tensor, t: int, seed: int
) -> dict[str, Tensor]:
    """Method -> score of every pair as a cause of the prediction of test item t, the lowest first."""
    answer = int(pairs.answer[t])
    order = torch.cat([torch.tensor([answer]), (torch.arange(len(pairs.choices)) != answer).nonzero()[:, 0]])
    query = pairs.test_a[t : t + 1], pairs.choices[order]
    g = influence.query_gradient(*query)
    q, rough = solved(influence, g, factors).q, influence.inverse_product(g, factors).q
    exact = influence.score_all(q)
    with torch.no_grad():
        near = F.cosine_similarity(heads.encode_a(pairs.a), heads.encode_a(query[0]))
    return {
        "exact": exact,
        "relative": exact / norms,
        "positive_only": positive_part(influence, q),
        "ekfac_positive": positive_part(influence, rough),
        "trak": trak(influence, *query, seed=seed),
        "nearest": -near.double(),
        "loss": plain_scores(influence).loss,
        "random": torch.rand(len(pairs.a), generator=torch.Generator().manual_seed(seed + 1000)),
    }
