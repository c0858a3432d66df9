"""Outputs that are only a cache of keys and values: recognised by operator, or by name beside other outputs."""

from __future__ import annotations

import re
from collections.abc import Collection

import onnx_ir as ir

from ..ops.table import CACHES

_NAMED = re.compile(r"^(present|past|new_?(past|cache)d?)($|[._\d])|(^|[._])(kv_?)?cached?($|[._\d])", re.IGNORECASE)
"""Names that exporters of decoders give: present.0.key, present_key_values.0, new_cached_key_1, cache_k_0_out."""


def cache_outputs(model: ir.Model, states: Collection[str]) -> frozenset[str]:
    """Return the outputs that are caches; none where no other output would remain that is no state.

    Args:
        model: its graph outputs are asked.
        states: outputs that are known to be states.
    """
    outputs = {value.name or "": value for value in model.graph.outputs}
    found = frozenset(name for name, value in outputs.items() if _is_cache(name, value))
    return found if set(outputs) - found - set(states) else frozenset()


def _is_cache(name: str, value: ir.Value) -> bool:
    if value.dtype is not None and not value.dtype.is_floating_point():
        return False
    node = value.producer()
    if node is not None and node.op_type in CACHES and value is not node.outputs[0]:
        return True
    return bool(_NAMED.search(name))
