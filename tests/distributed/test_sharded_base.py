"""A frozen base shared out over processes trains as a whole one; what cannot be so is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from .ranks import launch
from .test_two_ranks import RULE, TARGET, make_inputs

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("ranks")]


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "erm_pooled"},
        {"method": "iga"},
        {"method": "iga", "alignment": {"name": "iga", "space": "factor"}},
        {"method": "iga", "alignment": {"name": "iga", "space": "tangent_separable"}},
        {"method": "pcgrad"},
        {"method": "irm"},
        {"method": "dann"},
        {"method": "fish"},
        {"method": "mldg"},
        {"method": "fkl", "teacher": 32},
        {"method": "iga_consistency", "term": {"states": 2.0}},
        {"method": "flexkd", "teacher": 48},
        {"method": "iga", "gradient_checkpointing": True, "bf16": True},
        {"method": "iga", "split_ranks_by": "domains", "gradient_accumulation_steps": 2},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_sharded_is_whole(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any]) -> None:
    make_inputs(tmp_path, tokenizer)
    common = {"max_steps": 3, "learning_rate": 1e-2, "sets_per_batch": 1, "optim": "sgd", **settings}
    whole = launch(tmp_path, "whole", 2, **common)
    shared = launch(tmp_path, "shared", 2, shard_base=True, **common)
    for expected, found in zip(whole, shared, strict=True):
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            # With bf16 the whole base runs in fused layers, which round otherwise.
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 if "bf16" in settings else 1e-7)
    held = [json.loads((tmp_path / f"held-shared-{rank}.json").read_text()) for rank in range(2)]
    assert [part["held"] for part in held] == [part["whole"] // 2 for part in held]  # and the sizes here are even


def test_a_sharded_run_resumes_exactly(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    make_inputs(tmp_path, tokenizer)
    common = {"method": "iga", "sets_per_batch": 1, "save_steps": 2, "learning_rate": 1e-2, "shard_base": True}
    whole = launch(tmp_path, "whole", 2, **common, max_steps=4)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/checkpoint-4")
    resumed = launch(tmp_path, "cut", 2, **common, max_steps=4, resume=True)
    for expected, found in zip(whole, resumed, strict=True):
        assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"method": "iga", "alignment": {"name": "iga", "space": "weight"}}, "keep K gradients of every whole layer"),
        ({"method": "erm", "gradients": "domain_major"}, "as many forwards on every process"),
        ({"method": "erm", "guard": {"name": "ewc"}}, "drift is measured against whole frozen layers"),
        ({"method": "vcrd", "objective": {"steps": RULE}, "teacher": 32}, "written by a whole copy of the student"),
        ({"method": "fkl", "objective": {"rho": 0.5}, "teacher": 32}, "written by a whole copy of the student"),
        ({"method": "prada", "target": TARGET}, "target rows are seen domain by domain"),
    ],
)
def test_what_needs_whole_layers_is_refused(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, settings: dict[str, Any], reason: str
) -> None:
    make_inputs(tmp_path, tokenizer)
    with pytest.raises(AssertionError, match=f"UserError: This training cannot start.*{reason}"):
        launch(tmp_path, "shared", 2, shard_base=True, sets_per_batch=1, max_steps=1, **settings)


def test_one_process_has_nobody_to_share_with(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    make_inputs(tmp_path, tokenizer)
    with pytest.raises(AssertionError, match="over processes, but there is one"):
        launch(tmp_path, "alone", 1, shard_base=True, method="erm", max_steps=1)
