"""Gradients of the grouped model, ERM and IGA at tau 0, repeatable runs, the command."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from isodistill.alignment import IRM, InvariantGradientAlignment
from isodistill.errors import UserError
from isodistill.lab import LabSettings, run_lab
from isodistill.lab.evaluate import greedy
from isodistill.lab.model import LabModel, grouped
from isodistill.lab.settings import TaskOptions, TrainOptions
from isodistill.lab.task import Task
from isodistill.lab.train import backward
from isodistill.models.lora import DomainGradients
from isodistill.recipe import parse_settings

PROMPT, TRACE = 8, 4
SMALL = ["train.steps=8", "train.rows=2", "train.width=16", "task.domains=3", "task.test_problems=5"]


def small(method: str = "iga", seed: int = 100, overrides: list[str] | None = None) -> dict[str, Any]:
    settings = parse_settings(LabSettings, {"method": method, "seed": seed}, [*SMALL, *(overrides or [])], "the test")
    return run_lab(settings)


def made() -> tuple[LabModel, torch.Tensor]:
    task = Task(TaskOptions(domains=3), 0)
    generator = torch.Generator().manual_seed(0)
    assert (task.prompt, task.trace) == (PROMPT, TRACE)
    model = LabModel(task.vocabulary, task.outputs, PROMPT + TRACE - 1, 16, 2, generator).double()
    return model, task.training_batch(4, generator)


def loss(model: LabModel, weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    logits, _ = model(weights, tokens[..., :-1], last=TRACE)
    return F.cross_entropy(logits.flatten(0, -2), tokens[..., -TRACE:].flatten(), reduction="sum")


def test_gradients_of_the_groups_are_those_of_each_domain_alone() -> None:
    """Against one plain autograd pass per domain, in fp64."""
    model, tokens = made()
    copies = grouped(model, 3)
    gradients = dict(zip(copies, torch.autograd.grad(loss(model, copies, tokens), list(copies.values())), strict=True))
    for k in range(3):
        leaves = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        expected = torch.autograd.grad(
            loss(model, {name: leaf[None] for name, leaf in leaves.items()}, tokens[k : k + 1]), list(leaves.values())
        )
        for name, gradient in zip(leaves, expected, strict=True):
            torch.testing.assert_close(gradients[name][k], gradient, rtol=1e-10, atol=1e-12)


def test_no_token_sees_a_later_one_and_fewer_last_positions_change_nothing() -> None:
    model, tokens = made()
    weights = {name: p[None] for name, p in model.named_parameters()}
    rows = tokens.flatten(0, 1)[None]
    logits, states = model(weights, rows[..., :-1], last=TRACE)
    one, state = model(weights, rows[..., :-1], last=1)
    torch.testing.assert_close(logits[..., -1:, :], one)
    torch.testing.assert_close(states[..., -1:, :], state)
    torch.testing.assert_close(logits[..., :1, :], model(weights, rows[..., :PROMPT], last=1)[0])


def test_greedy_traces_are_the_likeliest_tokens_one_by_one() -> None:
    model, tokens = made()
    model.float()
    prompts = tokens.flatten(0, 1)[:, :PROMPT]
    traces, states = greedy(model, prompts, TRACE)
    weights = {name: p[None] for name, p in model.named_parameters()}
    whole = torch.cat([prompts, traces], dim=1)[None]
    logits, all_states = model(weights, whole[..., :-1], last=TRACE)
    assert torch.equal(logits.argmax(-1)[0], traces)
    torch.testing.assert_close(states, all_states[0, :, 0])


def test_the_curve_is_of_all_steps_in_their_order() -> None:
    short = small("erm")
    assert len(short["curve"]) == 8  # one part for each step
    assert short["training"]["loss"] == pytest.approx(sum(short["curve"][4:]) / 4, abs=2e-6)
    long = small("erm", overrides=["train.steps=100"])
    assert len(long["curve"]) == 50
    assert long["training"]["loss"] == pytest.approx(sum(long["curve"][25:]) / 25, abs=2e-6)
    assert long["curve"][0] > long["curve"][-1]


@pytest.mark.parametrize("options", [[], ["alignment.apply_to=gradient"], ["train.optimizer=sgd", "train.lr=0.1"]])
def test_tau_zero_is_erm(options: list[str]) -> None:
    """The two sum one gradient in another order, so they agree to rounding."""
    train_options = [option for option in options if option.startswith("train")]
    erm, neutral = small("erm", overrides=train_options), small(overrides=["alignment.tau=0", *options])
    assert neutral["training"]["loss"] == pytest.approx(erm["training"]["loss"], rel=1e-4)
    assert neutral["splits"]["ood"]["lcs"] == pytest.approx(erm["splits"]["ood"]["lcs"], rel=1e-2)
    masked = small(overrides=["alignment.tau=30", *options])
    assert masked["training"]["loss"] != pytest.approx(erm["training"]["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("method", "neutral"),
    [("irm", "lam=0"), ("vrex", "lam=0"), ("group_dro", "eta=0"), ("coral", "lam=0"), ("dann", "lam=0"),
     ("fishr", "lam=0"), ("iga2020", "lam=0")],
)  # fmt: skip
def test_a_rival_is_erm_in_its_neutral_setting_and_not_elsewhere(method: str, neutral: str) -> None:
    strong = {"irm": "lam=1e4", "vrex": "lam=1e3", "group_dro": "eta=50", "dann": "lam=30"}.get(method, "lam=100")
    always = [] if method in ("group_dro", "coral", "dann", "iga2020") else ["alignment.anneal=0"]
    erm = small("erm")["training"]["loss"]
    assert small(method, overrides=[f"alignment.{neutral}"])["training"]["loss"] == pytest.approx(erm, rel=1e-4)
    apart = small(method, overrides=[f"alignment.{strong}", *always])["training"]["loss"]
    assert apart != pytest.approx(erm, rel=1e-4)


@pytest.mark.parametrize("method", ["fish", "mldg"])
def test_gradients_at_moved_weights_are_of_the_same_batch(method: str) -> None:
    record = small(method, overrides=["train.steps=100", "train.rows=8"])
    assert record["training"]["loss"] < 0.8 * small("erm")["training"]["loss"]


@pytest.mark.parametrize("options", [{"estimator": "squared", "lam": 3.0, "anneal": 0.0}])
def test_the_penalty_reaches_all_weights_as_autograd_says(options: dict[str, Any]) -> None:
    """IRM's penalty by the derivative with respect to a scale of the logits, with a graph."""
    model, tokens = made()
    irm = IRM(**options)
    irm.setup(layers=[], total_steps=1, adaptive=True, seed=0)
    gradients = DomainGradients.allocate(model, 1)
    gradients.losses = torch.zeros(3, dtype=torch.float64)
    backward(model, gradients, tokens, TRACE, irm)
    leaves = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    total = torch.zeros((), dtype=torch.float64)
    for k in range(3):
        w = torch.ones((), dtype=torch.float64, requires_grad=True)
        logits, _ = model({name: leaf[None] for name, leaf in leaves.items()}, tokens[k : k + 1, :, :-1], last=TRACE)
        L = F.cross_entropy((w * logits).flatten(0, -2), tokens[k, :, -TRACE:].flatten())
        (d,) = torch.autograd.grad(L, w, create_graph=True)
        total = total + (L + options["lam"] * d**2) / 3
    for name, expected in zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True):
        torch.testing.assert_close(gradients.views[name][0].double(), expected, rtol=1e-4, atol=1e-6)


