"""Isomer sets from a user's own problems: a teacher rewrites them, and what it wrote is read back before it counts."""

from __future__ import annotations

from isodistill.isomers.rewrite.asking import Ask, asking
from isodistill.isomers.rewrite.rounds import Attempt, Rewriting, rewrite_problems
from isodistill.isomers.rewrite.structure import Structure, difference, read_structure

__all__ = [
    "Ask",
    "Attempt",
    "Rewriting",
    "Structure",
    "asking",
    "difference",
    "read_structure",
    "rewrite_problems",
]
