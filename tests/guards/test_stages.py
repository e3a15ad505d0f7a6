"""Guards inside the trainer: neutral settings, what stays bit for bit, exact resume, and states that do not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import TrainerCallback

from isodistill import DistillTrainer
from isodistill.alignment import ALIGNMENTS
from isodistill.data.collate import collate
from isodistill.errors import UserError
from isodistill.guards import GUARDS, node_groups
from isodistill.training.guard_state import read_guard_state

from .conftest import adapter, finish

MakeStage = Callable[..., DistillTrainer]
FREEZE = {"name": "angular", "mode": "freeze", "every": 1}

ALL: list[dict[str, Any]] = [
    {"name": "none"},
    {"name": "angular"},
    {**FREEZE, "threshold": 0.01},
    {"name": "angular", "mode": "bands", "nodes": "units", "lower": 0.001, "threshold": 0.02, "every": 1},
    {"name": "l2"},
    {"name": "ewc", "lam": 10.0},
    {"name": "si", "c": 100.0},
    {"name": "lwf"},
    {"name": "replay"},
    {"name": "o_lora"},
]


def name_of(guard: dict[str, Any]) -> str:
    return "-".join(str(guard[key]) for key in ("name", "mode") if key in guard)


def two_stages(make_stage: MakeStage, guard: dict[str, Any], **overrides: Any) -> tuple[DistillTrainer, Path]:
    """A trained second stage, and the folder of the first."""
    first = finish(make_stage("first", guard))
    second = make_stage("second", guard, first, task=1, **overrides)
    finish(second)
    return second, first


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


NEUTRAL: list[dict[str, Any]] = [
    {"name": "angular"},
    {"name": "angular", "nodes": "components", "every": 1},
    {**FREEZE, "threshold": math.pi},
    {"name": "l2", "lam": 0.0},
    {"name": "ewc", "lam": 0.0},
    {"name": "si", "c": 0.0},
    {"name": "lwf", "alpha": 0.0},
    {"name": "replay", "lam": 0.0},
]


@pytest.mark.parametrize(
    ("method", "neutral", "active"),
    [("erm_pooled", NEUTRAL, ALL[2:9]), ("iga", NEUTRAL[2:4], [ALL[2], ALL[4], ALL[7], ALL[8]])],
    ids=["erm_pooled", "iga"],
)
def test_a_neutral_guard_is_fine_tuning_bit_for_bit_and_another_is_not(
    make_stage: MakeStage, method: str, neutral: list[dict[str, Any]], active: list[dict[str, Any]]
) -> None:
    plain, first = two_stages(make_stage, {"name": "none"}, method=method)
    student = load_file(first / "student" / "adapter_model.safetensors")
    for guard in neutral:
        assert same(adapter(two_stages(make_stage, guard, method=method)[0]), adapter(plain)), guard
    for guard in active:
        guarded, first = two_stages(make_stage, guard, method=method)
        assert same(load_file(first / "student" / "adapter_model.safetensors"), student), guard
        assert not same(adapter(guarded), adapter(plain)), guard


@pytest.mark.parametrize("guard", ALL, ids=name_of)
def test_resume_inside_the_second_stage_is_bit_exact(make_stage: MakeStage, guard: dict[str, Any]) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            control.should_training_stop = state.global_step == 2
            return control

    first = finish(make_stage("first", guard))
    settings = {"max_steps": 4, "save_steps": 2}
    whole = make_stage("whole", guard, first, task=1, **settings)
    finish(whole)
    stopped = make_stage("second", guard, first, task=1, **settings)
    stopped.add_callback(Stop())
    stopped.train()
    resumed = make_stage("second", guard, first, task=1, **settings)
    finish(resumed, resume_from_checkpoint=True)
    assert same(adapter(resumed), adapter(whole))
    ends = [load_file(Path(t.args.output_dir) / "guard" / "state.safetensors") for t in (resumed, whole)]
    assert same(*ends)


@pytest.mark.parametrize("guard", [ALL[7], ALL[8], ALL[5]], ids=name_of)
def test_micro_batches_and_the_slow_path_do_not_change_a_guarded_step(
    make_stage: MakeStage, guard: dict[str, Any]
) -> None:
    first = finish(make_stage("first", guard))
    found = []
    for n, sets, gradients in ((1, 4, "segment"), (2, 2, "segment"), (4, 1, "segment"), (2, 2, "domain_major")):
        split = {"gradient_accumulation_steps": n, "sets_per_batch": sets, "gradients": gradients}
        settings = {"max_steps": 1, "warmup_steps": 0}  # a first step of warming up would move nothing
        trainer = make_stage(f"split-{len(found)}", guard, first, task=1, **settings, **split)
        trainer.train()
        found.append(adapter(trainer))
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5)


# ---- angular ----


class Watch(TrainerCallback):
    """Remembers the adapter, and who was frozen, after every step."""

    def __init__(self, trainer: DistillTrainer) -> None:
        self.trainer = trainer
        self.seen: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        frozen = {name: mask.clone() for name, mask in self.trainer.guarding.guard.frozen.items()}
        self.seen.append((adapter(self.trainer), frozen))


@pytest.mark.parametrize("nodes", ["rows", "units"])
def test_frozen_nodes_keep_their_bits_and_the_others_go_on(make_stage: MakeStage, nodes: str) -> None:
    guard = {**FREEZE, "nodes": nodes, "threshold": 0.015}
    first = finish(make_stage("first", guard))
    trainer = make_stage("second", guard, first, task=1, max_steps=5, weight_decay=0.1)
    watch = Watch(trainer)
    trainer.add_callback(watch)
    trainer.train()
    named = {id(p): name for name, p in trainer.model.named_parameters()}
    kept, moved = 0, 0
    for (before, frozen), (after, _) in zip(watch.seen, watch.seen[1:], strict=False):
        for group in node_groups(trainer.model, nodes):  # type: ignore[arg-type]
            mask = frozen[group.name]
            for piece in group.pieces:
                old, new = (piece.by_node(values[named[id(piece.own)]]) for values in (before, after))
                assert torch.equal(old[mask].view(torch.int32), new[mask].view(torch.int32))
                moved += int((old[~mask] != new[~mask]).any(1).sum())
                if bool(mask.any()):
                    shared = named[id(piece.shared)]
                    assert torch.equal(before[shared], after[shared])
            kept += int(mask.sum())
    assert kept > 0
    assert moved > 0


@pytest.mark.parametrize("kind", ["l2", "cosine", "norm_guard"])
def test_what_is_measured_decides_who_is_frozen(make_stage: MakeStage, kind: str) -> None:
    """The last step measures; the dense rows say who should be frozen then, at a threshold in the middle of them."""
    first = finish(make_stage("first", {"name": "angular"}))
    trainer = make_stage("free", {"name": "angular"}, first, task=1)
    before = dense_rows(trainer)
    trainer.train()
    rows = {name: (before[name], now) for name, now in dense_rows(trainer).items()}

    def measure(old: Tensor, new: Tensor) -> Tensor:
        if kind == "l2":
            return (new - old).norm(dim=1)
        if kind == "cosine":
            return 1 - F.cosine_similarity(old, new, dim=1)
        return (new.norm(dim=1) / old.norm(dim=1)).log().abs()

    values = {name: measure(*both) for name, both in rows.items()}
    middle = float(torch.cat(list(values.values())).median())
    guard = FREEZE | {"every": 3}
    if kind == "norm_guard":
        guard |= {"threshold": math.pi, "norm_guard": middle}
    else:
        guard |= {"threshold": middle, "metric": kind}
    first = finish(make_stage("first", guard))
    trainer = make_stage("held", guard, first, task=1)
    trainer.train()
    found = trainer.guarding.guard.frozen  # type: ignore[attr-defined]
    apart = {name: (value - middle).abs() > 1e-4 * middle for name, value in values.items()}
    assert all(torch.equal(found[name][apart[name]], (values[name] > middle)[apart[name]]) for name in values)
    assert 0 < sum(int(mask.sum()) for mask in found.values()) < sum(len(mask) for mask in found.values())


def dense_rows(trainer: DistillTrainer) -> dict[str, Tensor]:
    """W0 + s B A of every layer, in float64."""
    found = {}
    for group in node_groups(trainer.model, "rows"):
        module: Any = trainer.model.get_submodule(group.name)
        A, B = (getattr(module, f"lora_{x}")["default"].weight.detach().double() for x in "AB")
        found[group.name] = module.base_layer.weight.detach().double() + module.scaling["default"] * B @ A
    return found


def test_a_stage_too_short_to_measure_in_is_refused(make_stage: MakeStage) -> None:
    guard = FREEZE | {"every": 4}
    first = finish(make_stage("first", guard))  # where nothing is frozen anyway
    with pytest.raises(UserError, match=r"never measure: guard\.every is 4, and there are 3 steps"):
        make_stage("second", guard, first, task=1)


def test_replay_keeps_rows_that_were_drawn(make_stage: MakeStage) -> None:
    kept = []
    for seed in (3, 4):
        first = finish(make_stage(f"seed {seed}", {"name": "replay", "buffer": 3}, seed=seed, data_seed=3))
        kept.append(load_file(first / "guard" / "state.safetensors")["ids"].tolist())
    assert kept[0] != kept[1]


def test_bands_give_small_drifts_their_old_weights_back(make_stage: MakeStage) -> None:
    guard = {"name": "angular", "mode": "bands", "lower": 0.1, "threshold": 1.0, "every": 1}
    first = finish(make_stage("first", guard))
    trainer = make_stage("second", guard, first, task=1)
    start = adapter(trainer)
    folder = finish(trainer)
    told = json.loads((folder / "guard" / "drift.json").read_text())["decided"]["nodes"]
    now, named = adapter(trainer), {id(p): name for name, p in trainer.model.named_parameters()}
    restored = 0
    for group in node_groups(trainer.model, "rows"):
        (piece,) = group.pieces
        assert torch.equal(start[named[id(piece.shared)]], now[named[id(piece.shared)]])
        rows = (start[named[id(piece.own)]] == now[named[id(piece.own)]]).all(1)
        assert float(rows.double().mean()) == pytest.approx(told[group.name]["restored"])
        restored += int(rows.sum())
    assert 0 < restored < sum(group.n_nodes for group in node_groups(trainer.model, "rows"))


def test_damping_takes_a_share_of_the_step(make_stage: MakeStage) -> None:
    """The first step warms up and moves nothing, the second freezes every row, and the third is a quarter."""
    found = {}
    for damp in (0.25, 1.0):
        guard = {**FREEZE, "threshold": 0.0, "damp": damp, "freeze_shared": False}
        first = finish(make_stage("first", guard))
        trainer = make_stage("second", guard, first, task=1, max_steps=3, max_grad_norm=0.0)
        watch = Watch(trainer)
        trainer.add_callback(watch)
        trainer.train()
        found[damp] = [seen for seen, _ in watch.seen]
    for name in (n for n in found[1.0][0] if "lora_B" in n):
        whole = found[1.0][2][name] - found[1.0][1][name]
        torch.testing.assert_close(found[0.25][2][name] - found[0.25][1][name], 0.25 * whole, rtol=1e-3, atol=1e-6)
        assert float(whole.abs().max()) > 1e-4


def test_iga_in_the_tangent_space_cannot_lose_a_factor(make_stage: MakeStage) -> None:
    tangent = {"alignment": {"name": "iga", "space": "tangent"}, "method": "iga"}
    with pytest.raises(UserError, match=r"angular freeze holds one factor .* space tangent"):
        make_stage("first", FREEZE, **tangent)
    make_stage("monitored", {"name": "angular"}, **tangent)


# ---- lwf and replay ----


def test_lwf_compares_with_the_student_of_the_last_stage(make_stage: MakeStage) -> None:
    first = finish(make_stage("first", {"name": "lwf"}))
    trainer = make_stage("second", {"name": "lwf"}, first, task=1, warmup_steps=0)
    trainer.train()
    lines = (Path(trainer.args.output_dir) / "metrics.jsonl").read_text().splitlines()
    kl = [line["guard/kl"] for line in map(json.loads, lines) if "guard/kl" in line]
    assert abs(kl[0]) < 1e-6  # nothing has moved yet
    assert min(kl[1:]) > 1e-4


def test_replay_adds_the_gradient_of_old_rows(make_stage: MakeStage) -> None:
    """One step of plain SGD: the difference to no guard is lr lam times the mean token loss's gradient of old rows."""
    guard = {"name": "replay", "share": 0.5, "lam": 2.0}
    settings = {"task": 1, "max_steps": 1, "optim": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.0,
                "lr_scheduler_type": "constant", "warmup_steps": 0}  # fmt: skip
    first = finish(make_stage("first", guard))
    trainer = make_stage("second", guard, first, **settings)
    old = trainer.guarding.guard.past_rows(0, 4)
    texts = {tuple(e.input_ids) for e in make_stage("again", None).train_dataset}
    assert len(old) == 2
    assert all(tuple(row.input_ids) in texts for row in old)
    total, n = 0, 0
    for row in old:
        batch = collate([row], ["none", row.domain], trainer.processing_class.pad_token_id)
        logits = trainer.model(input_ids=batch["input_ids"]).logits[0, :-1]
        labels = batch["labels"][0, 1:]
        total = total + F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        n += int((labels != -100).sum())
    named = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
    expected = dict(zip(named, torch.autograd.grad(total / n, list(named.values())), strict=True))
    trainer.train()
    (first / "guard" / "state.json").write_text(
        (first / "guard" / "state.json").read_text().replace('"replay"', '"none"', 1)
    )
    plain = make_stage("plain", {"name": "none"}, first, **settings)
    plain.train()
    for name, value in adapter(plain).items():
        torch.testing.assert_close(value - adapter(trainer)[name], 2.0 * expected[name], rtol=1e-3, atol=1e-5)


