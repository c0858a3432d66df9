"""The parts of a split model, and places to cut one, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..base.quantities import show_bytes
from ..errors import one_line
from .tables import cell, grid
from .wording import number

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ..partition.plan import Suggestions
    from ..partition.split import SplitModel

_SHOWN = 16
"""Parts that are listed without -v; chosen by judgement."""


def part_tables(found: SplitModel, *, every_part: bool) -> list[RenderableType]:
    """Return the table of the parts that were written, the first ones unless all are wanted."""
    manifest = found.manifest
    count = len(manifest.parts)
    sizes = ", ".join(f"{name} {shape}" for name, shape in manifest.sizes.items())
    table = grid(
        *("part", "nodes", "MACs", "weights", "peak", "outputs"),
        title=one_line(f"{count} {'part' if count == 1 else 'parts'} at {sizes}"),
        numbers=(1, 2, 3, 4, 5),
    )
    tensors = {tensor.name: tensor for tensor in (*manifest.values, *manifest.outputs)}
    for part in manifest.parts if every_part else manifest.parts[:_SHOWN]:
        handed = sum(tensors[name].bytes or 0 for name in part.outputs)
        table.add_row(
            cell(part.file.removesuffix(".onnx")),
            number(part.nodes),
            number(part.macs),
            show_bytes(part.weight_bytes),
            show_bytes(part.peak_bytes),
            show_bytes(handed),
        )
    if count > _SHOWN and not every_part:
        table.add_row("...", *[""] * 5)
    table.caption = cell(
        f"largest peak {show_bytes(manifest.peak_bytes)}, cut {show_bytes(manifest.cut_bytes)}, "
        f"files {show_bytes(sum(file.bytes for file in manifest.files.values()))}; written to {found.folder}"
    )
    return [table]


def cut_tables(found: Suggestions) -> list[RenderableType]:
    """Return the table of places to cut."""
    table = grid(
        *("--at", "sent, bytes", "MACs before", "after", "weights before", "after", "with it"),
        title="places to cut in two",
        numbers=(1, 2, 3, 4, 5),
    )
    for cut in found.cuts:
        others = [name for name in cut.sent if name != cut.name]
        table.add_row(
            cell(cut.name),
            number(cut.sent_bytes),
            number(cut.macs[0]),
            number(cut.macs[1]),
            show_bytes(cut.weight_bytes[0]),
            show_bytes(cut.weight_bytes[1]),
            cell(", ".join(others)),
        )
    shapes = ", ".join(f"{name} {shape}" for name, shape in found.sizes.items())
    table.caption = cell(
        f"{'' if found.cuts else 'there is no place to cut; '}sending the inputs instead: "
        f"{number(found.input_bytes)} bytes ({shapes})"
    )
    return [table]
