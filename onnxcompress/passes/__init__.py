"""The passes that ship, listed one by one, and those that other packages bring."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from typing import Any

import pydantic

from ..core import Pass
from ..errors import UsageError

ENTRY_POINT_GROUP = "onnxcompress.passes"

SHIPPED: Mapping[str, str] = {
    "normalize": "fold.normalize:Normalize",
    "fold-constants": "fold.constants:FoldConstants",
    "fold-shapes": "fold.shapes:FoldShapes",
    "fold-branches": "fold.branches:FoldBranches",
    "drop-zeros": "fold.drop_zeros:DropZeros",
    "remove-noops": "fold.noops:RemoveNoops",
    "simplify-chains": "fold.chains:SimplifyChains",
    "simplify-transposes": "fold.transposes:SimplifyTransposes",
    "fuse-affine": "fold.batchnorm_and_scale:FuseAffine",
    "fuse-patterns": "fold.patterns:FusePatterns",
    "fuse-transformers": "transformers.fuse:FuseTransformers",
    "merge-matmuls": "fold.merge_matmuls:MergeMatmuls",
    "merge-layers": "fold.merge_layers:MergeLayers",
    "share-duplicates": "fold.duplicates:ShareDuplicates",
    "share-nodes": "fold.common_subexpressions:ShareNodes",
    "remove-dead": "fold.dead_code:RemoveDead",
    "shorten-names": "fold.shorten_names:ShortenNames",
    "low-rank": "shallow.low_rank:LowRank",
    "drop-blocks": "shallow.drop_blocks:DropBlocks",
    "linearize": "shallow.linearize:Linearize",
    "quantize-static": "quantize.static:QuantizeStatic",
    "quantize-dynamic": "quantize.dynamic:QuantizeDynamic",
    "equalize": "quantize.equalize:Equalize",
    "quantize-weights": "quantize.weights:QuantizeWeights",
    "convert-float16": "float16.convert:ConvertFloat16",
    "widen-float16": "float16.widen:WidenFloat16",
    "quantize-int8": "quantize.int8:QuantizeInt8",
    "quantize-blocks": "quantize.blocks:QuantizeBlocks",
    "cluster": "quantize.cluster:Cluster",
    "search-best": "auto.search:SearchBest",
    "prune-channels": "prune.channels:PruneChannels",
    "sparsify": "prune.sparsify:Sparsify",
    "clip-weights": "quantize.clip_weights:ClipWeights",
    "surgery": "surgery:Surgery",
}
"""Name -> module:class in this package, in the order in which `onnxcompress passes` lists them."""


def available() -> dict[str, str]:
    """Return every pass by name with where it comes from, shipped ones first."""
    found = {name: f"{__name__}.{place}" for name, place in SHIPPED.items()}
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        found.setdefault(entry.name, entry.value)
    return found


def place_of(name: str) -> str:
    """Return where the class of a pass is, as module:class; nothing is imported.

    Raises:
        UsageError: there is no such pass.
    """
    place = f"{__name__}.{SHIPPED[name]}" if name in SHIPPED else available().get(name)
    if place is None:
        raise UsageError(f"unknown pass {name!r}", hint=_nearest(name, available()))
    return place


def pass_class(name: str) -> type[Pass]:
    """Return the class of a pass.

    Raises:
        UsageError: there is no such pass, or a third-party one can't be imported.
    """
    place = place_of(name)
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"pass {name!r} can't be imported ({error})", where=place, hint="Repair or remove its package"
        ) from error
    return found  # type: ignore[no-any-return]


def build(name: str, options: Mapping[str, Any]) -> Pass:
    """Make a pass from its options, validated; strings are converted to the fields' types.

    Args:
        name: of the pass.
        options: field -> value; a table of options (or a pass) for a field that holds another pass.

    Raises:
        UsageError: the pass or a field is unknown, or a value is out of range.
    """
    return _made(pass_class(name), {}, options)


def changed(one: Pass, options: Mapping[str, Any]) -> Pass:
    """Return a pass with other values of some options, validated as by `build`.

    Raises:
        UsageError: a field is unknown, or a value is out of range.
    """
    return _made(type(one), options_of(one), options)


def options_of(one: Pass) -> dict[str, Any]:
    """Return the options of a pass with their values; those of passes that it holds are passes."""
    return {f.name: getattr(one, f.name) for f in dataclasses.fields(one)}  # type: ignore[arg-type]


def changed_options(one: Pass, usual: Pass | None = None) -> dict[str, Any]:
    """Return the options that differ from the usual ones (None: the defaults); for held passes a table of theirs."""
    found = {}
    for key, value in options_of(one).items():
        default = getattr(type(one)() if usual is None else usual, key)
        if value != default:
            found[key] = changed_options(value, default) if isinstance(value, Pass) else value
    return found


def shown_options(one: Pass) -> dict[str, Any]:
    """Return the options that are set; of a held pass the changed ones, where there are any."""
    tables = changed_options(one)
    shown = {key: tables.get(key) if isinstance(value, Pass) else value for key, value in options_of(one).items()}
    return {key: value for key, value in shown.items() if value is not None}


def walk(one: Pass) -> Iterator[Pass]:
    """Yield a pass, and after it those that it holds as fields, at any depth."""
    yield one
    for value in options_of(one).values():
        if isinstance(value, Pass):
            yield from walk(value)


def _made(kind: type[Pass], present: Mapping[str, Any], options: Mapping[str, Any]) -> Pass:
    """Make a pass of a class from its present options (absent ones have their defaults) and the ones to change."""
    fields = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    given = dict(present)
    for key, value in options.items():
        if key not in fields:
            raise UsageError(f"pass {kind.name!r} has no option {key!r}", hint=_nearest(key, list(fields)))
        held = present.get(key, fields[key])
        is_table = isinstance(held, Pass) and isinstance(value, Mapping)
        given[key] = changed(held, value) if is_table else value
    try:
        return kind(**given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{kind.name}.{field}: {first['msg']} (got {first['input']!r})",
            hint=f"`onnxcompress passes {kind.name}` lists the options",
        ) from error


def _nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """Return a hint that names the nearest known words, or all of them."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known) or 'none'}"