# ---- what does not fit ----


def test_every_guard_is_tried_here() -> None:
    assert {guard["name"] for guard in ALL} == set(GUARDS)


def test_the_state_of_another_guard_or_student_is_refused(make_stage: MakeStage) -> None:
    first = finish(make_stage("first", {"name": "l2"}))
    with pytest.raises(UserError, match=r"written by the guard l2, and this stage has ewc"):
        make_stage("second", {"name": "ewc"}, first)
    other = finish(make_stage("other", {"name": "l2"}, task=1))
    with pytest.raises(UserError, match="belongs to another adapter"):
        make_stage("second", {"name": "l2"}, first, guard_state=str(other / "guard"))
    known = json.loads((first / "guard" / "state.json").read_text())
    known["student"]["base"] = "0"
    (first / "guard" / "state.json").write_text(json.dumps(known))
    with pytest.raises(UserError, match="belongs to another model"):
        make_stage("second", {"name": "l2"}, first)


def test_the_state_of_a_student_with_other_adapted_weights_is_refused(make_stage: MakeStage) -> None:
    first = finish(make_stage("first", {"name": "l2"}))
    merged = make_stage("second", {"name": "l2"}, first).model
    merged.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.data += 0.5
    with pytest.raises(UserError, match="belongs to another model"):
        read_guard_state(first / "guard", "l2", merged, fresh_adapter=False)
    read_guard_state(first / "guard", "l2", merged, fresh_adapter=True)  # there the last adapter was added to them


