"""What a student's features tell about the domain of a question: a fresh probe, and a map of the features.

    q (N, d): mean last hidden state over the question, what PRADA's adversary reads
    probe: accuracy of a logistic regression on standardised q by five-fold cross-validation; 0.5 is chance for two
    domains of equal size

A fresh probe is asked because an adversary's own accuracy may only say that it has lost its game. Map: t-SNE (van der
Maaten and Hinton 2008) from a start by principal components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

__all__ = ["FOLDS", "feature_map", "probe_accuracy", "question_states"]

FOLDS = 5
_PERPLEXITY = 30.0
_BATCH = 16


@torch.no_grad()
def question_states(model: PreTrainedModel, prompts: Sequence[Sequence[int]], before: Sequence[int] = ()) -> np.ndarray:
    """q (N, d) in fp32 of token ids.

    Args:
        model: a decoder with a head, its adapter merged.
        prompts: N questions, without padding.
        before: virtual tokens that stand before each of them and are no part of the mean.
    """
    decoder = cast(Any, getattr(model, model.base_model_prefix))
    found = []
    for start in range(0, len(prompts), _BATCH):
        rows = [torch.tensor([*before, *prompt]) for prompt in prompts[start : start + _BATCH]]
        # Padding stands on the right, so a causal model needs no mask and counts positions by itself.
        ids = pad_sequence(rows, batch_first=True).to(model.device)
        hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state.float()
        for h, row in zip(hidden, rows, strict=True):
            found.append(h[len(before) : len(row)].mean(0).cpu().numpy())
    return np.stack(found)


def probe_accuracy(q: np.ndarray, domains: Sequence[int], seed: int = 0) -> float:
    """Accuracy of the fresh probe; the folds are drawn from the seed.

    Args:
        q: (N, d) features.
        domains: N domains, at least ``FOLDS`` rows of each.
        seed: of the folds.
    """
    # Imported where it is used: it takes a second, and few runs have a target.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    return float(cross_val_score(model, q, np.asarray(domains), cv=folds).mean())


def feature_map(q: np.ndarray, seed: int = 0) -> np.ndarray:
    """(N, 2) of q (N, d) by t-SNE; N at least 4."""
    from sklearn.manifold import TSNE

    perplexity = min(_PERPLEXITY, (len(q) - 1) / 3)
    mapped: np.ndarray = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(q)
    return mapped
