"""Isomer sets: made from structures and domains, proved from their texts, or imported from real data."""

from __future__ import annotations

from isodistill.isomers.check import CheckReport, Rejection, check_sets
from isodistill.isomers.cues import CUE_RANDOM, Cue, with_cues
from isodistill.isomers.family import DOMAINS, HELD_OUT_DOMAINS, TRAIN_DOMAINS
from isodistill.isomers.generate import FAMILIES, generate_sets
from isodistill.isomers.real import SOURCES, import_groups

__all__ = [
    "CUE_RANDOM",
    "DOMAINS",
    "FAMILIES",
    "HELD_OUT_DOMAINS",
    "SOURCES",
    "TRAIN_DOMAINS",
    "CheckReport",
    "Cue",
    "Rejection",
    "check_sets",
    "generate_sets",
    "import_groups",
    "with_cues",
]
