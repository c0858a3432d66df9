"""The passes that ship, listed one by one, and those that other packages bring."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import importlib.metadata
from collections.abc import Mapping
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
    "fuse-affine": "fold.affine:FuseAffine",
    "fuse-patterns": "fold.patterns:FusePatterns",
    "merge-matmuls": "fold.merge_matmuls:MergeMatmuls",
    "merge-layers": "fold.merge_layers:MergeLayers",
    "share-duplicates": "fold.duplicates:ShareDuplicates",
    "share-nodes": "fold.common_subexpressions:ShareNodes",
    "remove-dead": "fold.dead_code:RemoveDead",
    "low-rank": "shallow.low_rank:LowRank",
    "drop-blocks": "shallow.drop_blocks:DropBlocks",
    "linearize": "shallow.linearize:Linearize",
    "quantize-static": "quantize.static:QuantizeStatic",
    "quantize-dynamic": "quantize.dynamic:QuantizeDynamic",
    "equalize": "quantize.equalize:Equalize",
    "quantize-weights": "quantize.weights:QuantizeWeights",
    "convert-float16": "float16.convert:ConvertFloat16",
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


def pass_class(name: str) -> type[Pass]:
    """Return the class of a pass.

    Raises:
        UsageError: there is no such pass, or a third-party one can't be imported.
    """
    place = f"{__name__}.{SHIPPED[name]}" if name in SHIPPED else available().get(name)
    if place is None:
        raise UsageError(f"unknown pass {name!r}", hint=_nearest(name, available()))
    module, _, attribute = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"pass {name!r} can't be imported ({error})", where=place, hint="Mend or remove its package"
        ) from error
    return found  # type: ignore[no-any-return]


def build(name: str, options: Mapping[str, Any]) -> Pass:
    """Make a pass from its options, validated; strings are converted to the fields' types.

    Raises:
        UsageError: the pass or a field is unknown, or a value is out of range.
    """
    kind = pass_class(name)
    fields = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in options:
        if key not in fields:
            raise UsageError(f"pass {name!r} has no option {key!r}", hint=_nearest(key, fields))
    try:
        return kind(**options)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise UsageError(
            f"{name}.{field}: {first['msg']} (got {first['input']!r})",
            hint=f"`onnxcompress passes {name}` lists the options",
        ) from error


def _nearest(word: str, known: Mapping[str, Any] | list[str]) -> str:
    """Return a hint that names the nearest known words, or all of them."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known) or 'none'}"
