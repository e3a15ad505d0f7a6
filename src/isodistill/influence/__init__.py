"""Which training pairs of a contrastive model helped, and which harmed."""

from isodistill.influence.ecif import DualEncoder, Influence, segment
from isodistill.influence.heads import Fit, ProjectionHeads, fit_encoder, fit_heads
from isodistill.influence.removal import SHARES, Curve, removal_curve
from isodistill.influence.sets import SET_FIT, Belonging, belonging, centred
from isodistill.influence.solvers import SOLVERS, Solution, solve
from isodistill.influence.suspicion import Suspicion, change_norms, suspect
from isodistill.influence.trace import Retrieval, Trace, retrieve, trace_back

__all__ = [
    "SET_FIT",
    "SHARES",
    "SOLVERS",
    "Belonging",
    "Curve",
    "DualEncoder",
    "Fit",
    "Influence",
    "ProjectionHeads",
    "Retrieval",
    "Solution",
    "Suspicion",
    "Trace",
    "belonging",
    "centred",
    "change_norms",
    "fit_encoder",
    "fit_heads",
    "removal_curve",
    "retrieve",
    "segment",
    "solve",
    "suspect",
    "trace_back",
]
