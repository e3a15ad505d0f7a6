"""Answers and what they say: parsing and verdicts, accuracy, consistency, statistics, results; none needs torch."""

from __future__ import annotations

from isodistill.evaluation.accuracy import (
    acc_by_domain,
    acc_gap,
    acc_macro,
    acc_worst,
    all_correct,
    any_correct,
    pass_at_k,
    transfer,
)
from isodistill.evaluation.consistency import (
    agreement,
    agreement_wrong,
    cons_given_correct,
    lcs_centered,
    lcs_domain_centered,
    lcs_js,
    lcs_random,
    lcs_ratio,
    logical_consistency_score,
)
from isodistill.evaluation.parse import PARSER_VERSION, canon, parse_answer
from isodistill.evaluation.records import PredictionLog, Record
from isodistill.evaluation.results import compare, compare_seeds, comparison_json, json_text, split_results
from isodistill.evaluation.statistics import bootstrap, holm, mcnemar, mean_sd, paired_difference, two_level_difference
from isodistill.evaluation.verify import verify

__all__ = [
    "PARSER_VERSION",
    "PredictionLog",
    "Record",
    "acc_by_domain",
    "acc_gap",
    "acc_macro",
    "acc_worst",
    "agreement",
    "agreement_wrong",
    "all_correct",
    "any_correct",
    "bootstrap",
    "canon",
    "compare",
    "compare_seeds",
    "comparison_json",
    "cons_given_correct",
    "holm",
    "json_text",
    "lcs_centered",
    "lcs_domain_centered",
    "lcs_js",
    "lcs_random",
    "lcs_ratio",
    "logical_consistency_score",
    "mcnemar",
    "mean_sd",
    "paired_difference",
    "parse_answer",
    "pass_at_k",
    "split_results",
    "transfer",
    "two_level_difference",
    "verify",
]
