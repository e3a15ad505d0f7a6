"""What an audit finds beside the ranking: planted pairs, what leaving pairs out gains, the pairs behind a mistake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from scipy.stats import rankdata
from torch import Tensor

from isodistill.data.pairs import Pair
from isodistill.errors import UserError
from isodistill.influence import (
    SHARES,
    Fit,
    Influence,
    Suspicion,
    Trace,
    fit_heads,
    removal_curve,
    retrieve,
    trace_back,
)
from isodistill.pipeline.pair_features import Features

__all__ = ["explain_query", "planted_findings", "removal_findings"]

_N_BEHIND = 10
_RANDOM_ORDERS = 3


def planted_findings(pairs: Sequence[Pair], found: Suspicion) -> dict[str, Any] | None:
    """How well each score finds the pairs that are known to be wrong; None where no row says so, or all say the same.

    Returns:
        Their number, and per score ``auroc`` and ``precision`` among as many of the lowest (of the loss: the highest).
    """
    known = [n for n, pair in enumerate(pairs) if pair.planted is not None]
    planted = torch.tensor([bool(pairs[n].planted) for n in known])
    k = int(planted.sum())
    if not 0 < k < len(known):
        return None
    scores = {"score": found.influence, "relative": found.relative}
    scores |= {"similarity": found.similarity, "loss": -found.loss}
    measured = {}
    for name, values in scores.items():
        ranks = torch.from_numpy(rankdata(-values[known].numpy()))
        measured[name] = {
            "auroc": float((ranks[planted].sum() - k * (k + 1) / 2) / (k * (len(known) - k))),
            "precision": float(planted[values[known].argsort(stable=True)[:k]].double().mean()),
        }
    return {"n_planted": k, "n_known": len(known), **measured}


def removal_findings(
    read: Features, asked: Features, influence: Influence, found: Suspicion, how: Fit
) -> dict[str, Any] | None:
    """The queries of one half rank the pairs, those of the other half judge the heads fitted without the worst.

    Returns:
        ``shares``, and per ranking (score, similarity, random: the mean of three) ``loss`` and ``accuracy`` at each;
        None for fewer than four queries.
    """
    if len(asked.pairs) < 4:
        return None
    generator = torch.Generator().manual_seed(how.seed)
    order = torch.randperm(len(asked.pairs), generator=generator)
    ranking, judging = order.chunk(2)
    q = influence.inverse_product(influence.query_gradient(asked.a[ranking], asked.b[ranking])).q
    orders = {
        "score": [influence.score_all(q).argsort(stable=True)],
        "similarity": [found.similarity.argsort(stable=True)],
        "random": [torch.randperm(len(read.pairs), generator=generator) for _ in range(_RANDOM_ORDERS)],
    }
    same = _same(asked.pairs)[judging]
    curves = removal_curve(read.a, read.b, orders, asked.a[judging], asked.b[judging], same, how)
    return {
        "n_ranking": len(ranking),
        "n_judging": len(judging),
        "shares": list(SHARES),
        **{name: asdict(curve) for name, curve in curves.items()},
    }


def explain_query(
    read: Features, asked: Features, influence: Influence, norms: Tensor, how: Fit, query: str | None
) -> dict[str, Any]:
    """Trace one query back to the pairs that most raised its loss, and fit the heads anew without these.

    Args:
        read: the pairs.
        asked: the queries.
        influence: the fitted heads.
        norms: of the parameter changes.
        how: the settings of the heads.
        query: an id; None takes the mistake with the highest loss.

    Returns:
        ``mistakes``: ids of the queries whose nearest second item is another's; ``query``: what was traced, or None.

    Raises:
        UserError: the query could not be read.
    """
    found, same = retrieve(influence, asked.a, asked.b), _same(asked.pairs)
    wrong = same[found.chosen] != same
    result: dict[str, Any] = {"mistakes": [pair.id for pair, bad in zip(asked.pairs, wrong, strict=True) if bad]}
    if query is None and not wrong.any():
        return result | {"query": None}
    if query is None:
        index = int(torch.where(wrong, found.loss, -torch.inf).argmax())
    else:
        index = next((n for n, pair in enumerate(asked.pairs) if pair.id == query), -1)
    if index < 0:
        raise UserError(f"The query {query!r} of --explain could not be read: its line is in the list of such rows.")
    traced = trace_back(influence, asked.a, asked.b, index, norms)
    order = traced.relative.argsort(stable=True)
    first = order[: min(_N_BEHIND, len(order) - 2)]  # a fit needs two pairs
    behind = first[traced.influence[first] < 0]
    shown = asked.pairs[index]
    others = torch.randperm(len(read.pairs), generator=torch.Generator().manual_seed(how.seed))[: len(behind)]
    return result | {
        "query": {"id": shown.id, "line": shown.line, "a": shown.a, "b": shown.b},
        "wrong": bool(wrong[index]),
        "chosen": asked.pairs[int(found.chosen[index])].b,
        "loss": float(found.loss[index]),
        "residual": traced.residual,
        "behind": _lines(read.pairs, traced, behind),
        "supporting": _lines(read.pairs, traced, order.flip(0)[: _N_BEHIND // 2]),
        "predicted_loss": float(found.loss[index] + traced.influence[behind].sum()),
        "without": _fitted_without(behind, read, asked, same, index, how),
        "without_random": _fitted_without(others, read, asked, same, index, how),
    }


def _lines(pairs: Sequence[Pair], traced: Trace, chosen: Tensor) -> list[dict[str, Any]]:
    return [
        {"id": pairs[n].id, "line": pairs[n].line, "a": pairs[n].a, "b": pairs[n].b, "planted": pairs[n].planted}
        | {"relative": float(traced.relative[n]), "influence": float(traced.influence[n])}
        for n in chosen.tolist()
    ]


def _fitted_without(
    removed: Tensor, read: Features, asked: Features, same: Tensor, index: int, how: Fit
) -> dict[str, Any]:
    """The loss and the answer of one query after a fit without some pairs."""
    kept = torch.ones(len(read.pairs), dtype=torch.bool)
    kept[removed] = False
    again = retrieve(fit_heads(read.a[kept], read.b[kept], how), asked.a, asked.b)
    chosen = int(again.chosen[index])
    right = bool(same[chosen] == same[index])
    return {"loss": float(again.loss[index]), "chosen": asked.pairs[chosen].b, "right": right}


def _same(pairs: Sequence[Pair]) -> Tensor:
    """(n,): equal numbers for equal second items."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(pair.key[1], len(numbers)) for pair in pairs])
