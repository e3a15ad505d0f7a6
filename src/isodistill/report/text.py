"""The sentences and number formats of a report: plain words, made from the numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from isodistill.report.run import Estimate

__all__ = [
    "Claim",
    "change_claim",
    "interval_text",
    "level_claim",
    "mcnemar_sentence",
    "method_label",
    "method_name",
    "pair_claim",
    "percent",
    "points",
    "seed_note",
    "signed",
    "split_title",
    "verdict",
]

NAMES = {
    "iga": "IGA",
    "erm": "ERM",
    "erm_pooled": "ERM pooled",
    "sft": "SFT",
    "random_mask": "Random mask",
    "uniform_mask": "Uniform mask",
    "irm": "IRM",
    "vrex": "V-REx",
    "group_dro": "GroupDRO",
    "fish": "Fish",
    "fishr": "Fishr",
    "and_mask": "AND-mask",
    "sand_mask": "SAND-mask",
    "pcgrad": "PCGrad",
    "cagrad": "CAGrad",
    "upgrad": "UPGrad",
    "coral": "CORAL",
    "dann": "DANN",
    "mldg": "MLDG",
    "iga2020": "IGA-2020 (arXiv 2008.01883)",
    "isomer_consistency": "Isomer consistency",
    "iga_consistency": "IGA and isomer consistency",
}
TIERS = {"factor": "F", "tangent": "T", "tangent_separable": "TS", "weight": "W"}
SPLITS = {
    "ood": ("Domains never trained on (OOD)", "in domains never trained on"),
    "id": ("Training domains, new problems (ID)", "on new problems from the training domains"),
    "valid": ("Training domains, problems to select by (valid)", "on the problems to select by"),
    "cue_random": ("Planted cues made random", "where planted cues are random"),
}
VERDICTS = {
    "better": ("clear gain", "The whole interval lies above 0: a clear gain."),
    "worse": ("clear loss", "The whole interval lies below 0: a clear loss."),
    "unclear": ("no clear difference", "The interval contains 0: no clear difference."),
    "unknown": ("no interval", "No interval was computed, so chance is not ruled out."),
}


@dataclass(frozen=True)
class Claim:
    """One finding, ready to print.

    Attributes:
        split: the split it holds on.
        where: the split as a heading.
        contrast: what is compared with what.
        difference: the difference of two shares; None when there is nothing to compare with.
        value: the number to print large.
        interval: its interval in words.
        tone: see ``verdict``; empty when there is nothing to compare with.
        verdict: the tone in two words.
        sentence: the finding as a sentence.
    """

    split: str
    where: str
    contrast: str
    difference: Estimate | None
    value: str
    interval: str
    tone: str
    verdict: str
    sentence: str


def method_label(results: Mapping[str, Any], recipe: Mapping[str, Any]) -> str:
    """The name a method is printed under; IGA is never printed without its tier, and tiers are ours."""
    name = method_name(results["method"])
    alignment = recipe.get("alignment")
    if not isinstance(alignment, Mapping) or alignment.get("name") != "iga":
        return name
    space, control = str(alignment["space"]), alignment.get("control", "none")
    label = f"{name}, tier {TIERS.get(space, space)} (ours)"
    is_control = results["method"] in ("random_mask", "uniform_mask")  # its name says so
    return label if control == "none" or is_control else f"{label}, control: {control} mask"


def method_name(method: str) -> str:
    """A method's key as it is written in text."""
    return NAMES.get(method, method)


def percent(share: float) -> str:
    """A share in [0, 1] as per cent with one decimal."""
    return f"{100 * share:.1f}\N{NARROW NO-BREAK SPACE}%"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, always signed."""
    return f"{signed(100 * difference, 1)} points"


def signed(value: float, decimals: int) -> str:
    """A signed number with a real minus sign; a value that rounds to zero carries no sign."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def interval_text(estimate: Estimate) -> str:
    """The 95 % interval of a difference of two shares, in points."""
    if estimate.lo is None or estimate.hi is None:
        return "no interval computed"
    return f"95\N{NARROW NO-BREAK SPACE}% interval {signed(100 * estimate.lo, 1)} to {signed(100 * estimate.hi, 1)}"


def verdict(difference: Estimate, *, higher_is_better: bool = True) -> str:
    """``better``, ``worse``, ``unclear`` (the interval contains 0) or ``unknown`` (there is no interval)."""
    if difference.lo is None or difference.hi is None or math.isnan(difference.lo + difference.hi):
        return "unknown"
    if difference.lo <= 0 <= difference.hi:
        return "unclear"
    return "better" if (difference.lo > 0) == higher_is_better else "worse"


def pair_claim(split: str, baseline: str, method: str, accuracies: tuple[float, float], difference: Estimate) -> Claim:
    """Method against baseline on one split; ``accuracies`` are those of (baseline, method)."""
    left, right = accuracies
    fact = f"{_where(split)}, {method} answers {percent(right)} correctly and {baseline} {percent(left)}."
    return _difference_claim(split, f"{method} minus {baseline}", difference, fact)


def change_claim(split: str, method: str, accuracies: tuple[float, float], difference: Estimate) -> Claim:
    """One student after training against itself before; ``accuracies`` are those of (before, after)."""
    before, after = accuracies
    fact = f"{_where(split)}, training with {method} moved the student from {percent(before)} to {percent(after)}."
    return _difference_claim(split, f"{method}, after minus before", difference, fact)


def level_claim(split: str, method: str, accuracy: Estimate) -> Claim:
    """The accuracy of one student alone, where nothing was measured to compare it with."""
    interval = "no interval computed"
    if accuracy.lo is not None and accuracy.hi is not None:
        interval = f"95\N{NARROW NO-BREAK SPACE}% interval {percent(accuracy.lo)} to {percent(accuracy.hi)}"
    sentence = (
        f"{_where(split)}, {method} answers {percent(accuracy.value)} correctly. There is nothing to compare with."
    )
    return Claim(
        split, split_title(split), f"{method}, accuracy", None, percent(accuracy.value), interval, "", "", sentence
    )


def split_title(split: str) -> str:
    """The name of a split as a heading."""
    return SPLITS[split][0] if split in SPLITS else f"Split {split}"


def mcnemar_sentence(test: Mapping[str, float], baseline: str, method: str) -> str:
    """Set-level McNemar test; b counts sets that the baseline alone solves in every domain, c those of the method."""
    b, c = round(test["b"]), round(test["c"])
    return (
        f"Sets solved in every domain by one of the two only: {baseline} {b}, {method} {c} "
        f"(exact McNemar test on sets, p = {test['p']:.3g})."
    )


def seed_note(seeds: int, shown: int) -> str:
    """What the intervals cover: test problems, and training seeds only where there are three or more."""
    if seeds == 1:
        return "One training seed: the intervals cover the choice of test problems, not what another seed would give."
    cover = "test problems and training seeds" if seeds >= 3 else "test problems only, not training seeds"
    return (
        f"Differences to the baseline are means over {seeds} training seeds, and their intervals cover {cover}. "
        f"Accuracies, plots and answers are those of seed {shown}."
    )


def _where(split: str) -> str:
    phrase = SPLITS[split][1] if split in SPLITS else f"on the split {split}"
    return phrase[0].upper() + phrase[1:]


def _difference_claim(split: str, contrast: str, difference: Estimate, fact: str) -> Claim:
    tone = verdict(difference)
    words, judgement = VERDICTS[tone]
    value, interval = points(difference.value), interval_text(difference)
    return Claim(split, split_title(split), contrast, difference, value, interval, tone, words, f"{fact} {judgement}")
