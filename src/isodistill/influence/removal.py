"""What a model gains when the pairs that a ranking calls the worst are left out: it is fitted anew without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor
from tqdm.auto import tqdm

from isodistill.influence.ecif import Influence, Items
from isodistill.influence.heads import Epochs, leave_out
from isodistill.influence.trace import retrieve

__all__ = ["SHARES", "Curve", "Refit", "removal_curve"]

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3)

Refit = Callable[[Epochs], Influence]
"""Fits a model from its start to given batches."""


@dataclass(frozen=True)
class Curve:
    """At each of ``SHARES``: the mean loss of the queries, and the share of them that finds its own second item."""

    loss: list[float]
    accuracy: list[float]


def removal_curve(
    fit: Refit,
    epochs: Epochs,
    orders: Mapping[str, Tensor],
    query_a: Items,
    query_b: Items,
    same: Tensor,
) -> dict[str, Curve]:
    """Leave the first pairs of each order out of the batches, fit anew from the same start, and look the queries up.

    Costs a fit for each share above 0 of each order, and one; a bar counts them. All fits see the same batches but for
    the pairs that are left out.

    Args:
        fit: of the model.
        epochs: the batches of a fit to all pairs that the orders name.
        orders: name -> these pairs, by number, the worst first.
        query_a: first items of pairs that had no say in the orders.
        query_b: second items.
        same: (n,), equal numbers for equal second items, any of which is a right answer.
    """
    n_fits = 1 + (len(SHARES) - 1) * len(orders)
    with tqdm(total=n_fits, desc="removal curve, fits") as bar:

        def judge(given: Epochs) -> tuple[float, float]:
            found = retrieve(fit(given), query_a, query_b)
            bar.update()
            return float(found.loss.mean()), float((same[found.chosen] == same).double().mean())

        whole, curves = judge(epochs), {}
        for name, order in orders.items():
            points = [whole, *(judge(leave_out(epochs, order[: round(share * len(order))])) for share in SHARES[1:])]
            curves[name] = Curve([loss for loss, _ in points], [accuracy for _, accuracy in points])
    return curves
