"""Four named and versioned benchmarks of robust reasoning: real data in, rows of every split and a recipe out."""

from __future__ import annotations

from isodistill.benchmarks.base import Benchmark, write_benchmark
from isodistill.benchmarks.contexthub import CONTEXTHUB, CONTEXTHUB_CUE
from isodistill.benchmarks.deduction import DEDUCTION
from isodistill.benchmarks.fields import FIELDS
from isodistill.benchmarks.school_maths import SCHOOL_MATHS
from isodistill.benchmarks.trivial import trivial_answers, trivial_records, trivial_scores

__all__ = ["BENCHMARKS", "Benchmark", "trivial_answers", "trivial_records", "trivial_scores", "write_benchmark"]

BENCHMARKS: dict[str, Benchmark] = {
    one.name: one for one in (CONTEXTHUB, CONTEXTHUB_CUE, SCHOOL_MATHS, DEDUCTION, FIELDS)
}
"""Name -> benchmark; ``contexthub-cue`` is ContextHub again, with a planted shortcut."""
