"""An inspection as tables: a pure function from what was found to what rich can print."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ..channels import groups as channel_groups
from ..errors import one_line
from ..jobs.inspect import Inspection, Share
from ..jobs.inspect_passes import Blocked, PassPotential
from .tables import cell, grid
from .wording import kind, number

_MOST_OPERATORS = 15
"""Kinds of operators that are listed without -v; chosen by judgement."""
_MOST_BLOCKED = 4
"""Reasons that are listed of each pass without -v; chosen by judgement."""


def inspection_tables(found: Inspection, *, everything: bool = False) -> list[RenderableType]:
    """Return what is printed of an inspection; the long tables are cut unless everything is wanted."""
    operators = found.operators if everything else found.operators[:_MOST_OPERATORS]
    left_out = len(found.operators) - len(operators)
    parts: list[RenderableType] = [
        _overview(found),
        _types(found),
        _shares("operators", operators, found, left_out=left_out),
        _shares("the largest layers", found.layers, found),
    ]
    if found.ms is not None:
        parts += [
            _times("time by operator, as onnxruntime fuses them", found.time_by_type, found.ms),
            _times("the slowest nodes", found.slowest, found.ms),
        ]
    if found.passes is not None:
        parts.append(_passes(found.passes, found.bytes, most=None if everything else _MOST_BLOCKED))
    if found.channels is not None:
        parts += _channels(found.channels, most=None if everything else _MOST_BLOCKED)
    return [*parts, *(Text(f"note: {one_line(note)}") for note in found.notes)]


def _overview(found: Inspection) -> Table:
    table = grid("", "", title=one_line(found.path or "model"))
    table.show_header = False
    at = ", ".join(f"{name} {'x'.join(map(str, dims)) or 'scalar'}" for name, dims in found.shapes_of_macs.items())
    rows = [
        ("file, bytes", number(found.bytes)),
        ("nodes", number(found.nodes)),
        ("parameters", number(found.parameters)),
        ("MACs", number(found.macs) + (f" at {at}" if at else "")),
        ("time, ms", "" if found.ms is None else f"{found.ms:.3f}"),
        ("inputs", "; ".join(found.inputs)),
        ("inputs with a default", "; ".join(found.optional_inputs)),
        ("outputs", "; ".join(found.outputs)),
        ("dynamic dimensions", "; ".join(found.dynamic) or "none"),
        ("opset", ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in found.opsets.items())),
        ("IR version", str(found.ir_version)),
        ("producer", found.producer or "not stated"),
        ("local functions", number(found.functions)),
        ("sub-graphs", number(found.subgraphs)),
        ("exporter's records", f"{number(found.node_records)}, {number(found.node_record_bytes)} bytes"),
        (
            "weights in Constant nodes",
            f"{number(found.weights_in_nodes)}, {number(found.weights_in_nodes_bytes)} bytes",
        ),
        (
            "float weights of layers, bytes",
            f"{number(found.weight_port_bytes)}{_share(found.weight_port_bytes, found.bytes)}",
        ),
    ]
    for title, text in rows:
        if text:
            table.add_row(title, cell(text))
    return table


def _types(found: Inspection) -> Table:
    table = grid("type", "tensors", "elements", "bytes", title="constants by type", numbers=(1, 2, 3))
    for name, stored in found.dtypes.items():
        table.add_row(cell(name), number(stored.tensors), number(stored.elements), number(stored.bytes))
    return table


def _shares(title: str, shares: Sequence[Share], found: Inspection, *, left_out: int = 0) -> Table:
    is_layer = any(share.name != share.op_type for share in shares) and title != "operators"
    columns = ("layer", "operator") if is_layer else ("operator", "nodes")
    numbers = (2, 3, 4, 5) if is_layer else (1, 2, 3, 4, 5)
    table = grid(*columns, "bytes", "of the file", "parameters", "MACs", title=title, numbers=numbers)
    for share in shares:
        table.add_row(
            cell(share.name),
            cell(share.op_type) if is_layer else number(share.nodes),
            number(share.bytes),
            f"{share.bytes / max(found.bytes, 1):.1%}",
            number(share.parameters),
            number(share.macs),
        )
    if left_out:
        table.caption = Text(f"and {left_out} more; -v lists all")
    return table


def _times(title: str, shares: Sequence[Share], total: float) -> Table:
    is_node = any(share.name != share.op_type for share in shares)
    columns = ("node", "operator") if is_node else ("operator", "nodes")
    table = grid(*columns, "ms", "of the time", title=title, numbers=(2, 3) if is_node else (1, 2, 3))
    for share in shares:
        ms = share.ms or 0.0
        second = cell(share.op_type) if is_node else cell(number(share.nodes))
        table.add_row(cell(share.name), second, f"{ms:.3f}", f"{ms / total:.1%}" if total else "")
    return table


def _passes(reaches: Sequence[PassPotential], total: int, *, most: int | None) -> Table:
    titles = ("pass", "rewrites", "bytes reached", "of the file", "bytes saved", "what blocks the rest")
    table = grid(*titles, title="what each pass could do (tried on a copy)", numbers=(1, 2, 3, 4))
    for reach in reaches:
        table.add_row(
            cell(reach.pass_name),
            number(reach.rewrites),
            number(reach.reached_bytes),
            f"{reach.reached_bytes / max(total, 1):.1%}",
            number(reach.saved_bytes),
            Text("\n".join(_blocked(reach, most=most))),
        )
    return table


def _channels(reach: channel_groups.Prunable, *, most: int | None) -> list[RenderableType]:
    """Return what channel pruning can cut, and what keeps the rest."""
    title = f"channel pruning, after folding: {reach.groups:,} groups of channels"
    table = grid("", "all", "can be cut", "", "exactly", "", title=title, numbers=(1, 2, 3, 4, 5))
    rows = (
        ("parameters", reach.parameters, reach.parameters_cut, reach.parameters_exact),
        ("MACs", reach.macs, reach.macs_cut, reach.macs_exact),
    )
    for name, total, *parts in rows:
        shares = [text for part in parts for text in (number(part), f"{part / max(total, 1):.1%}")]
        table.add_row(name, number(total), *shares)
    if not reach.kept:
        return [table]
    kept = grid("what keeps the rest from being cut", "for example", "parameters", "MACs", numbers=(2, 3))
    for one in reach.kept[:most]:
        row = cell(one_line(one.reason)), cell(one_line(", ".join(one.examples)))
        kept.add_row(*row, number(one.parameters), number(one.macs))
    if most is not None and len(reach.kept) > most:
        kept.caption = Text(f"and {len(reach.kept) - most} more; -v lists all")
    return [table, kept]


def _blocked(reach: PassPotential, *, most: int | None) -> list[str]:
    """Return a line for each kind of refusal, those that cost the most bytes first."""
    kinds: defaultdict[str, list[Blocked]] = defaultdict(list)
    for one in reach.blocked:
        kinds[kind(one.reason)].append(one)
    lines = []
    for shape, found in kinds.items():
        text = found[0].reason if len(found) == 1 else shape
        lines.append(
            f"{sum(b.count for b in found):,} x {one_line(text)} (for example {one_line(found[0].examples[0])})"
        )
    left_out = 0 if most is None else len(lines) - most
    return [*lines[:most], f"and {left_out} more reasons; -v lists all"] if left_out > 0 else lines


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.1%} of the file)" if whole else ""
