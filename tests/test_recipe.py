"""The recipe: reading, overriding, refusing, and writing back what was read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from isodistill.errors import UserError
from isodistill.recipe import Cue, Evaluate, Isomers, Recipe, Split, dump_recipe, load_recipe, parse_recipe

names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12)
shares = st.floats(0, 1, allow_nan=False)
scalars = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False) | names
recipes = st.builds(
    Recipe,
    student=names,
    real_data=st.none() | names,
    columns=st.none() | st.dictionaries(names, names, max_size=2),
    max_refused=shares,
    baseline=st.none() | names,
    alignment=st.none() | st.dictionaries(names, scalars, max_size=3),
    isomers=st.builds(
        Isomers,
        families=st.lists(names, max_size=2),
        difficulty=st.lists(st.integers(1, 3), max_size=3),
        cue=st.builds(Cue, kind=names, rho=shares | st.dictionaries(names, shares, max_size=2)),
    ),
    split=st.builds(Split, valid=shares, test=shares, held_out_domains=st.lists(names, max_size=2)),
    train=st.dictionaries(names, scalars, max_size=3).map(lambda given: {"steps": 200} | given),
    evaluate=st.builds(Evaluate, max_new_tokens=st.integers(1, 9), before=st.booleans()),
    seed=st.integers(0, 99),
)


@settings(deadline=None)
@given(recipes)
def test_what_is_written_reads_back_equal(recipe: Recipe) -> None:
    text = dump_recipe(recipe)
    assert parse_recipe(_tree(text)) == recipe


@settings(deadline=None)
@given(recipes)
def test_every_default_is_written_out(recipe: Recipe) -> None:
    assert _tree(dump_recipe(recipe)).keys() == asdict(recipe).keys()


def _tree(text: str) -> dict[str, Any]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return asdict(load_recipe(path))


def test_an_empty_recipe_is_the_default_one(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    assert load_recipe(tmp_path / "recipe.yaml") == Recipe() == parse_recipe({})


@pytest.mark.parametrize(
    ("tree", "key", "near"),
    [
        ({"seeed": 1}, "seeed", "seed"),
        ({"evaluate": {"max_tokens": 1}}, "evaluate.max_tokens", "evaluate.max_new_tokens"),
        ({"isomers": {"cue": {"knd": "private"}}}, "isomers.cue.knd", "isomers.cue.kind"),
    ],
)
def test_unknown_key_names_the_nearest(tree: dict[str, Any], key: str, near: str) -> None:
    with pytest.raises(UserError, match=f"Unknown key {key} in .* Did you mean {near}\\?"):
        parse_recipe(tree)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"seed": 1.5}, "seed in the recipe must be int, but is 1.5. The default is 0"),
        ({"seed": True}, "seed in the recipe must be int"),
        ({"evaluate": {"before": "yes please"}}, "evaluate.before in the recipe must be bool"),
        ({"max_refused": "much"}, "max_refused in the recipe must be float"),
        ({"baseline": 3}, "baseline in the recipe must be str or null"),
        ({"split": {"held_out_domains": "law"}}, "split.held_out_domains in the recipe must be list"),
        ({"split": {"held_out_domains": ["law", 3]}}, r"held_out_domains\[1\] in the recipe must be str, but is 3"),
        ({"columns": {"prompt": 3}}, "columns.prompt in the recipe must be str, but is 3"),
        ({"isomers": {"cue": {"rho": {"law": "x"}}}}, "rho.law in the recipe must be float"),
        ({"split": None}, "split in the recipe is a group of keys"),
        ({"evaluate": {"max_new_tokens": 0}}, "evaluate.max_new_tokens is 0; it must be at least 1"),
        ({"evaluate": {"max_sets": -1}}, "evaluate.max_sets is -1"),
        ({"evaluate": {"temperature": -0.1}}, "evaluate.temperature is -0.1; it must be at least 0"),
        (
            {"evaluate": {"n_samples": 4}},
            "n_samples is 4 and evaluate.temperature is 0: greedy answers are all the same",
        ),
    ],
)
def test_values_of_the_wrong_kind_are_named(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_recipe(tree)


def test_a_whole_number_serves_as_a_float() -> None:
    recipe = parse_recipe({"max_refused": 1, "isomers": {"cue": {"rho": {"law": 1}}}})
    assert isinstance(recipe.max_refused, float)
    assert recipe.isomers.cue.rho == {"law": 1.0}


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", ".1e-2", "+1e-3", "0.001"])
def test_numbers_with_an_exponent_are_numbers(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"train: {{learning_rate: {text}}}\nmax_refused: {text}")
    recipe = load_recipe(tmp_path / "recipe.yaml", [f"evaluate.max_sets={3}", f"alignment.tau={text}"])
    assert recipe.train["learning_rate"] == recipe.max_refused == recipe.alignment["tau"] == 0.001


def test_text_that_looks_like_a_number_stays_text() -> None:
    text = dump_recipe(Recipe(student="1e5"))
    assert "'1e5'" in text
    assert yaml.safe_load(text)["student"] == "1e5"


def test_overrides_reach_into_groups_and_win() -> None:
    overrides = ["alignment.tau=3", "train.steps=7", "baseline=null", "split.held_out_domains=[law]", "train.steps=8"]
    recipe = parse_recipe({"train": {"steps": 1, "lr": 2}, "alignment": None}, overrides)
    assert recipe.alignment == {"tau": 3}
    assert recipe.train == {"steps": 8, "lr": 2}
    assert recipe.baseline is None
    assert recipe.split.held_out_domains == ["law"]


def test_another_name_in_a_slot_drops_the_options_of_the_last() -> None:
    tree = {"guard": {"name": "ewc", "lam": 3.0}, "alignment": {"tau": 2.0}}
    assert parse_recipe(tree, ["guard.name=none"]).guard == {"name": "none"}
    assert parse_recipe(tree, ["guard.name=ewc"]).guard == {"name": "ewc", "lam": 3.0}
    assert parse_recipe(tree, ["guard.name=l2", "guard.lam=1"]).guard == {"name": "l2", "lam": 1}
    assert parse_recipe(tree, ["alignment.name=iga"]).alignment == {"tau": 2.0, "name": "iga"}


def test_overrides_leave_the_given_mapping_alone() -> None:
    tree = {"train": {"steps": 1}}
    parse_recipe(tree, ["train.steps=2"])
    assert tree == {"train": {"steps": 1}}


@pytest.mark.parametrize("override", ["train.steps", "=3", "student.name=x", "train=[", "evaluate.sets=1"])
def test_bad_overrides_are_refused(override: str) -> None:
    with pytest.raises(UserError):
        parse_recipe({"student": "tiny"}, [override])


def test_a_group_keeps_the_defaults_of_what_it_leaves_out() -> None:
    recipe = parse_recipe({"lora": {"r": 8}, "train": {"learning_rate": 1e-4}})
    assert recipe.lora == Recipe().lora | {"r": 8}
    assert recipe.train == {"steps": 200, "learning_rate": 1e-4}
