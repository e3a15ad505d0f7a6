"""Isomer sets from a user's own problems: a teacher rewrites them, and what it wrote is read back before it counts."""

from __future__ import annotations

from isodistill.isomers.rewrite.asking import Ask, Desk
from isodistill.isomers.rewrite.prompts import Prompts, load_prompts
from isodistill.isomers.rewrite.rounds import Attempt, Rewriting, rewrite_problems
from isodistill.isomers.rewrite.structure import Structure, difference, read_structure

__all__ = [
    "Ask",
    "Attempt",
    "Desk",
    "Prompts",
    "Rewriting",
    "Structure",
    "difference",
    "load_prompts",
    "read_structure",
    "rewrite_problems",
]
