"""What protects earlier skills while a student is distilled in stages."""

from __future__ import annotations

from collections.abc import Callable

from isodistill.guards.angular import Angular
from isodistill.guards.base import Guard, NoGuard, StageEnd
from isodistill.guards.drift import Nodes, drift_summary, node_groups
from isodistill.guards.ewc import EWC
from isodistill.guards.l2 import L2
from isodistill.guards.lwf import LwF
from isodistill.guards.o_lora import OLoRA
from isodistill.guards.replay import Replay
from isodistill.guards.si import SI

__all__ = [
    "EWC",
    "GUARDS",
    "L2",
    "SI",
    "Angular",
    "Guard",
    "LwF",
    "NoGuard",
    "Nodes",
    "OLoRA",
    "Replay",
    "StageEnd",
    "drift_summary",
    "node_groups",
]

GUARDS: dict[str, Callable[..., Guard]] = {
    "none": NoGuard,
    "angular": Angular,
    "l2": L2,
    "ewc": EWC,
    "si": SI,
    "lwf": LwF,
    "o_lora": OLoRA,
    "replay": Replay,
}
