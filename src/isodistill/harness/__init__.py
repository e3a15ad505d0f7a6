"""lm-evaluation-harness: its tasks on our student, and our robustness metrics on its samples (extra ``lm-eval``)."""
