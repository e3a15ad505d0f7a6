"""The model card: README.md beside the adapter, with the robustness table on top of what hubs expect."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from isodistill.errors import UserError
from isodistill.report import tables, text
from isodistill.report.run import Side, ordered_splits

__all__ = ["write_model_card"]

CARD_METRICS = ("acc_macro", "acc_worst", "all_correct", "lcs_ratio")
# Students that come from a package or a GGUF file: the hub id and the licence of the weights they were made from.
ORIGINS = {"smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")}
CITATIONS = {
    "iga": """@misc{cheng2026invariant,
  title         = {Invariant Gradient Alignment for Robust Reasoning Distillation},
  author        = {Cheng, Zehua and Dai, Wei and Sun, Jiahao},
  year          = {2026},
  eprint        = {2606.05025},
  archivePrefix = {arXiv}
}"""
}


def write_model_card(
    student: Path, results: Mapping[str, Any], recipe: Mapping[str, Any], difference: Mapping[str, Any] | None
) -> None:
    """Write ``README.md`` into the folder of a saved adapter.

    Args:
        student: folder with ``adapter_config.json``.
        results: results.json of the run, schema 1.
        recipe: the resolved recipe.
        difference: split -> metric -> [method minus baseline, lo, hi], and under ``baseline`` the baseline's name;
            None when the run was compared with none.

    Raises:
        UserError: the folder holds no adapter.
    """
    config_file = student / "adapter_config.json"
    if not config_file.exists():
        raise UserError(
            f"{student} has no adapter_config.json, so it is no saved adapter. `isodistill train` makes one."
        )
    base, licence = _origin(recipe, json.loads(config_file.read_text(encoding="utf-8")))
    label = text.method_label(results, recipe)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("isodistill.report", "."),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _table_text
    card = environment.get_template("card.md.j2").render(
        front_matter=yaml.safe_dump(_front_matter(base, licence, results), sort_keys=False),
        base=base,
        label=label,
        prompted=(student / "prompt").exists(),
        whole=(student / "model").exists(),
        results=results,
        recipe=yaml.safe_dump(dict(recipe), sort_keys=False),
        problems=recipe.get("problems"),
        sections=_sections(results, label, difference),
        baseline=None if difference is None else difference["baseline"],
        citation=CITATIONS.get(_alignment_name(recipe)),
        versions=sorted((results.get("versions") or {}).items()),
    )
    (student / "README.md").write_text(card, encoding="utf-8", newline="\n")


def _origin(recipe: Mapping[str, Any], adapter: Mapping[str, Any]) -> tuple[str, str]:
    """Hub id of the base model (the name of its folder where it has none) and the licence of its weights."""
    if recipe.get("student") in ORIGINS:
        return ORIGINS[recipe["student"]]
    base = str(adapter["base_model_name_or_path"] or recipe.get("student"))
    return (Path(base).name if Path(base).is_dir() else base), "other"


def _front_matter(base: str, licence: str, results: Mapping[str, Any]) -> dict[str, Any]:
    matter: dict[str, Any] = {"base_model": base, "library_name": "peft", "license": licence}
    if licence == "other":
        matter["license_name"] = "that-of-the-base-model"
    tags = ["isodistill", "lora", "reasoning", "distillation", "robustness", str(results["method"])]
    return matter | {"pipeline_tag": "text-generation", "tags": tags}


def _sections(results: Mapping[str, Any], label: str, difference: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    before = results.get("before") or {}
    sides = [Side("before", "before", before)] if any(before.values()) else []
    sides.append(Side(label, "method", results["splits"]))
    head = "" if difference is None else f"difference to {text.method_name(difference['baseline'])}"
    return [
        {
            "title": text.split_title(split),
            "n_items": results["splits"][split].get("n_items"),
            "n_sets": results["splits"][split].get("n_sets"),
            "table": tables.robustness(
                split, sides, None if difference is None else difference.get(split) or {}, head, CARD_METRICS
            ),
        }
        for split in ordered_splits(results)
    ]


def _alignment_name(recipe: Mapping[str, Any]) -> str:
    alignment = recipe.get("alignment")
    return str(alignment.get("name")) if isinstance(alignment, Mapping) else ""


def _table_text(value: object) -> str:
    """Text that cannot break out of a Markdown table cell or start HTML."""
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")
