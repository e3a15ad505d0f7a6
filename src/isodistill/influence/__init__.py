"""Which training pairs of a contrastive model helped, and which harmed."""

from isodistill.influence.baselines import PlainScores, plain_scores, positive_part, tracin, trak
from isodistill.influence.ecif import DualEncoder, Influence, Items, segment
from isodistill.influence.fisher import EigenFactors, Factors, ProjectedFisher
from isodistill.influence.heads import Epochs, Fit, ProjectionHeads, divide, fit_encoder, fit_heads, leave_out
from isodistill.influence.removal import SHARES, Curve, Refit, removal_curve
from isodistill.influence.segments import BatchRecorder, Segment, read_segments, write_segments
from isodistill.influence.sets import SET_FIT, Belonging, belonging, centred
from isodistill.influence.solvers import SOLVERS, Solution, Solutions, solve, solve_by_factors, solve_many
from isodistill.influence.suspicion import TOLERANCE, Norms, Suspicion, change_norms, suspect
from isodistill.influence.trace import Retrieval, Trace, retrieve, trace_back

__all__ = [
    "SET_FIT",
    "SHARES",
    "SOLVERS",
    "TOLERANCE",
    "BatchRecorder",
    "Belonging",
    "Curve",
    "DualEncoder",
    "EigenFactors",
    "Epochs",
    "Factors",
    "Fit",
    "Influence",
    "Items",
    "Norms",
    "PlainScores",
    "ProjectedFisher",
    "ProjectionHeads",
    "Refit",
    "Retrieval",
    "Segment",
    "Solution",
    "Solutions",
    "Suspicion",
    "Trace",
    "belonging",
    "centred",
    "change_norms",
    "divide",
    "fit_encoder",
    "fit_heads",
    "leave_out",
    "plain_scores",
    "positive_part",
    "read_segments",
    "removal_curve",
    "retrieve",
    "segment",
    "solve",
    "solve_by_factors",
    "solve_many",
    "suspect",
    "trace_back",
    "tracin",
    "trak",
    "write_segments",
]
