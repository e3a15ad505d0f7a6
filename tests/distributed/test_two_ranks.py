"""Several gloo processes give what one gives (item 11): each sees some sets of every step, or some domains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from isodistill.data.load import write_rows
from isodistill.data.rows import Row

from .ranks import launch

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("ranks")]

RULE = {"scorer": {"name": "rule"}, "n_prefix": 2, "max_tokens": 12}
TARGET = [{"id": f"t{i}", "prompt": f"In sports, add {i} and {2 * i}.", "domain": "sports"} for i in range(7)]
THREE = ("law", "mathematics", "medicine")


def make_inputs(folder: Path, tokenizer: PreTrainedTokenizerFast, domains: tuple[str, ...] = THREE) -> None:
    rows = [
        Row(
            id=f"{s}/{d}", prompt=f"In {d}, add {s} and {k}.", completion=f"{s} + {k} = {s + k}. " * (1 + (s + k) % 3),
            answer=str(s + k), answer_type="number", set_id=f"{s}", domain=d,
        )
        for s in range(8)
        for k, d in enumerate(domains)
    ]  # fmt: skip
    write_rows(folder / "rows.jsonl", rows)
    tokenizer.save_pretrained(folder / "tokenizer")


def logged(folder: Path, name: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


def losses(folder: Path, name: str) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in logged(folder, name)]


def seen_by_the_objective(line: dict[str, float]) -> dict[str, float]:
    """Its telemetry: histograms, shares and counts."""
    return {name: value for name, value in line.items() if name.startswith(("objective/", "validity/"))}


@pytest.mark.parametrize(
    "method",
    [
        {"method": "erm"},
        {"method": "erm_pooled"},
        {"method": "iga"},
        {"method": "iga", "alignment": {"name": "iga", "space": "weight"}},
        {"method": "iga", "alignment": {"name": "iga", "space": "tangent", "debias": True}},
        {"method": "iga", "alignment": {"name": "iga", "space": "tangent_separable"}},
        {"method": "pcgrad"},
        {"method": "group_dro", "alignment": {"name": "group_dro", "eta": 1.0}},
        {"method": "irm", "alignment": {"name": "irm", "lam": 10.0, "anneal": 0.0}},
        {"method": "dann"},
        {"method": "fish"},
        {"method": "iga_consistency", "term": {"states": 2.0}},
        {"method": "flexkd", "term": {"stats": "step"}, "teacher": 48},
        {"method": "projector", "teacher": 48},
        {"method": "prada", "term": {"dropout": 0.0, "n_virt": 3}, "target": TARGET},
        {"method": "label_multitask"},
        *({"method": name, "teacher": 32} for name in ("fkl", "rkl", "jsd", "skew")),
        {"method": "fkl", "objective": {"rho": 0.5, "sample_tokens": 8}, "teacher": 32},
        {"method": "vcrd", "objective": {"control": "permuted"}, "teacher": 32},
        {"method": "vcrd", "objective": {"steps": RULE, "w_norm": "mean"}, "teacher": 32},
        {"method": "vcrd", "objective": {"steps": RULE, "rho": 0.5, "sample_tokens": 8}, "teacher": 32},
    ],
    ids=[
        *("erm", "erm_pooled", "iga-factor", "iga-weight", "iga-tangent-debias", "iga-separable"),
        *("pcgrad", "group_dro", "irm", "dann", "fish", "iga_consistency", "flexkd", "projector", "prada"),
        *(
            "multitask",
            "fkl",
            "rkl",
            "jsd",
            "skew",
            "fkl-samples",
            "vcrd-permuted",
            "vcrd-steps-mean",
            "vcrd-steps-samples",
        ),
    ],
)
def test_two_ranks_equal_one(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, method: dict[str, Any]) -> None:
    make_inputs(tmp_path, tokenizer)
    common = {"max_steps": 4, "learning_rate": 1e-2, "save_steps": 2, **method}
    (alone,) = launch(tmp_path, "alone", 1, sets_per_batch=2, **common)
    first, second = launch(tmp_path, "both", 2, sets_per_batch=1, **common)
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), f"ranks disagree on {name}"
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=2e-5)
    one_score, two_scores = (list((tmp_path / name).glob("flexkd/*.safetensors")) for name in ("alone", "both"))
    assert len(one_score) == len(two_scores) == (method["method"] == "flexkd")
    for a, b in zip(one_score, two_scores, strict=True):  # sums over both ranks, in fp64
        torch.testing.assert_close(load_file(b), load_file(a), rtol=1e-5, atol=1e-8)
    assert sorted(p.name for p in (tmp_path / "both" / "checkpoints").iterdir()) == ["checkpoint-2", "checkpoint-4"]
    assert [step for step, _ in losses(tmp_path, "both")] == [1, 2, 3, 4]
    for both, one in zip(logged(tmp_path, "both"), logged(tmp_path, "alone"), strict=True):
        assert both["loss"] == pytest.approx(one["loss"], rel=1e-4)
        found, expected = seen_by_the_objective(both), seen_by_the_objective(one)
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)
        assert bool(expected) == (method["method"] in ("fkl", "rkl", "jsd", "skew", "vcrd"))


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("space", ["factor", "tangent"])
def test_ranks_that_each_see_other_domains_equal_one_process(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, processes: int, space: str
) -> None:
    """Item 11: a domain group per rank; three domains on two ranks, or four on four."""
    make_inputs(tmp_path, tokenizer, ("law", "mathematics", "medicine", "science")[: max(3, processes)])
    common = {"max_steps": 3, "learning_rate": 1e-2, "sets_per_batch": 2, "method": "iga", "save_steps": 100}
    common["alignment"] = {"name": "iga", "space": space}
    (alone,) = launch(tmp_path, "alone", 1, **common)
    ranks = launch(tmp_path, "apart", processes, split_ranks_by="domains", **common)
    for name, value in alone.items():
        assert all(torch.equal(rank[name], ranks[0][name]) for rank in ranks), f"ranks disagree on {name}"
        torch.testing.assert_close(ranks[0][name], value, rtol=1e-3, atol=2e-5)


def test_ranks_with_different_masks_stop(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    make_inputs(tmp_path, tokenizer)
    with pytest.raises(AssertionError, match=r"different masks in step 2 \(.*mask_density"):
        launch(tmp_path, "both", 2, method="iga", sets_per_batch=1, max_steps=3, disturb_rank=1)


def test_two_ranks_resume_in_the_middle_of_an_epoch(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Four steps an epoch: step 6 lies in the second one, where a sampler left at epoch 0 would give other sets."""
    make_inputs(tmp_path, tokenizer)
    common = {"sets_per_batch": 1, "learning_rate": 1e-2, "save_steps": 1, "lr_scheduler_type": "constant"}
    (whole, _) = launch(tmp_path, "whole", 2, method="iga", max_steps=8, **common)
    launch(tmp_path, "parts", 2, method="iga", max_steps=6, **common)
    (resumed, _) = launch(tmp_path, "parts", 2, method="iga", max_steps=8, resume=True, **common)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
