"""How the losses of K domains become one update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from isodistill.alignment.and_mask import ANDMask
from isodistill.alignment.base import Alignment
from isodistill.alignment.cagrad import CAGrad
from isodistill.alignment.coral import CORAL
from isodistill.alignment.dann import DANN
from isodistill.alignment.erm import ERM, PooledERM
from isodistill.alignment.fish import Fish
from isodistill.alignment.fishr import Fishr
from isodistill.alignment.group_dro import GroupDRO
from isodistill.alignment.iga import InvariantGradientAlignment
from isodistill.alignment.iga2020 import IGA2020
from isodistill.alignment.irm import IRM
from isodistill.alignment.mldg import MLDG
from isodistill.alignment.pcgrad import PCGrad
from isodistill.alignment.penalised import Penalised, SeenTokens
from isodistill.alignment.sand_mask import SANDMask
from isodistill.alignment.upgrad import UPGrad
from isodistill.alignment.vrex import VREx

__all__ = [
    "ALIGNMENTS",
    "CORAL",
    "DANN",
    "ERM",
    "IGA2020",
    "IRM",
    "MLDG",
    "SEARCH",
    "ANDMask",
    "Alignment",
    "CAGrad",
    "Fish",
    "Fishr",
    "GroupDRO",
    "InvariantGradientAlignment",
    "PCGrad",
    "Penalised",
    "PooledERM",
    "SANDMask",
    "SeenTokens",
    "UPGrad",
    "VREx",
]

ALIGNMENTS: dict[str, Callable[..., Alignment]] = {
    "erm": ERM,
    "erm_pooled": PooledERM,
    "iga": InvariantGradientAlignment,
    "and_mask": ANDMask,
    "sand_mask": SANDMask,
    "pcgrad": PCGrad,
    "cagrad": CAGrad,
    "upgrad": UPGrad,
    "vrex": VREx,
    "group_dro": GroupDRO,
    "irm": IRM,
    "coral": CORAL,
    "dann": DANN,
    "fishr": Fishr,
    "fish": Fish,
    "mldg": MLDG,
    "iga2020": IGA2020,
}

SEARCH: dict[str, dict[str, list[Any]]] = {
    "iga": {"tau": [0.1, 0.3, 1.0, 3.0, 10.0]},
    "and_mask": {"t": [0.5, 0.75, 1.0]},
    "sand_mask": {"t": [0.0, 0.25, 0.5, 0.75], "k": [0.1, 1.0, 10.0, 100.0]},
    "cagrad": {"c": [0.1, 0.3, 0.5, 0.7, 0.9]},
    "vrex": {"lam": [0.1, 1.0, 10.0, 100.0, 1000.0], "anneal": [0.0, 0.1, 0.3]},
    "group_dro": {"eta": [0.001, 0.01, 0.1, 1.0]},
    "irm": {"lam": [0.1, 1.0, 10.0, 100.0, 1000.0], "anneal": [0.0, 0.1, 0.3]},
    "coral": {"lam": [0.1, 0.3, 1.0, 3.0, 10.0]},
    "dann": {"lam": [0.01, 0.1, 1.0, 10.0, 100.0]},
    "fish": {"meta_lr": [0.05, 0.1, 0.5]},
    "mldg": {"beta": [0.1, 0.3, 1.0, 3.0, 10.0], "n_test": [1, 2]},
    "iga2020": {"lam": [10.0, 100.0, 1000.0, 10000.0, 100000.0]},
    "fishr": {"lam": [0.01, 0.1, 1.0, 10.0, 100.0], "ema": [0.9, 0.95, 0.99]},
}
"""Values to search per option, around the defaults of the classes; methods that are not listed have nothing to tune."""
