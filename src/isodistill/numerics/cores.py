"""Many small independent computations on the cores of a CPU, one on each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["map_on_cores"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_on_cores(f: Callable[[Item], Result], items: Sequence[Item], device: torch.device) -> list[Result]:
    """f of every item, in their order, without a graph.

    torch shares single operations between its threads, which gains nothing where they are short: the tiles of 32
    layers took 140 ms on one thread, 143 ms on two, and 69 to 90 ms with a layer on each of two threads, as here. One
    after the other on one thread, or on an accelerator.

    Args:
        f: must not depend on the other items, nor on random numbers.
        items: what it is computed of.
        device: of the tensors.
    """
    threads = torch.get_num_threads()

    def one(item: Item) -> Result:
        with torch.no_grad():
            return f(item)

    if device.type != "cpu" or threads == 1 or len(items) < 2:
        return [one(item) for item in items]
    try:
        with ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1)) as pool:
            return list(pool.map(one, items))
    finally:
        torch.set_num_threads(threads)  # a thread that is started later would begin with one
