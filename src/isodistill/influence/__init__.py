"""Which training pairs of a contrastive model helped, and which harmed."""

from isodistill.influence.ecif import DualEncoder, Influence, segment
from isodistill.influence.heads import Fit, ProjectionHeads, Suspicion, change_norms, fit_heads, suspect
from isodistill.influence.solvers import SOLVERS, Solution, solve

__all__ = [
    "SOLVERS",
    "DualEncoder",
    "Fit",
    "Influence",
    "ProjectionHeads",
    "Solution",
    "Suspicion",
    "change_norms",
    "fit_heads",
    "segment",
    "solve",
    "suspect",
]
