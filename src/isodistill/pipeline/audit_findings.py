"""What an audit finds beside the ranking: planted pairs, what leaving pairs out gains, the pairs behind a mistake."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from scipy.stats import rankdata
from torch import Tensor
from tqdm.auto import tqdm

from isodistill.data.pairs import Pair
from isodistill.errors import UserError
from isodistill.influence import (
    SHARES,
    TOLERANCE,
    Influence,
    Items,
    Suspicion,
    Trace,
    divide,
    leave_out,
    removal_curve,
    retrieve,
    trace_back,
)
from isodistill.pipeline.audit_model import AuditModel
from isodistill.pipeline.pair_features import Features

__all__ = ["explain_query", "planted_findings", "removal_findings"]

_N_BEHIND = 10


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
    model: AuditModel, asked: Features, influence: Influence, found: Suspicion, n_pairs: int
) -> dict[str, Any]:
    """The queries of one half rank the pairs, those of the other half judge fits without the worst.

    Args:
        model: what is fitted.
        asked: the queries, four or more.
        influence: the fit to all pairs.
        found: what is known of them.
        n_pairs: most pairs that are fitted; of more, so many are drawn, and keep the order that they have among all.

    Returns:
        ``shares``, and per ranking (score, similarity, random) ``loss`` and ``accuracy`` at each.
    """
    how, n = model.how, len(found.influence)
    generator = torch.Generator().manual_seed(how.seed)
    ranking, judging = torch.randperm(len(asked.pairs), generator=generator).chunk(2)
    g = influence.query_gradient(_take(model.query_a, ranking), _take(model.query_b, ranking))
    scores = influence.score_all(influence.inverse_product(g, tol=TOLERANCE).q)
    rows = torch.randperm(n, generator=generator)[:n_pairs].sort()[0]
    orders = {
        "score": rows[scores[rows].argsort(stable=True)],
        "similarity": rows[found.similarity[rows].argsort(stable=True)],
        "random": rows[torch.randperm(len(rows), generator=generator)],
    }
    same = _same(asked.pairs)[judging]
    judges = _take(model.query_a, judging), _take(model.query_b, judging)
    curves = removal_curve(model.fit, divide(rows, how), orders, *judges, same)
    return {
        "n_pairs": len(rows),
        "n_ranking": len(ranking),
        "n_judging": len(judging),
        "shares": list(SHARES),
        **{name: asdict(curve) for name, curve in curves.items()},
    }


def _take(items: Items, index: Tensor) -> Items:
    return items[index] if isinstance(items, Tensor) else [items[n] for n in index.tolist()]


def explain_query(
    model: AuditModel, read: Features, asked: Features, influence: Influence, norms: Tensor, query: str | None
) -> dict[str, Any]:
    """Trace one query back to the pairs that most raised its loss, and fit the model anew without these.

    Args:
        model: what is fitted.
        read: the pairs.
        asked: the queries.
        influence: the fit to all pairs.
        norms: of the parameter changes.
        query: an id; None takes the mistake with the highest loss.

    Returns:
        ``mistakes``: ids of the queries whose nearest second item is another's; ``query``: what was traced, or None.

    Raises:
        UserError: the query could not be read.
    """
    found, same = retrieve(influence, model.query_a, model.query_b), _same(asked.pairs)
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
    traced = trace_back(influence, model.query_a, model.query_b, index, norms)
    order = traced.relative.argsort(stable=True)
    first = order[: min(_N_BEHIND, len(order) - 2)]  # a fit needs two pairs
    behind = first[traced.influence[first] < 0]
    shown = asked.pairs[index]
    others = torch.randperm(len(order), generator=torch.Generator().manual_seed(model.how.seed))[: len(behind)]
    without, without_random = None, None
    if len(behind):
        without, without_random = _fitted_without(model, [behind, others], asked, same, index)
    return result | {
        "query": {"id": shown.id, "line": shown.line, "a": shown.a, "b": shown.b},
        "wrong": bool(wrong[index]),
        "chosen": asked.pairs[int(found.chosen[index])].b,
        "loss": float(found.loss[index]),
        "residual": traced.solution.residual,
        "converged": traced.solution.converged,
        "behind": _lines(read.pairs, traced, behind),
        "supporting": _lines(read.pairs, traced, order.flip(0)[: _N_BEHIND // 2]),
        "predicted_loss": float(found.loss[index] + traced.influence[behind].sum()),
        "without": without,
        "without_random": without_random,
    }


def _lines(pairs: Sequence[Pair], traced: Trace, chosen: Tensor) -> list[dict[str, Any]]:
    return [
        {"id": pairs[n].id, "line": pairs[n].line, "a": pairs[n].a, "b": pairs[n].b, "planted": pairs[n].planted}
        | {"relative": float(traced.relative[n]), "influence": float(traced.influence[n])}
        for n in chosen.tolist()
    ]


def _fitted_without(
    model: AuditModel, removed: Sequence[Tensor], asked: Features, same: Tensor, index: int
) -> list[dict[str, Any]]:
    """For each set of pairs the loss and the answer of one query after a fit without it, in batches else the same."""
    epochs, found = divide(torch.arange(len(model.a)), model.how), []
    for rows in tqdm(removed, desc="fits without the pairs behind the mistake"):
        again = retrieve(model.fit(leave_out(epochs, rows)), model.query_a, model.query_b)
        chosen = int(again.chosen[index])
        right = bool(same[chosen] == same[index])
        found.append({"loss": float(again.loss[index]), "chosen": asked.pairs[chosen].b, "right": right})
    return found


def _same(pairs: Sequence[Pair]) -> Tensor:
    """(n,): equal numbers for equal second items."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(pair.key[1], len(numbers)) for pair in pairs])
