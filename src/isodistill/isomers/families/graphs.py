"""Directed graphs of two chains: the shapes behind inclusion and reachability."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from itertools import pairwise
from typing import TypeAlias

__all__ = ["LAYOUTS", "Edge", "path", "reachable", "two_chains"]

Edge: TypeAlias = tuple[int, int]

LAYOUTS = ("apart", "in", "out")


def two_chains(layout: str, depth: int, side: int, connected: bool, rng: random.Random) -> tuple[list[Edge], Edge]:
    """A main chain 0 -> ... -> depth, a side chain of ``side`` edges after it in number, and a pair to ask for.

    Layouts: ``apart`` leaves the chains unconnected, ``in`` leads from the side chain into the main one, ``out`` from
    the main chain to the side one. Connected or not, the pair begins at the start of a chain and stops at the end of
    one, and both its nodes have one edge each, so that counting mentions does not give the answer away.

    Returns:
        (edges, (start, goal)), the goal ``depth`` edges away from the start if ``connected``, else not reachable.
    """
    main, aside = list(range(depth + 1)), list(range(depth + 1, depth + side + 2))
    edges = [*pairwise(main), *pairwise(aside)]
    if layout == "in":
        edges.append((rng.choice(aside[:-1]), rng.choice(main[1:-1])))
    elif layout == "out":
        edges.append((rng.choice(main[1:-1]), rng.choice(aside[1:])))
    if connected:
        return edges, (main[0], main[-1])
    pairs = {"in": [(main[0], aside[-1])], "out": [(aside[0], main[-1])]}
    return edges, rng.choice(pairs.get(layout, [(main[0], aside[-1]), (aside[0], main[-1])]))


def reachable(edges: Iterable[Edge], start: int) -> list[Edge]:
    """The edges that lead from the start to each further node, nearest first; one edge per node."""
    edges = list(edges)
    tree: list[Edge] = []
    seen = [start]
    for node in seen:
        for a, b in edges:
            if a == node and b not in seen:
                seen.append(b)
                tree.append((a, b))
    return tree


def path(edges: Iterable[Edge], start: int, goals: Collection[int]) -> list[Edge] | None:
    """A shortest path from the start to the nearest goal, as edges; empty at a goal, None if there is none."""
    tree = {b: (a, b) for a, b in reachable(edges, start)}
    goal = next((node for node in [start, *tree] if node in goals), None)
    if goal is None:
        return None
    steps: list[Edge] = []
    while goal != start:
        steps.insert(0, tree[goal])
        goal = tree[goal][0]
    return steps
