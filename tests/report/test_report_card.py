"""The model card: what hubs read, the robustness table, and code that runs as printed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from isodistill.errors import UserError
from isodistill.report import write_model_card

MakeRun = Callable[..., Path]


def card(run: Path, difference: dict[str, Any] | None = None, base: str = "someone/model", **recipe: Any) -> str:
    """The card of a run whose adapter sits on ``base``."""
    student = run / "student"
    student.mkdir(exist_ok=True)
    if not (student / "adapter_config.json").exists():
        (student / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    results = json.loads((run / "results.json").read_text())
    settings = yaml.safe_load((run / "recipe.yaml").read_text()) | recipe
    write_model_card(student, results, settings, difference)
    return (student / "README.md").read_text(encoding="utf-8")


def front_matter(text: str) -> dict[str, Any]:
    _, block, _ = text.split("---\n", 2)
    return yaml.safe_load(block)


def tables(text: str) -> list[list[list[str]]]:
    """Every Markdown table as rows of cells."""
    blocks = re.findall(r"(?:^\|.*\|\n)+", text, flags=re.MULTILINE)
    return [[[c.strip() for c in line.strip("|").split(" | ")] for line in b.splitlines()] for b in blocks]


def test_front_matter_of_a_packaged_student(make_run: MakeRun) -> None:
    matter = front_matter(card(make_run("iga", n_sets=6)))
    assert matter["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert matter["library_name"] == "peft"
    assert matter["license"] == "apache-2.0"
    assert {"isodistill", "iga", "lora"} <= set(matter["tags"])


def test_front_matter_of_a_hub_student(make_run: MakeRun) -> None:
    matter = front_matter(card(make_run("erm", n_sets=6), student="someone/model"))
    assert matter["base_model"] == "someone/model"
    assert matter["license"] == "other"
    assert matter["license_name"] == "that-of-the-base-model"


def test_the_path_of_a_local_base_stays_out(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "my-base").mkdir()
    text = card(make_run("erm", n_sets=6), base=str(tmp_path / "my-base"), student=str(tmp_path / "my-base"))
    assert front_matter(text)["base_model"] == "my-base"


def test_robustness_table_has_the_numbers_with_intervals(make_run: MakeRun, make_comparison: MakeRun) -> None:
    iga, erm = make_run("iga"), make_run("erm")
    comparison = json.loads(make_comparison(iga, erm, iga).read_text())
    text = card(iga, {"baseline": "erm", **comparison["differences"]["iga"]})
    ood, _ = tables(text)
    numbers = json.loads((iga / "results.json").read_text())
    before, after = numbers["before"]["ood"], numbers["splits"]["ood"]
    d, lo, hi = comparison["differences"]["iga"]["ood"]["acc_macro"]
    assert ood[0][1:] == ["before", "IGA, tier F (ours)", "difference to ERM"]
    assert [row[0].split(" (")[0] for row in ood[2:]] == ["Accuracy", "Worst domain", "Solved everywhere", "LCS ratio"]
    accuracy = ood[2]
    for cell, entry in ((accuracy[1], before), (accuracy[2], after)):
        low, high = entry["acc_macro_ci95"]
        assert cell == f"{100 * entry['acc_macro']:.1f} ({100 * low:.1f}–{100 * high:.1f})"
    assert accuracy[3] == f"+{100 * d:.1f} (+{100 * lo:.1f} to +{100 * hi:.1f}), better"
    assert "our definition" in ood[5][0]


def test_undefined_numbers_are_dashes_with_their_reason(make_run: MakeRun) -> None:
    run = make_run("erm", before=False)
    results = json.loads((run / "results.json").read_text())
    results["splits"]["ood"]["lcs_ratio"] = None
    (run / "results.json").write_text(json.dumps(results))
    text = card(run)
    assert tables(text)[0][5][1] == "–"
    assert "representations were not measured" in text
    assert "not compared with a baseline" in text


def test_only_iga_cites_its_paper(make_run: MakeRun) -> None:
    assert "eprint        = {2606.05025}" in card(make_run("iga", n_sets=6))
    assert "2606.05025" not in card(make_run("erm", n_sets=6))


def test_the_recipe_and_versions_are_all_there(make_run: MakeRun) -> None:
    run = make_run("iga", n_sets=6)
    text = card(run)
    (recipe,) = re.findall(r"````yaml\n(.*?)````", text, flags=re.DOTALL)
    assert yaml.safe_load(recipe) == yaml.safe_load((run / "recipe.yaml").read_text())
    assert "- peft 0.21.2\n" in text


def test_names_cannot_break_the_table(make_run: MakeRun) -> None:
    run = make_run("erm", n_sets=6)
    text = card(run, {"baseline": "a | <b>\nc", "id": {}, "ood": {}})
    assert "difference to a \\| &lt;b> c" in text


def test_same_files_same_bytes(make_run: MakeRun) -> None:
    run = make_run("iga", n_sets=6)
    assert card(run) == card(run)


def test_a_folder_without_an_adapter(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run("iga", n_sets=2)
    results, recipe = json.loads((run / "results.json").read_text()), yaml.safe_load((run / "recipe.yaml").read_text())
    with pytest.raises(UserError, match="no saved adapter"):
        write_model_card(tmp_path, results, recipe, None)


def test_the_printed_code_loads_and_merges_the_adapter(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run both blocks of the card as they stand; the merged model computes what the adapter computes."""
    torch = pytest.importorskip("torch")
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained(tmp_path / "base")
    student = make_run("erm", n_sets=2) / "student"
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(student)
    words = {f"w{i}": i for i in range(16)}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0"))).save_pretrained(student)
    blocks = re.findall(r"```python\n(.*?)```", card(student.parent), flags=re.DOTALL)
    assert len(blocks) == 2

    monkeypatch.chdir(student)
    names: dict[str, Any] = {}
    ids = torch.arange(8).unsqueeze(0)
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
        exec(blocks[0], names)
        torch.testing.assert_close(names["model"].eval()(ids).logits, expected)
        exec(blocks[1], names)
        assert type(names["model"]) is LlamaForCausalLM
        torch.testing.assert_close(names["model"].eval()(ids).logits, expected, rtol=1e-4, atol=1e-5)
        plain = LlamaForCausalLM.from_pretrained(tmp_path / "base").eval()(ids).logits
    assert not torch.allclose(plain, expected, atol=1e-3)
