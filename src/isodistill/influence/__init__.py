"""Which training pairs of a contrastive model helped, and which harmed."""

from isodistill.influence.baselines import PlainScores, plain_scores, positive_part, tracin, trak
from isodistill.influence.ecif import DualEncoder, Influence, segment
from isodistill.influence.fisher import EigenFactors, Factors, ProjectedFisher
from isodistill.influence.heads import Fit, ProjectionHeads, Suspicion, change_norms, fit_heads, suspect
from isodistill.influence.segments import BatchRecorder, Segment, read_segments, write_segments
from isodistill.influence.solvers import SOLVERS, Solution, solve, solve_by_factors

__all__ = [
    "SOLVERS",
    "BatchRecorder",
    "DualEncoder",
    "EigenFactors",
    "Factors",
    "Fit",
    "Influence",
    "PlainScores",
    "ProjectedFisher",
    "ProjectionHeads",
    "Segment",
    "Solution",
    "Suspicion",
    "change_norms",
    "fit_heads",
    "plain_scores",
    "positive_part",
    "read_segments",
    "segment",
    "solve",
    "solve_by_factors",
    "suspect",
    "tracin",
    "trak",
    "write_segments",
]
