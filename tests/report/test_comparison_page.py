"""The page of a comparison: what its first lines say in each case, and that every number asked for stands on it."""

from __future__ import annotations

import random
import re
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from isodistill.report import write_comparison_report

from .test_report_page import Page

DOMAINS = {"ood": ("cooking", "sports"), "id": ("law", "medicine")}
GAINS = {"erm": 0.0, "iga": 0.06, "vrex": 0.02, "irm": -0.05, "random_mask": 0.01}
COMMAND = "isodistill compare recipe.yaml --methods erm,iga,vrex,irm,random_mask"
N_SEEDS = 3


def split_of(accuracy: float, split: str, rng: random.Random) -> dict[str, Any]:
    by_domain = {d: accuracy + rng.gauss(0, 0.01) for d in DOMAINS[split]}
    macro = fmean(by_domain.values())
    return {
        "acc_macro": macro, "acc_by_domain": by_domain, "acc_worst": min(by_domain.values()), "truncated": 0.01,
        "all_correct": 0.6 * macro, "agreement": 0.3 + 0.5 * macro, "lcs_ratio": 0.9 - 0.3 * macro,
    }  # fmt: skip


def differences(runs: list[dict[str, Any]], method: str, rival: str, half: float) -> dict[str, Any]:
    def mean(name: str, split: str, domain: str | None) -> float:
        entries = [run["splits"][split] for run in runs if run["method"] == name]
        return fmean(e["acc_macro"] if domain is None else e["acc_by_domain"][domain] for e in entries)

    def paired(split: str, domain: str | None) -> list[float]:
        d = mean(method, split, domain) - mean(rival, split, domain)
        return [d, d - half, d + half]

    return {
        split: {"acc_macro": paired(split, None), "acc_by_domain": {d: paired(split, d) for d in domains}}
        for split, domains in DOMAINS.items()
    }


def comparison(
    gains: dict[str, float] = GAINS, *, half: float = 0.03, p: float = 0.004, draws: int = 3
) -> dict[str, Any]:
    """comparison.json of made-up runs: accuracy 0.5 plus the method's gain, intervals of a given half width."""
    rng = random.Random(0)
    runs = [
        {
            "method": method, "seed_hparam": 1, "seed": seed, "student": "SmolLM2-135M-Instruct",
            "splits": {split: split_of(0.5 + gain, split, rng) for split in DOMAINS},
            "train": {"steps": 200, "tokens": 54_000, "seconds": 60.0, "peak_memory_bytes": 2**30},
            "versions": {"torch": "2.13.0"},
        }
        for method, gain in gains.items()
        for seed in range(N_SEEDS)
    ]  # fmt: skip
    rivals = [method for method in gains if method != "erm"]
    settings = {
        method: {
            "seed_hparam": 1, "step": 200, "score": 0.61, "scores": {"0": 0.512, "1": 0.61, "2": 0.507},
            "seeds": list(range(N_SEEDS)), "searched": {"tau": 3.0} if method == "iga" else {}, "learning_rate": 3e-4,
            "alignment": {"name": "iga", "space": "factor", "control": "none"} if method == "iga" else {"name": method},
        }
        for method in gains
    }  # fmt: skip
    to_controls = {}
    if "random_mask" in gains:
        to_controls["iga"] = {"random_mask": differences(runs, "iga", "random_mask", half)}
    rule = {
        "methods": settings,
        "differences": {method: differences(runs, method, "erm", half) for method in rivals},
        "differences_to_controls": to_controls,
        "holm": {split: dict.fromkeys(rivals, p) for split in DOMAINS},
    }
    search = {"methods": list(gains), "seeds": list(range(N_SEEDS)), "draws": draws, "splits": list(DOMAINS)}
    return {
        "schema": 1, "baseline": "erm", "runs": runs, "differences": rule["differences"],
        "search": search | {"controls": {"random_mask": "iga"}}, "default_rule": "train_val",
        "rules": {"train_val": rule, "oracle": rule}, "failed": [],
        "before": {split: split_of(0.2, split, rng) for split in DOMAINS},
    }  # fmt: skip


@pytest.fixture
def page(tmp_path: Path) -> Any:
    """``page(content)``: the page, read."""

    def make(content: dict[str, Any]) -> Page:
        write_comparison_report(content, recipe={"student": "smollm2-135m"}, command=COMMAND, out=tmp_path / "r.html")
        return Page((tmp_path / "r.html").read_text(encoding="utf-8"))

    return make


# ---- the first lines ----


