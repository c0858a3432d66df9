"""Recipes: shipped ones load, settings apply, mistakes are named with the nearest right word."""

import pytest

from onnxcompress import recipe
from onnxcompress.errors import UsageError
from onnxcompress.recipe import Recipe


def test_every_shipped_recipe_loads_and_describes_itself():
    assert {"fold", "int8-weights", "auto"} <= set(recipe.shipped())
    for name in recipe.shipped():
        loaded = Recipe.load(name)
        assert loaded.passes
        assert loaded.description
    assert "quantize-weights" not in [p.name for p in Recipe.load("fold").passes]


def test_a_recipe_says_whether_it_needs_data_or_can_use_them():
    found = {name: (Recipe.load(name).needs_data, Recipe.load(name).uses_data) for name in recipe.shipped()}
    assert found["int8"] == (True, True)
    assert found["int4-weights"] == (False, True)
    assert found["int8-weights"] == found["fold"] == (False, False)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("fodl", [], "fold"),
        ("fold-constants", [], "It is a pass"),
        (["fold-constants"], [], "a list is no recipe"),
        ("fold", ["fold-constants.allowance=1"], "allowance_bytes"),
        ("fold", ["fold-constant.allowance_bytes=1"], "fold-constants"),
        ("fold", ["quantize-weights.x=1"], "has no pass"),
        ("fold", ["nonsense"], "PASS.FIELD=VALUE"),
        ("fold", ["fold-constants.allowance_bytes=-1"], "allowance_bytes"),
    ],
)
def test_mistakes_are_usage_errors_that_help(name, settings, words):
    with pytest.raises(UsageError, match=words):
        Recipe.load(name, settings)


def test_a_setting_changes_the_option_and_stands_in_the_resolved_recipe():
    changed = Recipe.load("fold", ["fold-constants.allowance_bytes=7"])
    entry = next(p for p in changed.as_json()["passes"] if p["name"] == "fold-constants")
    assert entry["allowance_bytes"] == 7


def test_a_recipe_file_may_not_name_code(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('[[passes]]\nname = "surgery"\nfunction = "os:abort"\n')
    with pytest.raises(UsageError, match="command line"):
        Recipe.load(path)


@pytest.mark.parametrize("text", ["passes = 3", "[[passes]]\nnam = 'x'", "not toml at all", "pases = []\npasses = []"])
def test_malformed_files_are_usage_errors(tmp_path, text):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(UsageError):
        Recipe.load(path)


def test_a_name_where_a_pass_belongs_is_told(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('passes = ["fold-constants"]')
    with pytest.raises(UsageError, match=r"holds the name 'fold-constants' where a table .* \[\[passes\]\] and name"):
        Recipe.load(path)
    with pytest.raises(UsageError, match="has the name 'fold-constants' where a pass belongs"):
        Recipe("mine", "", ("fold-constants",))
    with pytest.raises(UsageError, match=r"unknown pass 'fold-constant'\. Did you mean 'fold-constants'"):
        Recipe("mine", "", ("fold-constant",))


def test_files_that_windows_editors_write_are_read(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b'\xef\xbb\xbf[[passes]]\r\nname = "remove-dead"\r\n')
    assert [p.name for p in Recipe.load(path).active] == ["remove-dead"]
