"""Which training pairs of a contrastive model helped, and which harmed."""

from isodistill.influence.baselines import PlainScores, plain_scores, positive_part, tracin, trak
from isodistill.influence.ecif import DualEncoder, Influence, segment
from isodistill.influence.fisher import EigenFactors, Factors, ProjectedFisher
from isodistill.influence.heads import Fit, ProjectionHeads, fit_encoder, fit_heads
from isodistill.influence.removal import SHARES, Curve, removal_curve
from isodistill.influence.segments import BatchRecorder, Segment, read_segments, write_segments
from isodistill.influence.sets import SET_FIT, Belonging, belonging, centred
from isodistill.influence.solvers import SOLVERS, Solution, solve, solve_by_factors
from isodistill.influence.suspicion import Suspicion, change_norms, suspect
from isodistill.influence.trace import Retrieval, Trace, retrieve, trace_back

__all__ = [
    "SET_FIT",
    "SHARES",
    "SOLVERS",
    "BatchRecorder",
    "Belonging",
    "Curve",
    "DualEncoder",
    "EigenFactors",
    "Factors",
    "Fit",
    "Influence",
    "PlainScores",
    "ProjectedFisher",
    "ProjectionHeads",
    "Retrieval",
    "Segment",
    "Solution",
    "Suspicion",
    "Trace",
    "belonging",
    "centred",
    "change_norms",
    "fit_encoder",
    "fit_heads",
    "plain_scores",
    "positive_part",
    "read_segments",
    "removal_curve",
    "retrieve",
    "segment",
    "solve",
    "solve_by_factors",
    "suspect",
    "trace_back",
    "tracin",
    "trak",
    "write_segments",
]
