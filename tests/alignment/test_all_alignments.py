"""What every alignment owes on gradients made by hand: scales, order, one domain, absent domains, exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from isodistill.alignment import ALIGNMENTS, SEARCH
from isodistill.training.slots import PRESETS

from .bench import Bench, K, drawn

MASKS: list[tuple[str, dict[str, Any]]] = [
    ("and_mask", {}),
    ("and_mask", {"apply_to": "update"}),
    ("and_mask", {"grad_ema": 0.0, "renorm": True}),
    ("sand_mask", {}),
    ("sand_mask", {"apply_to": "update", "control": "random"}),
]
SURGERY: list[tuple[str, dict[str, Any]]] = [
    ("pcgrad", {}),
    ("pcgrad", {"reduction": "sum"}),
    ("cagrad", {}),
    ("cagrad", {"c": 0.9, "rescale": True}),
    ("upgrad", {}),
]
WEIGHTED: list[tuple[str, dict[str, Any]]] = [
    ("vrex", {}),
    ("vrex", {"lam": 100.0, "anneal": 0.0}),
    ("group_dro", {}),
    ("group_dro", {"eta": 3.0}),
]
METHODS = MASKS + SURGERY + WEIGHTED
NEUTRAL: list[tuple[str, dict[str, Any]]] = [
    ("and_mask", {"t": 0.0}),
    ("cagrad", {"c": 0.0}),
    ("vrex", {"lam": 0.0}),
    ("group_dro", {"eta": 0.0}),
]
# What they make of domains that all agree is longer than the mean.
LONGER = ("cagrad", {"c": 0.9, "rescale": True}), ("cagrad", {}), ("pcgrad", {"reduction": "sum"})


def name_of(value: Any) -> str | None:
    return "-".join(f"{k}={v}" for k, v in value.items()) or "default" if isinstance(value, dict) else None


def of(*parts: list[tuple[str, dict[str, Any]]]) -> pytest.MarkDecorator:
    cases = [case for part in parts for case in part]
    return pytest.mark.parametrize(("name", "options"), cases, ids=name_of)


every = of(METHODS)


def domain_mean(step: int, present: list[bool] | None = None) -> torch.Tensor:
    rows = torch.tensor(present or [True] * K)
    return drawn(step)[rows].mean(0)


def test_values_to_search_are_taken_by_the_classes_and_hold_the_default() -> None:
    for name, ranges in SEARCH.items():
        default = ALIGNMENTS[name]()
        for option, values in ranges.items():
            assert getattr(default, option) in values
            assert [getattr(ALIGNMENTS[name](**{option: value}), option) for value in values] == values


def test_every_alignment_is_a_method_with_a_page() -> None:
    pages = Path(__file__).resolve().parents[2] / "docs" / "method"
    assert PRESETS.keys() >= ALIGNMENTS.keys()
    assert all((pages / f"{name}.md").is_file() for name in ALIGNMENTS)


@every
def test_the_default_moves_the_parameters(name: str, options: dict[str, Any]) -> None:
    found, _ = Bench(name, **options).step(drawn(0))
    assert float(found.norm()) > 0.05 * float(domain_mean(0).norm())


@of([case for case in METHODS if not case[1].get("rescale")])
def test_one_domain_is_erm(name: str, options: dict[str, Any]) -> None:
    bench = Bench(name, domains=1, **options)
    for step in range(3):
        found, _ = bench.step(drawn(step, domains=1))
        torch.testing.assert_close(found.float(), drawn(step, domains=1)[0], rtol=1e-4, atol=1e-4)


@of(NEUTRAL)
def test_the_neutral_setting_is_erm(name: str, options: dict[str, Any]) -> None:
    bench = Bench(name, **options)
    for step in range(3):
        found, _ = bench.step(drawn(step), [True, step != 1, True])
        expected = domain_mean(step, [True, step != 1, True])
        torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-4)


@every
def test_only_present_domains_count(name: str, options: dict[str, Any]) -> None:
    """A domain that never appears is as if it did not exist."""
    three, two = Bench(name, **options), Bench(name, domains=2, **options)
    for step in range(3):
        g = drawn(step)
        absent, _ = three.step(g, [True, False, True])
        without, _ = two.step(g[[0, 2]])
        assert torch.isfinite(absent).all()
        torch.testing.assert_close(absent, without, rtol=1e-4, atol=1e-5)


@of([case for case in METHODS if case not in LONGER])
def test_domains_that_agree_give_erm(name: str, options: dict[str, Any]) -> None:
    found, _ = Bench(name, **options).step(drawn(0)[:1].expand(K, -1))
    torch.testing.assert_close(found.float(), drawn(0)[0], rtol=1e-4, atol=1e-4)


@every
def test_domains_that_only_conflict_leave_a_finite_step(name: str, options: dict[str, Any]) -> None:
    found, _ = Bench(name, domains=2, **options).step(torch.tensor([[1.0], [-1.0]]).expand(2, 17), losses=[0.5, 0.5])
    assert torch.isfinite(found).all()
    assert float(found.abs().max()) <= 1.0


@every
def test_the_direction_scales_with_the_gradients(name: str, options: dict[str, Any]) -> None:
    losses = [0.3, 1.2, 0.7]
    reference = Bench(name, **options).direction(drawn(0), losses=losses).double()
    for exponent in range(-10, 11):
        found = Bench(name, **options).direction(drawn(0, 10.0**exponent), losses=losses).double() / 10.0**exponent
        torch.testing.assert_close(found, reference, rtol=1e-4, atol=1e-5)


@of([case for case in METHODS if case[0] != "pcgrad"])  # its order is drawn; test_pcgrad.py hands it in
def test_the_order_of_the_domains_does_not_matter(name: str, options: dict[str, Any]) -> None:
    first, second = Bench(name, **options), Bench(name, **options)
    for step in range(3):
        found, _ = first.step(drawn(step))
        permuted, _ = second.step(drawn(step).flip(0))
        torch.testing.assert_close(found, permuted, rtol=1e-4, atol=1e-4)


@every
def test_state_makes_a_resume_exact(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    whole, first = Bench(name, **options), Bench(name, **options)
    for step in range(6):
        whole.step(drawn(step), [True, step != 1, True])
    for step in range(3):
        first.step(drawn(step), [True, step != 1, True])
    save_file(first.alignment.state_dict(), tmp_path / "state.safetensors")
    second = Bench(name, **options)
    second.module.load_state_dict(first.module.state_dict())
    second.alignment.load_state_dict(load_file(tmp_path / "state.safetensors"))
    for step in range(3, 6):
        second.step(drawn(step))
    assert torch.equal(second.parameters(), whole.parameters())


@every
def test_a_state_saved_before_the_first_step_loads(name: str, options: dict[str, Any]) -> None:
    bench, fresh = Bench(name, **options), Bench(name, **options)
    fresh.alignment.load_state_dict(bench.alignment.state_dict())
    assert torch.equal(bench.step(drawn(0))[0], fresh.step(drawn(0))[0])
