"""ang-DEN: what old heads keep bit for bit, what copies compute, what is counted, and what is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from isodistill.continual import AngularDEN, DenOptions, GrowingMLP, SplitRule
from isodistill.errors import UserError

ALL = SplitRule(threshold=-1.0, k_max=None)
SMALL: dict[str, Any] = {"steps": 20, "head_steps": 5, "short_steps": 5, "batch": 16, "lr": 1e-2}


def task(seed: int, n: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return x, (x @ torch.randn(6, 3, generator=generator)).argmax(1)


def learner(rule: SplitRule | None = None, tasks: int = 2, **options: Any) -> AngularDEN:
    den = AngularDEN([6, 8, 7], DenOptions(rule=rule or SplitRule(), **SMALL | options), seed=0)
    for t in range(tasks):
        den.learn(*task(t), n_classes=3)
    return den


@pytest.mark.parametrize("expand", [0, 3])
def test_duplicating_all_leaves_old_logits_bitwise_unchanged(expand: int) -> None:
    den = learner(ALL, tasks=1, select_threshold=-1.0, expand=expand)
    x, kept = task(9)[0], []
    for t in range(1, 4):
        kept.append(den.model(x, t - 1).detach())
        den.learn(*task(t), n_classes=3)
        assert den.growth[-1]["duplicated"] > 0
        for s, logits in enumerate(kept):
            assert torch.equal(den.model(x, s), logits)


def test_a_copy_computes_what_its_unit_did(monkeypatch: pytest.MonkeyPatch) -> None:
    den = learner(SplitRule(mode="quantile", quantile=0.4), tasks=1, expand=0, short_steps=0, select_threshold=-1.0)
    x, seen = task(5)[0], []
    split = den._split

    def watched(*args: Any) -> tuple[int, int]:
        seen.append(den.model(x, 1).detach())
        return split(*args)

    monkeypatch.setattr(den, "_split", watched)
    before = den.model.n_parameters
    den.learn(*task(1), n_classes=3)
    torch.testing.assert_close(den.model(x, 1), seen[0], rtol=1e-5, atol=1e-6)
    # 4 of 8 and 3 of 7 units: incoming weights and bias; then outgoing ones, into 7 units and, for the copies, too.
    grown = 4 * (6 + 1) + 4 * 7 + 3 * (8 + 4 + 1) + 3 * 3
    assert den.model.n_parameters == before + (7 * 3 + 3) + grown


def test_unselected_units_keep_their_bits_and_old_heads_too() -> None:
    den = learner(SplitRule(threshold=math.pi), tasks=1, expand=0, select_threshold=0.35)
    W, head = [w.detach().clone() for w in den.model.W], den.model.heads[0].detach().clone()
    chosen: list[list[Tensor]] = []
    select = den._select
    den._select = lambda t: chosen.append(select(t)) or chosen[-1]  # type: ignore[method-assign, func-returns-value]
    den.learn(*task(1), n_classes=3)
    assert 0 < sum(int(s.sum()) for s in chosen[0]) < 15
    for old, new, selected in zip(W, den.model.W, chosen[0], strict=True):
        assert torch.equal(new[~selected], old[~selected])
        assert not torch.equal(new[selected], old[selected])
    assert torch.equal(den.model.heads[0], head)


def test_threshold_pi_is_fine_tuning_bit_for_bit() -> None:
    """The oracle: nn.Sequential and Adam, one head after the other, on the batches that the same generator draws."""
    plain = {"head_steps": 0, "expand": 0, "l1": 0.0, "drift": 0.0, "select_threshold": -1.0}
    den = learner(SplitRule(threshold=math.pi), tasks=3, **plain)
    generator = torch.Generator().manual_seed(0)

    def drawn(layer: nn.Linear) -> nn.Linear:
        bound = 1 / math.sqrt(layer.in_features)
        layer.weight.data.uniform_(-bound, bound, generator=generator)
        layer.bias.data.zero_()
        return layer

    body = nn.Sequential(drawn(nn.Linear(6, 8)), nn.ReLU(), drawn(nn.Linear(8, 7)), nn.ReLU())
    for t in range(3):
        head, (x, y) = drawn(nn.Linear(7, 3)), task(t)
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-2)
        for _ in range(20):
            rows = torch.randint(40, (16,), generator=generator)
            optimizer.zero_grad()
            F.cross_entropy(head(body(x[rows])), y[rows]).backward()
            optimizer.step()
        assert torch.equal(den.model.heads[t], head.weight)
    assert torch.equal(den.model.W[0], body[0].weight)
    assert torch.equal(den.model.W[1], body[2].weight)


def test_the_largest_drifts_are_duplicated() -> None:
    old = torch.eye(6)
    theta = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.7, 1.5])
    new = torch.cos(theta)[:, None] * old + torch.sin(theta)[:, None] * old.roll(1, 1)
    selected = torch.tensor([True, True, True, True, True, False])
    rule = SplitRule(threshold=0.2, k_max=2)
    assert rule(old, new, selected, torch.Generator()).duplicate.tolist() == [1, 4]
    bands = SplitRule(mode="bands", lower=0.2, threshold=0.6)(old, new, selected, torch.Generator())
    assert (bands.duplicate.tolist(), bands.restore.tolist()) == ([1, 4], [0])
    scaled = SplitRule(metric="l2", threshold=0.2)(old, 3 * old, selected, torch.Generator())
    assert len(scaled.duplicate) == 5
    assert len(rule(old, 3 * old, selected, torch.Generator()).duplicate) == 0


def test_a_change_of_length_is_drift_only_under_the_norm_guard() -> None:
    old = torch.eye(3)
    new = torch.diag(torch.tensor([1.0, 1.5, 0.5]))
    every, generator = torch.ones(3, dtype=torch.bool), torch.Generator()
    assert SplitRule()(old, new, every, generator).duplicate.tolist() == []
    assert sorted(SplitRule(norm_guard=0.3)(old, new, every, generator).duplicate.tolist()) == [1, 2]
    bands = SplitRule(mode="bands", norm_guard=0.5)(old, new, every, generator)
    assert (bands.duplicate.tolist(), bands.restore.tolist()) == ([2], [0, 1])


@pytest.mark.parametrize(("include_bias", "duplicated"), [(False, 0), (True, 15)])
def test_a_change_of_the_bias_alone_is_seen_only_when_asked_for(include_bias: bool, duplicated: int) -> None:
    rule = SplitRule(threshold=1e-3, k_max=None)
    den = learner(rule, tasks=1, include_bias=include_bias, expand=0, short_steps=0)
    old = [(W.detach().clone(), b.detach().clone()) for W, b in zip(den.model.W, den.model.b, strict=True)]
    den.model.add_head(3, den.generator)
    for b in den.model.b:
        b.data += 0.5
    selected = [torch.ones(len(W), dtype=torch.bool) for W in den.model.W]
    assert den._split(*task(1), 1, old, selected) == (duplicated, 0)


def test_bands_give_small_drifts_their_old_weights_back() -> None:
    rule = SplitRule(mode="bands", lower=math.pi, threshold=math.pi)
    den = learner(rule, tasks=1, expand=0, select_threshold=-1.0)
    x = task(9)[0]
    before = den.model(x, 0).detach()
    den.learn(*task(1), n_classes=3)
    assert den.growth[-1]["restored"] == 15
    assert torch.equal(den.model(x, 0), before)


def test_a_restored_unit_reads_the_copies_and_a_replaced_one_does_not() -> None:
    """Half of layer 0 turns, layer 1 hardly moves: the copies carry the new task through the restored units."""
    den = learner(SplitRule(mode="bands", lower=0.02, threshold=0.02, k_max=None), tasks=1, expand=0, short_steps=0)
    x, model = task(9)[0], den.model
    known = model(x, 0).detach()
    old = [(W.detach().clone(), b.detach().clone()) for W, b in zip(model.W, model.b, strict=True)]
    model.add_head(3, den.generator)
    model.W[0].data[:4] += 0.5 * torch.randn(4, 6, generator=den.generator)
    model.W[1].data[0] += 0.5 * torch.randn(8, generator=den.generator)
    model.W[1].data[1:] *= 1 + 1e-4
    before = model(x, 1).detach()
    selected = [torch.ones(len(W), dtype=torch.bool) for W in model.W]
    assert den._split(*task(1), 1, old, selected) == (5, 10)
    torch.testing.assert_close(model(x, 1), before, rtol=1e-3, atol=1e-3)
    assert torch.equal(model(x, 0), known)
    copies, replaced = model.born[0] == 1, model.until[1] == 1
    assert torch.equal(model.W[1][1:7][:, copies].sort(1)[0], old[1][0][1:, :4].sort(1)[0])
    assert (model.W[1][replaced][:, copies] == 0).all()


def test_the_group_lasso_takes_units_away_again() -> None:
    assert learner(SplitRule(threshold=math.pi), loss_threshold=0.0, expand=3).growth[-1]["expanded"] == 6
    pruned = learner(SplitRule(threshold=math.pi), loss_threshold=0.0, expand=3, prune=1e9)
    assert pruned.growth[-1]["expanded"] == 0
    assert pruned.model.sizes == [6, 8, 7]


def test_a_grown_network_is_saved_and_loaded(tmp_path: Path) -> None:
    den = learner(SplitRule(mode="quantile", quantile=0.3), tasks=3)
    assert den.model.sizes != [6, 8, 7]
    den.model.save(tmp_path / "grown.safetensors")
    again = GrowingMLP.load(tmp_path / "grown.safetensors")
    x = task(9)[0]
    assert all(torch.equal(again(x, t), den.model(x, t)) for t in range(3))
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "grown.safetensors").read_bytes()[:50])
    with pytest.raises(UserError, match=r"cut\.safetensors holds no grown network"):
        GrowingMLP.load(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("at", [1, 2])
def test_a_save_that_is_cut_short_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    den, folder, moves = learner(tasks=1), tmp_path / "stream", []
    den.save(folder)
    den.learn(*task(1), n_classes=3)
    replace = Path.replace

    def dying(path: Path, target: Path) -> Path:
        moves.append(path)
        if len(moves) == at:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        den.save(folder)
    monkeypatch.undo()
    assert len(AngularDEN.load(folder, den.options).growth) == 1
    den.save(folder)
    assert len(AngularDEN.load(folder, den.options).growth) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["stream"]


def test_a_stream_stopped_inside_a_task_goes_on_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = learner(SplitRule(mode="quantile", quantile=0.3), tasks=4)
    options = whole.options
    stopped = AngularDEN([6, 8, 7], options, seed=0)
    for t in range(2):
        stopped.learn(*task(t), n_classes=3)
        stopped.save(tmp_path / "stream")

    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(AngularDEN, "_split", stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.learn(*task(2), n_classes=3)
    monkeypatch.undo()
    again = AngularDEN.load(tmp_path / "stream", options)
    assert len(again.growth) == 2
    for t in (2, 3):
        again.learn(*task(t), n_classes=3)
    assert again.growth == whole.growth
    x = task(9)[0]
    assert all(torch.equal(again.model(x, t), whole.model(x, t)) for t in range(4))
    with pytest.raises(UserError, match=r"learned with lr 0\.01, not 0\.1"):
        AngularDEN.load(tmp_path / "stream", dataclasses.replace(options, lr=0.1))
    (tmp_path / "stream" / "stream.safetensors").unlink()
    with pytest.raises(UserError, match="holds no stream of tasks"):
        AngularDEN.load(tmp_path / "stream", options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 4.0}, "drifts of metric angular lie in 0 to 3.14"),
        ({"metric": "cosine", "threshold": 5.0}, "drifts of metric cosine lie in 0 to 2"),
        ({"threshold": math.nan}, "threshold is nan"),
        ({"mode": "bands", "lower": 2.0}, "lower is 2.0"),
        ({"quantile": 1.5}, "quantile is 1.5"),
        ({"metric": "euclid"}, "metric is 'euclid'"),
        ({"metric": "random"}, "needs mode quantile"),
        ({"k_max": -1}, "k_max is -1"),
        ({"k_max": 2.5}, "k_max is 2.5"),
        ({"norm_guard": math.nan}, "norm_guard is nan"),
        ({"norm_guard": math.inf}, "norm_guard is inf"),
        ({"norm_guard": 0.0}, "norm_guard is 0.0"),
        ({"mode": "quantile", "norm_guard": 0.5}, "norm_guard is 0.5 in mode quantile"),
    ],
)
def test_thresholds_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SplitRule(**options)


@pytest.mark.parametrize(
    "options",
    [
        *({"lr": math.nan}, {"drift": math.inf}, {"select_threshold": math.nan}, {"select_threshold": math.inf}),
        *({"steps": -1}, {"steps": 2.5}, {"expand": 2.0}, {"batch": 0}, {"max_units": math.nan}, {"max_units": 0}),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is"):
        DenOptions(**options)


def test_no_rows_and_too_much_growth_are_said() -> None:
    den = learner(ALL, tasks=1, max_units=10, expand=0, select_threshold=-1.0)
    with pytest.raises(ValueError, match=r"hidden layer 0 has 8 units and would get 8 more, above max_units \(10\)"):
        den.learn(*task(1), n_classes=3)
    # As it was: what it answers, and what it learns next with room enough.
    other = learner(ALL, tasks=1, max_units=10, expand=0, select_threshold=-1.0)
    assert len(den.model.heads) == len(den.growth) == 1
    for roomy in (den, other):
        roomy.options = dataclasses.replace(roomy.options, max_units=100)
        roomy.learn(*task(1), n_classes=3)
    x = task(9)[0]
    assert torch.equal(den.model(x, 0), other.model(x, 0))
    assert torch.equal(den.model(x, 1), other.model(x, 1))
    with pytest.raises(ValueError, match="task 0 has no rows"):
        learner(tasks=0).learn(torch.zeros(0, 6), torch.zeros(0).long(), 3)


X, Y = task(1)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X[:, :5], Y, r"x has shape \(40, 5\).*\(N, 6\)"),
        (X[0], Y[:6], r"x has shape \(6,\)"),
        (X.double(), Y, r"x is torch\.float64"),
        (X.where(torch.arange(40)[:, None] != 7, math.nan), Y, "row 7 of x holds nan in column 0"),
        (X.where(torch.arange(40)[:, None] != 7, -math.inf), Y, "row 7 of x holds -inf in column 0"),
        (X, Y[:39], r"y has shape \(39,\); give one class per row of x: \(40,\)"),
        (X, F.one_hot(Y, 3), r"y has shape \(40, 3\)"),
        (X, Y.float(), r"y is torch\.float32"),
        (X, Y == 1, r"y is torch\.bool"),
        (X, Y.where(torch.arange(40) != 3, 3), "row 3 of y has class 3; they go from 0 to 2"),
        (X, Y.where(torch.arange(40) != 3, -100), "row 3 of y has class -100"),
    ],
)
def test_bad_rows_are_refused_and_change_nothing(x: Tensor, y: Tensor, message: str) -> None:
    den, other = learner(tasks=1), learner(tasks=1)
    with pytest.raises(ValueError, match=message):
        den.learn(x, y, n_classes=3)
    for each in (den, other):
        each.learn(X, Y.int(), n_classes=3)
    assert den.growth == other.growth
    assert all(torch.equal(p, q) for p, q in zip(den.model.parameters(), other.model.parameters(), strict=True))


@pytest.mark.parametrize("n_classes", [0, 2.5])
def test_a_head_has_a_whole_number_of_classes(n_classes: Any) -> None:
    with pytest.raises(ValueError, match=f"task 0: n_classes is {n_classes}"):
        learner(tasks=0).learn(X, Y, n_classes)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_whatever_stops_a_task_leaves_the_network_as_it_was(
    monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    den = learner(tasks=1)
    before, state = [p.detach().clone() for p in den.model.parameters()], den.generator.get_state()

    def stop(*args: Any) -> None:
        raise error

    monkeypatch.setattr(den, "_split", stop)
    with pytest.raises(error):
        den.learn(X, Y, n_classes=3)
    assert all(torch.equal(p, q) for p, q in zip(den.model.parameters(), before, strict=True))
    assert torch.equal(den.generator.get_state(), state)


def test_a_training_that_diverged_is_said() -> None:
    den = learner(tasks=0, lr=1e30)
    with pytest.raises(ValueError, match=r"task 0 left weights that are not finite; lower lr \(1e\+30\)"):
        den.learn(X, Y, n_classes=3)
    assert len(den.model.heads) == len(den.growth) == 0
