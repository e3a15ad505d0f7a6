"""Features of questions, the fresh probe, and the map."""

from __future__ import annotations

import numpy as np
import torch
from transformers import LlamaForCausalLM

from isodistill.evaluation.domain_probe import feature_map, probe_accuracy, question_states


def test_q_is_the_mean_over_the_question_alone(tiny_model: LlamaForCausalLM) -> None:
    """Row by row, without padding; what stands before is seen by the model and is no part of the mean."""
    prompts = [[5, 6, 7, 8, 9], [10], [11, 12, 13]]
    for before in ([], [3, 4]):
        q = question_states(tiny_model, prompts, before)
        for row, prompt in zip(q, prompts, strict=True):
            hidden = tiny_model.model(torch.tensor([[*before, *prompt]])).last_hidden_state[0, len(before) :]
            np.testing.assert_allclose(row, hidden.mean(0).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_the_probe_finds_a_domain_where_there_is_one_and_chance_where_there_is_none() -> None:
    rng = np.random.default_rng(0)
    q, domains = rng.normal(size=(200, 8)), [0, 1] * 100
    assert 0.35 < probe_accuracy(q, domains) < 0.65
    assert probe_accuracy(q, domains) == probe_accuracy(q, domains)
    q[:, 3] += 6.0 * np.array(domains)
    assert probe_accuracy(q, domains) > 0.97


def test_the_map_keeps_clusters_apart() -> None:
    rng = np.random.default_rng(1)
    q = rng.normal(size=(24, 5)) + 20.0 * np.repeat([0, 1], 12)[:, None]
    points = feature_map(q)
    assert points.shape == (24, 2)
    gap = np.linalg.norm(points[:12].mean(0) - points[12:].mean(0))
    assert gap > max(np.linalg.norm(part - part.mean(0), axis=1).mean() for part in (points[:12], points[12:]))
