"""Kernel groups that the runtime really fused to integer kernels, read from its optimised graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...runtime.session import OptimizedNode

_DEQUANTIZE = "DequantizeLinear"


@dataclass(frozen=True)
class Kernels:
    """Kernels that the runtime runs.

    Args:
        of_layer: label of a layer with integer weights -> the operator that reads them.
        fallen: label of a unit -> why it runs on floats.
    """

    of_layer: Mapping[str, str]
    fallen: Mapping[str, str]


def read_back(
    optimized: Sequence[OptimizedNode], weights: Mapping[str, str], units: Iterable[tuple[str, Sequence[str]]]
) -> Kernels:
    """Compare the planned kernels with those that run.

    Args:
        optimized: the graph that the runtime executes.
        weights: label of a layer -> name of its integer weight.
        units: label and names of the nodes of each unit that is to run on integers.
    """
    readers: dict[str, list[OptimizedNode]] = defaultdict(list)
    for node in optimized:
        for name in node.inputs:
            readers[name].append(node)
    of_layer: dict[str, str] = {}
    fallen: dict[str, str] = {}
    for label, integers in weights.items():
        kinds = [node.op_type for node in readers[integers]]
        if kinds and _DEQUANTIZE not in kinds:
            of_layer[label] = kinds[0]
        else:
            fallen[label] = "the runtime dequantizes its weight and runs it on floats"
    owner = {name: label for label, names in units for name in names}
    for node in optimized:
        if node.op_type != _DEQUANTIZE:
            continue
        for reader in (r for output in node.outputs for r in readers[output]):
            found = owner.get(reader.name)
            if found is not None and found not in of_layer:
                fallen.setdefault(found, f"the runtime runs {reader.op_type} on floats")
    return Kernels(of_layer, fallen)
