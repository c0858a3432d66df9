"""Passes and recipes as tables."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Sequence
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from ..core import Pass
from ..passes import changed_options, pass_class, shown_options
from ..recipe import Recipe
from .tables import cell, grid


def passes(names: Sequence[str]) -> list[RenderableType]:
    """Return the table of all passes."""
    table = grid("pass", "lossless", "what it changes")
    for name in names:
        kind = pass_class(name)
        table.add_row(cell(name), "yes" if kind.lossless else "no", cell(_first_line(kind)))
    return [table]


def one_pass(name: str) -> list[RenderableType]:
    """Return what a pass does and the table of its options."""
    kind = pass_class(name)
    needs = ", ".join(sorted(str(need.value) for need in kind.needs)) or "nothing but the model"
    parts: list[RenderableType] = [
        Text(inspect.cleandoc(kind.__doc__ or "")),
        Text(f"lossless: {'yes' if kind.lossless else 'no'}; needs: {needs}"),
    ]
    options = grid("option", "values", "default", title=f"options, as in --set {name}.OPTION=VALUE")
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        options.add_row(cell(field.name), cell(_values(hints[field.name])), cell(_default(field)))
    if options.row_count:
        parts.append(options)
    return parts


def recipes(all_recipes: Sequence[Recipe]) -> list[RenderableType]:
    """Return the table of all recipes."""
    table = grid("recipe", "needs data", "what it does")
    for recipe in all_recipes:
        table.add_row(cell(recipe.name), "yes" if recipe.needs_data else "no", cell(recipe.description))
    return [table]


def one_recipe(recipe: Recipe) -> list[RenderableType]:
    """Return what a recipe does and the table of its passes in order."""
    table = grid("pass", "what it changes", "options")
    for one in recipe.passes:
        options = ", ".join(f"{name}={value}" for name, value in shown_options(one).items())
        table.add_row(cell(one.name), cell(_first_line(type(one))), cell(options))
    return [Text(f"{recipe.name}: {recipe.description}"), table]


def _first_line(kind: type[Any]) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


def _values(hint: Any) -> str:
    """Return a type with its limits as a reader would write it: "float, > 0, <= 1"."""
    if typing.get_origin(hint) is typing.Annotated:
        base, *limits = typing.get_args(hint)
        return ", ".join([_values(base), *filter(None, map(_limits, limits))])
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(str(value) for value in typing.get_args(hint))
    if isinstance(hint, type) and isinstance(hint, Pass):
        return f"options of the pass {hint.name}, see `passes {hint.name}`"
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")


def _limits(limit: Any) -> str:
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    rules = getattr(limit, "metadata", [limit])
    return ", ".join(
        f"{sign} {getattr(rule, key)}" for rule in rules for key, sign in signs.items() if hasattr(rule, key)
    )


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is dataclasses.MISSING:
        return "required" if field.default_factory is dataclasses.MISSING else str(field.default_factory())
    if isinstance(field.default, Pass):
        return ", ".join(f"{name}={value}" for name, value in changed_options(field.default).items()) or "its own"
    return "none" if field.default is None else str(field.default)
