"""Which training pairs of a contrastive model helped, and which harmed."""

from isodistill.influence.ecif import DualEncoder, Influence, segment
from isodistill.influence.solvers import SOLVERS, Solution, solve

__all__ = ["SOLVERS", "DualEncoder", "Influence", "Solution", "segment", "solve"]