def test_one_seed_gives_one_record_and_another_seed_another() -> None:
    first, again, other = small(), small(), small(seed=101)
    for record in (first, again, other):
        record.pop("seconds")
    assert first == again
    assert first["splits"] != other["splits"]


def test_the_record_holds_the_numbers_of_three_splits() -> None:
    record = small("erm")
    assert record["seed"] == 100
    assert record["method"] == "erm"
    assert list(record["splits"]) == ["id", "cue_random", "ood"]
    for numbers in record["splits"].values():
        assert list(numbers) == [
            "acc_macro", "all_correct", "acc_first", "agreement", "lcs", "lcs_random", "lcs_ratio",
        ]  # fmt: skip
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("space", ["factor", "weight"])
def test_gradients_of_lora_are_those_of_each_domain_alone(space: Any) -> None:
    """Against autograd through W0 + s B A, and the dense ones against autograd of W itself."""
    model, tokens = made()
    model.adapt(4, torch.Generator().manual_seed(1))
    model.double()
    for layer in model.lora.values():
        layer.B.data.normal_(generator=torch.Generator().manual_seed(2))
    gradients = DomainGradients.allocate(model, 3)
    gradients.dense = {n: torch.zeros(3, *layer.shape) for n, layer in model.lora.items()} if space == "weight" else {}
    gradients.losses = torch.zeros(3, dtype=torch.float64)
    backward(model, gradients, tokens, TRACE, InvariantGradientAlignment(space=space))
    assert set(gradients.views) == {
        n for n, p in model.named_parameters() if n.endswith(("_A", "_B")) and p.requires_grad
    }
    for k in range(3):
        W = {name: w[None] for name, w in model.weights().items()}
        for name, layer in model.lora.items():
            W[name] = (getattr(model, name) + layer.scale * layer.B @ layer.A)[None]
            W[name].retain_grad()
        model.zero_grad()
        (loss(model, W, tokens[k : k + 1]) / (4 * TRACE)).backward()  # 4 rows of a domain
        for name, layer in model.lora.items():
            for mine, factor in ((f"{name}_A", layer.A), (f"{name}_B", layer.B)):
                torch.testing.assert_close(gradients.views[mine][k].double(), factor.grad, rtol=1e-4, atol=1e-6)
            if space == "weight":
                torch.testing.assert_close(gradients.dense[name][k].double(), W[name].grad[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("space", ["factor", "tangent", "tangent_separable", "weight"])
def test_every_tier_is_erm_on_lora_at_tau_zero_and_not_elsewhere(space: str) -> None:
    lora = ["train.lora=4", "train.warm=4"]
    erm = small("erm", overrides=lora)["training"]["loss"]
    neutral, masked = (small(overrides=[*lora, f"alignment.space={space}", f"alignment.tau={tau}"]) for tau in (0, 30))
    assert neutral["training"]["loss"] == pytest.approx(erm, rel=1e-4)
    assert masked["training"]["loss"] != pytest.approx(erm, rel=1e-4)


def test_the_warm_start_learns_with_random_cues_and_lora_starts_from_it() -> None:
    """The loss before the one step that is asked for: of a warm student, on random cues, and of a cold one."""
    cold, warm = (
        small("erm", overrides=["train.steps=1", "train.lora=4", "task.rho=0", f"train.warm={steps}"])["training"][
            "loss"
        ]
        for steps in (0, 100)
    )
    assert warm < 0.9 * cold


def test_a_student_learns() -> None:
    short, longer = small("erm"), small("erm", overrides=["train.steps=150", "train.rows=8"])
    assert longer["training"]["loss"] < 0.8 * short["training"]["loss"]


def test_mistakes_are_told_with_what_to_do() -> None:
    for overrides, message in (
        (["task.domain=3"], "Did you mean task.domains"),
        (["alignment.tao=3"], "Did you mean 'tau'"),
        (["alignment.space=weight"], "LoRA layers; set train.lora"),
        (["alignment.debias=true"], "two halves"),
        (["train.lora=-1"], r"train\.lora is -1"),
        (["train.optimizer=lion"], "choose one of adam, adamw, sgd"),
    ):
        with pytest.raises(UserError, match=message):
            small(overrides=overrides)
    with pytest.raises(UserError, match=r"train\.width is 20"):
        TrainOptions(width=20)


def test_the_command_prints_the_record() -> None:
    command = [sys.executable, "-m", "isodistill.lab", "--method", "iga", "--seed", "100"]
    options = [part for override in SMALL for part in ("--set", override)]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=300, check=True)
    record = json.loads(done.stdout)
    expected = small()
    assert record["splits"] == expected["splits"]
    failed = subprocess.run([*command, "--set", "task.rho=2"], capture_output=True, text=True, timeout=300, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: task.rho is 2")
