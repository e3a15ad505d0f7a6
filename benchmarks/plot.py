"""``python -m benchmarks.plot``: the ratios of ``benchmarks/results.json`` as ``docs/images/speed.svg``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

HERE = Path(__file__).parent
FASTER = {
    "sft_vs_trl_default": ("SFT step / TRL, defaults", None),
    "sft_vs_trl_best": ("SFT step / TRL, best settings", 4.0),
    "sft_vs_peft": ("SFT step / peft + Trainer", None),
    "generate_vs_hf": ("greedy answers / model.generate", 6.0),
    "generate_vs_hf_trained": ("the same, trained student", 6.0),
    "generate_vs_hf_b1": ("the same, one prompt at a time", None),
}
"""Tokens per second of ours over theirs: name, label, goal."""
COSTS = {
    "iga_f_vs_sft_1024": ("IGA F, 1,024 tokens", 1.08),
    "iga_f_vs_sft_4096": ("IGA F, 4,096 tokens", 1.03),
    "iga_ts_vs_sft_4096": ("IGA TS, 4,096 tokens", 1.04),
    "iga_t_vs_sft_4096": ("IGA T, 4,096 tokens", 1.10),
    "iga_w_vs_sft_4096": ("IGA W, 4,096 tokens", 1.25),
    "iga_f_k16_vs_k2": ("IGA F, K = 16 over K = 2", 1.05),
}
"""Seconds of a step over those of our SFT (or of K = 2): name, label, goal."""


def bars(ax: Any, ratios: dict[str, float], rows: dict[str, tuple[str, float | None]], title: str) -> None:
    """One bar per ratio that was measured, its value beside it, a tick at its goal."""
    known = [(label, ratios[name], goal) for name, (label, goal) in rows.items() if name in ratios]
    places = range(len(known))
    ax.barh(places, [value for _, value, _ in known], color="#4477aa", height=0.6)
    for place, (_, value, goal) in zip(places, known, strict=True):
        ax.text(value, place, f" {value:.2f}", va="center", fontsize=9)
        if goal is not None:
            ax.plot([goal, goal], [place - 0.4, place + 0.4], color="#cc3311", linewidth=2)
    ax.set_yticks(places, [label for label, _, _ in known], fontsize=9)
    ax.invert_yaxis()
    ax.margins(x=0.15)
    ax.axvline(1, color="0.6", linewidth=0.8)
    ax.set_title(title, fontsize=10, loc="left")
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def main() -> None:
    """Draw."""
    ratios = json.loads((HERE / "results.json").read_text(encoding="utf-8"))
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    bars(left, ratios, FASTER, "tokens per second, ours over theirs (red: goal)")
    bars(right, ratios, COSTS, "seconds per step, over plain SFT (red: limit)")
    right.set_xlim(left=0.9)
    path = HERE.parent / "docs" / "images" / "speed.svg"
    figure.savefig(path, metadata={"Date": None})
    print(path)


if __name__ == "__main__":
    main()