def test_a_clear_winner_leads_the_page(page: Any) -> None:
    content = comparison()
    words = page(content).words
    difference = content["differences"]["iga"]["ood"]["acc_macro"][0]
    assert "IGA, tier F (ours) is ahead of ERM Student" in words
    assert f"+{100 * difference:.1f} points" in words
    assert "clear gain" in words
    assert "p = 0.004 after Holm's adjustment for 4 comparisons" in words
    assert "IGA, tier F (ours) minus Random mask (control)" in words


def test_a_gain_that_the_family_of_comparisons_explains_is_told_so(page: Any) -> None:
    words = page(comparison(p=0.2)).words
    assert "IGA, tier F (ours) is ahead of ERM, but not once 4 comparisons are allowed for" in words


def test_a_wide_interval_is_no_win_and_a_loss_is_none_either(page: Any) -> None:
    assert "No method is clearly ahead of ERM" in page(comparison(half=0.2)).words
    losing = {"erm": 0.0, "iga": -0.06, "random_mask": -0.1}
    assert "No method is ahead of ERM" in page(comparison(losing)).words


def test_a_control_never_wins(page: Any) -> None:
    words = page(comparison(GAINS | {"random_mask": 0.2})).words
    assert "IGA, tier F (ours) is ahead of ERM" in words
    assert "IGA, tier F (ours) is not clearly ahead of Random mask (control): what a control shows too" in words
    assert "is not clearly ahead" not in page(comparison()).words


def test_a_lone_baseline_compares_with_nothing(page: Any) -> None:
    assert "Nothing could be compared with ERM" in page(comparison({"erm": 0.0})).words


# ---- what stands on it ----


def test_every_rule_has_its_leaderboard_and_the_oracle_says_what_it_is(page: Any) -> None:
    content = comparison()
    words = page(content).words
    train_val, upper = words.index("(train_val)"), words.index("Upper bound: chosen on the test problems (oracle)")
    assert train_val < upper
    accuracies = ("Accuracy OOD", "against ERM", "p (Holm)", "Worst domain", "Accuracy ID")
    for head in (*accuracies, "Solved everywhere", "Agreement", "LCS ratio", "Seconds", "Memory in MiB"):
        assert words.count(head) >= 2, head
    assert f"Before training the student as it came {100 * content['before']['ood']['acc_macro']:.1f}" in words


def test_methods_are_ranked_by_accuracy_and_controls_stand_among_them(page: Any) -> None:
    board = page(comparison()).words.partition("(train_val)")[2].partition("Upper bound")[0]
    places = [
        board.index(name)
        for name in ("IGA tier F (ours)", "V-REx", "Random mask control of IGA", "ERM baseline", "IRM")
    ]
    assert places == sorted(places)


def test_every_seeds_value_every_domain_and_every_draw(page: Any) -> None:
    content = comparison()
    words = page(content).words
    for run in content["runs"]:
        assert f"{100 * run['splits']['ood']['acc_macro']:.1f}" in words
    for domain in (*DOMAINS["ood"], *DOMAINS["id"]):
        assert domain in words
    assert "51.2" in words
    assert "tau 3.0" in words
    assert "0.0003" in words


def test_cautions_name_seeds_budget_failures_and_missing_methods(page: Any) -> None:
    content = comparison()
    content["search"]["methods"].append("dann")
    content["failed"] = [
        {"method": "dann", "seed_hparam": 2, "seed": 1, "without": None, "reason": "<script>not finite</script>"}
    ]
    content["rules"]["train_val"]["methods"]["vrex"]["seeds"] = [0, 1]
    shown = page(content)
    assert "means over 3 training seeds; their intervals cover test problems and training seeds" in shown.words
    assert "the same budget: 3 draws" in shown.words
    assert "Fewer than 3 seeds finished for: V-REx (2)." in shown.words
    assert "No run finished for: DANN." in shown.words
    assert "dann, draw 2, seed 1: <script>not finite</script>" in shown.words, "shown as text, not run"
    assert "No hyperparameter was searched" in page(comparison(draws=1)).words


# ---- the file ----


def test_the_page_is_one_file_that_opens_offline_in_light_and_dark(tmp_path: Path) -> None:
    for name in ("a.html", "b.html"):
        write_comparison_report(comparison(), recipe={}, command=COMMAND, out=tmp_path / name)
    html = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert html == (tmp_path / "b.html").read_text(encoding="utf-8")
    tags = Page(html).tags
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags}
    links = [value for _, attributes in tags for key, value in attributes.items() if key.endswith(("href", "src"))]
    assert all(value is not None and value.startswith("#") for value in links)
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    assert "prefers-color-scheme: dark" in html
    assert not re.search(r"url\((?!#)", html)
    assert html.count("<svg") == 5  # overview, two of consistency, two of costs