def test_the_state_of_a_student_with_exchanged_rows_is_refused(make_stage: MakeStage) -> None:
    first = finish(make_stage("first", {"name": "l2"}))
    model = make_stage("second", {"name": "l2"}, first).model
    for dim in (0, 1):
        weight = model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.data
        weight.copy_(weight.flip(dim))
        with pytest.raises(UserError, match="belongs to another model"):
            read_guard_state(first / "guard", "l2", model, fresh_adapter=False)
        weight.copy_(weight.flip(dim))
        read_guard_state(first / "guard", "l2", model, fresh_adapter=False)


@pytest.mark.parametrize("guard", [*({"name": name} for name in ("l2", "ewc", "si", "o_lora", "replay"))], ids=name_of)
def test_fish_and_what_adds_to_its_direction_are_refused(make_stage: MakeStage, guard: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{guard['name']} adds to the direction of the step, and Fish"):
        make_stage("first", guard, method="fish")


def test_a_pull_holds_under_every_alignment(make_stage: MakeStage) -> None:
    """The second stage ends nearer to the first with a pull than without one."""
    first = finish(make_stage("first", {"name": "l2", "lam": 30.0}))
    free = finish(make_stage("free", {"name": "none"}))
    then = load_file(first / "student" / "adapter_model.safetensors")

    def way(name: str, guard: dict[str, Any], earlier: Path) -> float:
        trainer = make_stage("second", guard, earlier, task=1, method=name)
        trainer.train()
        now = get_peft_model_state_dict(trainer.model)
        return float(sum((now[key] - value).square().sum() for key, value in then.items()))

    for name, alignment in ALIGNMENTS.items():
        if alignment.steps_on_direction:
            held = way(name, {"name": "l2", "lam": 30.0}, first)
            assert held < 0.9 * way(name, {"name": "none"}, free), name


def test_pulls_to_the_last_stage_need_its_basis(make_stage: MakeStage) -> None:
    alignment = {"name": "iga", "space": "tangent", "grad_ema": 0.0, "apply_to": "gradient", "project_back": "retract"}
    with pytest.raises(UserError, match="retract changes the basis"):
        make_stage("first", {"name": "ewc"}, method="iga", alignment=alignment, optim="sgd")


def test_a_damaged_or_missing_state_is_named(make_stage: MakeStage) -> None:
    first = finish(make_stage("first", {"name": "ewc", "n_samples": 2}))
    with pytest.raises(UserError, match="holds no guard state"):
        make_stage("second", {"name": "ewc"}, first, guard_state=str(first))
    state = first / "guard" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        make_stage("second", {"name": "ewc"}, first)


@pytest.mark.parametrize(
    ("guard", "message"),
    [
        ({"name": "angular", "threshold": 4.0}, "drifts of metric angular lie in 0 to 3.14"),
        ({"name": "angular", "mode": "bands", "lower": 2.0}, "lower is 2.0"),
        ({"name": "angular", "mode": "freeze", "nodes": "components"}, "can be monitored only"),
        ({"name": "angular", "mode": "bands", "damp": 0.5}, "bands gives old weights back"),
        ({"name": "angular", "norm_guard": -1.0}, "norm_guard is -1.0"),
        ({"name": "angular", "metric": "l1"}, "metric is 'l1'"),
        ({"name": "ewc", "lam": -1.0}, "lam is -1.0"),
        ({"name": "ewc", "lam": math.inf}, "guard.lam is inf; it must be a finite number"),
        ({"name": "l2", "lam": math.nan}, "lam is nan"),
        ({"name": "l2", "lam": "strong"}, "guard.lam in the settings must be float, but is 'strong'"),
        ({"name": "ewc", "lam": True}, "guard.lam in the settings must be float, but is True"),
        ({"name": "ewc", "n_samples": 2.5}, "guard.n_samples in the settings must be int, but is 2.5"),
        ({"name": "replay", "buffer": 2.5}, "guard.buffer in the settings must be int"),
        ({"name": "angular", "every": 2.5}, "guard.every in the settings must be int"),
        ({"name": "si", "c": math.inf}, "c is inf"),
        ({"name": "lwf", "T": math.inf}, "T is inf"),
        ({"name": "replay", "lam": math.nan}, "lam is nan"),
        ({"name": "o_lora", "l2": math.nan}, "guard.l2 is nan; it must be a finite number"),
        ({"name": "angular", "metric": "l2", "threshold": math.inf}, "threshold is inf"),
        ({"name": "ewc", "fisher": "exact"}, "fisher is 'exact'"),
        ({"name": "si", "xi": 0.0}, "xi is 0.0"),
        ({"name": "lwf", "T": 0.0}, "T is 0.0"),
        ({"name": "replay", "share": 2.0}, "share is 2.0"),
        ({"name": "o_lora", "l1": -1.0}, "l1 is -1.0"),
        ({"name": "angulr"}, "Did you mean 'angular'"),
        ({"mode": "freeze"}, "no name"),
    ],
)
def test_bad_options_are_refused_before_anything_is_computed(
    make_stage: MakeStage, guard: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_stage("first", guard)
