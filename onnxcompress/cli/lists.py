"""`onnxcompress passes` and `onnxcompress recipes`: what there is, and what one of them does."""

from __future__ import annotations

from typing import Annotated

import typer

PASSES_EXAMPLE = "Example: onnxcompress passes quantize-weights"
RECIPES_EXAMPLE = "Example: onnxcompress recipes int8-weights"


def show_passes(
    name: Annotated[str | None, typer.Argument(help="Explain this one.", show_default=False)] = None,
) -> None:
    """List the passes, or explain one with its options."""
    from .. import passes

    if name:
        passes.place_of(name)
    from ..report import tables_lists
    from .console import show

    show(tables_lists.one_pass(name) if name else tables_lists.passes(list(passes.available())))


def show_recipes(
    name: Annotated[
        str | None, typer.Argument(help="A shipped recipe or a .toml file to explain.", show_default=False)
    ] = None,
) -> None:
    """List the recipes that ship, or explain one with its passes and their options."""
    from ..recipe import Recipe, check, shipped

    if name:
        check(name)
    from ..report import tables_lists
    from .console import show

    show(
        tables_lists.one_recipe(Recipe.load(name))
        if name
        else tables_lists.recipes([Recipe.load(each) for each in shipped()])
    )
