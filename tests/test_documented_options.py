"""Options of passes that documents name, or that `passes NAME` lists, can be set in every recipe that runs the pass."""

import ast
import dataclasses
import functools
import inspect
import re
import typing
from pathlib import Path

import pytest

from onnxcompress import passes, recipe
from onnxcompress.core import Pass
from onnxcompress.errors import UsageError
from onnxcompress.recipe import Recipe

ROOT = Path(__file__).parents[1]
OPTION = re.compile(rf"\b({'|'.join(map(re.escape, passes.SHIPPED))})\.([a-z][a-z0-9_]*)\b(?!\.)")
SAMPLES = (
    0.5, 0.3, 1, 3, 7, 600,
    "int8/tensor/sym", "int4/block64/sym", "2:4", "4:8",
    ["prune-channels"], ["low-rank"], ["quantize-int8"], ["weights"], [0.9, 0.8],
    "os:abort",
)  # fmt: skip
"""Values to try where a type does not name any."""


def _texts():
    """Yield the texts that users read: documents, docstrings of passes, the program itself."""
    for folder in ("*.md", "models/*.md", "tools/*.md", "onnxcompress/**/*.md"):
        yield from (path.read_text(encoding="utf-8") for path in ROOT.glob(folder))
    for path in ROOT.glob("onnxcompress/**/*.py"):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        yield from (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def _mentioned():
    return {found.groups() for text in _texts() for found in OPTION.finditer(text)}


def _listed():
    """Return what `passes NAME` lists, but for the passes that another one holds."""
    kinds = {name: passes.pass_class(name) for name in passes.SHIPPED}
    return {
        (name, field.name)
        for name, kind in kinds.items()
        for field in dataclasses.fields(kind)
        if not isinstance(field.default, Pass)
    }


def _places(one, name, path=()):
    """Yield where a pass holds another one, itself included, as the fields that lead there."""
    if one.name == name:
        yield path
    for key, value in passes.options_of(one).items():
        if isinstance(value, Pass):
            yield from _places(value, name, (*path, key))


def _other_value(name, field):
    """Return a value that an option can have, other than its default."""
    kind = passes.pass_class(name)
    default = getattr(kind(), field)
    hint = typing.get_type_hints(kind)[field]
    words = [arg for part in (hint, *typing.get_args(hint)) for arg in typing.get_args(part) if isinstance(arg, str)]
    for value in (not default if isinstance(default, bool) else None, *words, *SAMPLES):
        if value is None or value == default or [default] == value:
            continue
        try:
            made = passes.build(name, {field: value})
        except UsageError:
            continue
        if getattr(made, field) != default:
            return value
    raise AssertionError(f"no value found for {name}.{field}")


def test_documents_name_options_that_exist():
    assert _mentioned() - _listed() == set()
    assert {("quantize-static", "noise_ps"), ("prune-channels", "keep_macs")} <= _mentioned()


@pytest.mark.parametrize("name", sorted(recipe.shipped()))
def test_options_can_be_set_in_every_recipe_that_runs_the_pass(name):
    loaded = Recipe.load(name)
    for pass_name, field in sorted(_listed()):
        value = _other_value(pass_name, field)
        setting = (
            f"{pass_name}.{field}={value!r}" if not isinstance(value, bool) else f"{pass_name}.{field}={value}".lower()
        )
        places = [(i, path) for i, one in enumerate(loaded.passes) for path in _places(one, pass_name)]
        if not places:
            with pytest.raises(UsageError, match=f"has no pass '{pass_name}'"):
                Recipe.load(name, [setting])
            continue
        changed = Recipe.load(name, [setting])
        assert (changed.as_json() != loaded.as_json()) == (changed != loaded)  # a held pass may have that value already
        for index, path in places:
            found = getattr(functools.reduce(getattr, path, changed.passes[index]), field)
            assert (list(found) if isinstance(found, tuple) else found) == value, setting


def test_held_passes_have_the_options_that_were_measured():
    """A recipe without settings shows and changes nothing of the passes that others hold."""
    for name in recipe.shipped():
        for entry in Recipe.load(name).as_json()["passes"]:
            assert not any(isinstance(value, dict) for value in entry.values())


def test_tables_in_a_recipe_file_set_options_of_held_passes(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('[[passes]]\nname = "search-best"\n[passes.quantize_int8.static]\nnoise_ps = 0\n')
    loaded = Recipe.load(path, ["quantize-static.ranges=guarded"])
    search = loaded.passes[0]
    assert search.quantize_int8.static == type(search.quantize_int8.static)(noise_ps=0, ranges="guarded")
    assert loaded.as_json()["passes"][0]["quantize_int8"] == {"static": {"noise_ps": 0, "ranges": "guarded"}}
    path.write_text('[[passes]]\nname = "quantize-int8"\n[passes.static]\nnoise = 0\n')
    with pytest.raises(UsageError) as caught:
        Recipe.load(path)
    assert str(caught.value) == "pass 'quantize-static' has no option 'noise'. Did you mean 'noise_ps'?"
    path.write_text('[[passes]]\nname = "quantize-int8"\nstatic = 3\n')
    with pytest.raises(UsageError, match=r"quantize-int8\.static"):
        Recipe.load(path)


def test_options_have_a_description():
    """The text below a field is what `passes NAME` explains; a held pass says what it is for."""
    for name in ("search-best", "quantize-int8", "quantize-blocks"):
        kind = passes.pass_class(name)
        fields = [field.name for field in dataclasses.fields(kind)]
        source = inspect.getsource(kind)
        assert all(re.search(rf"^    {field}: [^\n]*\n    \"\"\"", source, re.MULTILINE) for field in fields), name
