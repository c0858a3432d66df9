"""Low-rank factorizations of one linear layer into two or three: their sizes, their errors, and the edit.

    matrix      W x  ->  A (B x)
    rows        k x k convolution to r channels, then 1 x 1          (a matrix too, of patches)
    spatial     k x 1 to r channels, then 1 x k                      (Jaderberg et al. 2014, arXiv 1405.3866, scheme 2)
    tucker      1 x 1, k x k on fewer channels, 1 x 1                (Kim et al. 2015, arXiv 1511.06530)

The last factor keeps the layer's node, output and bias, so that it can be refitted to the original layer's outputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from ...activations import observe
from ...core import Feed
from ...graph import edit, query
from ...numerics.linear.lowrank import Decomposition, input_basis, output_basis
from ...numerics.linear.moments import MOST_COLUMNS, Moments
from ...numerics.linear.patches import Window, choose, patches
from ...ops.linear import LinearLayer
from ..fold import layer_composition
from ..fold.layer_composition import Merged

Form = Literal["matrix", "rows", "spatial", "tucker"]

_SHARES = (0.8, 0.65, 0.5, 0.4, 0.3, 0.2, 0.12)
"""Candidate sizes of the factors, as parts of the layer's numbers. Chosen on the zoo models."""
_LEAST = 16
"""Fewest channels on both sides for which factors are worth two nodes. Chosen by judgement; not measured."""
_ROWS = 32
"""Rows per channel from which directions are computed. Chosen by judgement; not measured."""
_BATCH = 8
"""Feeds that are joined to observe values, at most. Chosen by judgement, for memory; not measured."""


@dataclass(frozen=True, kw_only=True)
class Option:
    """One factorization of a layer.

    Args:
        form: kind of factorization.
        ranks: channels in between, those next to the input first.
        numbers: elements of the weights.
        macs: multiplications at the shapes that were seen.
        error: part of the mean square of the layer's outputs, without bias, that is missed.
    """

    form: Form
    ranks: tuple[int, ...]
    numbers: int
    macs: int
    error: float


@dataclass(frozen=True, eq=False)
class Factorization:
    """A layer that can be factorized.

    Args:
        layer: the layer.
        numbers: elements of its weight.
        macs: its multiplications.
        options: its factorizations.
        bases: decompositions from which the factors are computed, by side.
    """

    layer: LinearLayer
    numbers: int
    macs: int
    options: Sequence[Option]
    bases: Mapping[str, Decomposition]

    @property
    def label(self) -> str:
        """Name in reports."""
        return self.layer.label


def candidates(
    layers: Sequence[LinearLayer],
    model: ir.Model,
    feeds: Sequence[Feed],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    forms: Sequence[Form],
    multiple: int,
    seed: int,
) -> list[Factorization]:
    """Return the layers that have options with fewer numbers.

    Args:
        layers: plain layers of one group, each with a weight of its own.
        model: their model.
        feeds: complete feeds, from which second moments of inputs and outputs are computed.
        shapes: shapes of values, at which multiplications are counted.
        forms: forms that may be used.
        multiple: ranks are multiples of this.
        seed: of the choice of rows.
    """
    wanted = [layer for layer in layers if _is_large(layer) and layer.x.name in shapes and layer.y.name in shapes]
    found = []
    for layer, bases in _bases(wanted, model, feeds, forms, seed):
        sizes = (shapes[layer.x.name or ""], shapes[layer.y.name or ""])
        weight = layer_composition.weight_of(layer)
        macs = weight.size * _positions(layer, sizes)
        options = [
            option
            for form in _forms(layer, forms)
            for option in _options(form, layer, bases, sizes, multiple)
            if option.numbers < weight.size and option.macs < macs
        ]
        if options:
            found.append(Factorization(layer, weight.size, macs, options, bases))
    return found


def layers_of(layer: LinearLayer, option: Option, bases: Mapping[str, Decomposition]) -> list[np.ndarray]:
    """Return the weights of the low-rank factors, in order: float64 [1, out, in, *kernel] each."""
    weight = layer_composition.weight_of(layer)[0].astype(np.float64)
    out, into, *kernel = weight.shape
    if option.form in ("matrix", "rows"):
        (rank,) = option.ranks
        if option.form == "matrix" and _is_wide(layer):
            inputs, points = bases["inputs"], [1] * len(kernel)
            last = weight.reshape(out, into) @ inputs.basis[:, :rank]
            return [inputs.dual[:rank].reshape(1, rank, into, *points), last.reshape(1, out, rank, *points)]
        basis = bases["outputs"].basis[:, :rank]
        first = (basis.T @ weight.reshape(out, -1)).reshape(rank, into, *kernel)
        return [first[None], basis.reshape(1, out, rank, *[1] * len(kernel))]
    if option.form == "spatial":
        (rank,) = option.ranks
        tall, wide = kernel
        basis = bases["columns"].basis[:, :rank]
        first = (basis.T @ _columns(weight)).reshape(rank, into, tall, 1)
        return [first[None], basis.reshape(out, wide, rank).transpose(0, 2, 1)[None, :, :, None, :]]
    before, after = option.ranks
    inputs, outputs = bases["inputs"], bases["outputs"].basis[:, :after]
    core = np.einsum("oikl,ir,os->srkl", weight, inputs.basis[:, :before], outputs)
    return [inputs.dual[:before].reshape(1, before, into, 1, 1), core[None], outputs.reshape(1, out, after, 1, 1)]


def write(layer: LinearLayer, option: Option, bases: Mapping[str, Decomposition], names: edit.Names) -> None:
    """Replace a layer by its factors; its node becomes the last of them."""
    *before, last = layers_of(layer, option, bases)
    value = layer.x
    windows = _windows(layer, option.form)
    tensor = query.constant_tensor(layer.weight)
    assert tensor is not None
    for number, (weight, window) in enumerate(zip(before, windows, strict=False)):
        hint = f"{layer.label}_thin{number or ''}"
        array = weight[0].astype(tensor.dtype.numpy())
        if window is None:
            is_left = layer.channel_axis == -2
            constant = edit.add_initializer(
                query.home(layer.node), names, f"{hint}_weight", array if is_left else array.T
            )
            inputs = [constant, value] if is_left else [value, constant]
            node = edit.insert_before(layer.node, names, "MatMul", inputs, hint=hint)
        else:
            constant = edit.add_initializer(query.home(layer.node), names, f"{hint}_weight", array)
            node = edit.insert_before(layer.node, names, "Conv", [value, constant], hint=hint)
            layer_composition.set_window(node, window, 1)
        value = node.outputs[0]
    shift, bias = _shift(layer, option, bases), layer.bias()
    merged = Merged(
        layer=layer, weight=last, bias=shift if bias is None else bias + shift, window=windows[-1], numbers=last.size
    )
    layer_composition.write(merged, value, names)


def _shift(layer: LinearLayer, option: Option, bases: Mapping[str, Decomposition]) -> np.ndarray:
    """Return the layer's response to the part of the means that the factors lose: float64 [out]."""
    weight = layer_composition.weight_of(layer)[0].astype(np.float64)
    summed = weight.reshape(*weight.shape[:2], -1).sum(axis=-1)
    if option.form == "matrix" and _is_wide(layer):
        return np.asarray(summed @ bases["inputs"].lost(option.ranks[0]))
    if option.form == "spatial":
        return np.zeros(len(weight))
    shift = bases["outputs"].lost(option.ranks[-1])
    if option.form == "tucker":
        inputs, outputs = summed @ bases["inputs"].lost(option.ranks[0]), bases["outputs"].basis[:, : option.ranks[-1]]
        shift = shift + outputs @ (outputs.T @ inputs)
    return np.asarray(shift)


def _is_large(layer: LinearLayer) -> bool:
    groups, out, columns = layer.shape
    into = columns if layer.window is None else columns // math.prod(layer.window.kernel)
    side = min(out, columns) if into == columns else out
    return groups == 1 and min(out, columns) >= _LEAST and into > 1 and side <= MOST_COLUMNS


def _is_wide(layer: LinearLayer) -> bool:
    """Say whether a matrix has more outputs than inputs, so that the inputs are decomposed."""
    _, out, columns = layer.shape
    return out > columns


def _forms(layer: LinearLayer, forms: Sequence[Form]) -> list[Form]:
    """Return the forms that a layer can have."""
    if layer.window is None or math.prod(layer.window.kernel) == 1:
        return ["matrix"] if "matrix" in forms else []
    _, out, columns = layer.shape
    kernel = layer.window.kernel
    into = columns // math.prod(kernel)
    found: list[Form] = ["rows"] if "rows" in forms else []
    if len(kernel) == 2 and min(kernel) > 1 and out * kernel[1] <= MOST_COLUMNS and "spatial" in forms:
        found.append("spatial")
    if len(kernel) == 2 and min(into, out) >= _LEAST and "tucker" in forms:
        found.append("tucker")
    return found


def _bases(
    layers: Sequence[LinearLayer], model: ir.Model, feeds: Sequence[Feed], forms: Sequence[Form], seed: int
) -> Iterator[tuple[LinearLayer, dict[str, Decomposition]]]:
    """Yield layers with the decompositions of their inputs and outputs, from one run of the feeds."""
    moments: dict[tuple[str, str], Moments] = {}
    names = list(dict.fromkeys(name for layer in layers for name in (layer.x.name or "", layer.y.name or "")))
    joined = list(observe.batched(model, feeds, _BATCH))
    for number, values in enumerate(observe.stream(model, joined, names)):
        for layer in layers:
            x, y = values[layer.x.name or ""], values[layer.y.name or ""]
            for side, rows in _rows(layer, x, y, _forms(layer, forms), len(joined), (seed, number)):
                key = (layer.label, side)
                if key not in moments:
                    moments[key] = Moments(1, rows.shape[-1])
                moments[key].update(rows)
    for layer in layers:
        weight = layer_composition.weight_of(layer)[0].astype(np.float64)
        matrix = weight.reshape(len(weight), -1)
        found = {}
        if (layer.label, "outputs") in moments:
            seen = moments[layer.label, "outputs"]
            found["outputs"] = replace(output_basis(matrix, seen.covariance()[0]), mean=seen.mean()[0])
        if (layer.label, "inputs") in moments:
            across = np.moveaxis(weight, 1, -1).reshape(-1, weight.shape[1])
            seen = moments[layer.label, "inputs"]
            found["inputs"] = replace(input_basis(across, seen.covariance()[0]), mean=seen.mean()[0])
        if (layer.label, "columns") in moments:
            columns = _columns(weight)
            second = moments[layer.label, "columns"].second()[0]
            found["columns"] = output_basis(columns, columns @ second @ columns.T)
        yield layer, found


def _rows(
    layer: LinearLayer, x: np.ndarray, y: np.ndarray, forms: Sequence[Form], runs: int, seed: tuple[int, int]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield sampled rows of a layer's outputs, its inputs at one position, and the inputs of one kernel column."""
    random = np.random.default_rng(seed)

    def some(count: int, channels: int) -> np.ndarray:
        return choose(count, math.ceil(_ROWS * channels / runs), random)

    _, out, columns = layer.shape
    is_wide = forms == ["matrix"] and _is_wide(layer)
    if not is_wide:
        bias = layer.bias()
        rows = layer.targets(y, some(y.size // out, out))
        yield "outputs", rows if bias is None else rows - bias
    if is_wide or "tucker" in forms:
        if layer.window is None:
            yield "inputs", layer.rows(x, some(layer.count(x.shape), columns))
        else:
            last = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1])
            yield "inputs", last[some(len(last), x.shape[1])][None]
    if layer.window is not None and "spatial" in forms:
        tall = _axis_window(layer.window, 0)
        count = x.shape[0] * math.prod(tall.positions(x.shape[2:]))
        yield "columns", patches(x, tall, at=some(count, x.shape[1] * tall.kernel[0]))


def _options(
    form: Form,
    layer: LinearLayer,
    bases: Mapping[str, Decomposition],
    sizes: tuple[tuple[int, ...], tuple[int, ...]],
    multiple: int,
) -> list[Option]:
    """Return options of one form, each with other ranks."""
    _, out, columns = layer.shape
    kernel = () if layer.window is None else layer.window.kernel
    taps = math.prod(kernel)
    into, whole = columns // taps, out * columns
    outside = _positions(layer, sizes)
    inside = outside if layer.window is None else sizes[0][0] * math.prod(sizes[0][2:])
    found: dict[tuple[int, ...], Option] = {}
    ranks: tuple[int, ...]
    for share in _SHARES:
        if form in ("matrix", "rows"):
            rank = _rounded(share * whole / (out + columns), multiple, min(out, columns))
            parts = [(rank * columns, outside), (out * rank, outside)]
            side = "inputs" if form == "matrix" and _is_wide(layer) else "outputs"
            ranks, error = (rank,), _error(bases[side], rank)
        elif form == "spatial":
            tall, wide = kernel
            rank = _rounded(share * whole / (into * tall + out * wide), multiple, min(into * tall, out * wide))
            between = sizes[1][0] * sizes[1][2] * sizes[0][3]
            parts = [(rank * into * tall, between), (out * rank * wide, outside)]
            ranks, error = (rank,), _error(bases["columns"], rank)
        else:
            # taps * (f i) (f o) + f (i^2 + o^2) numbers for a part f of the channels on both sides
            linear, square = into**2 + out**2, taps * into * out
            part = (math.sqrt(linear**2 + 4 * square * share * whole) - linear) / (2 * square)
            first, last = _rounded(part * into, multiple, into), _rounded(part * out, multiple, out)
            parts = [(first * into, inside), (first * last * taps, outside), (out * last, outside)]
            ranks, error = (first, last), _error(bases["inputs"], first) + _error(bases["outputs"], last)
        numbers, macs = sum(size for size, _ in parts), sum(size * count for size, count in parts)
        found[ranks] = Option(form=form, ranks=ranks, numbers=numbers, macs=macs, error=error)
    return list(found.values())


def _error(basis: Decomposition, rank: int) -> float:
    return float(basis.errors()[min(rank, len(basis.values))])


def _rounded(rank: float, multiple: int, most: int) -> int:
    return max(1, min(most, max(1, int(rank) // multiple) * multiple))


def _positions(layer: LinearLayer, sizes: tuple[tuple[int, ...], tuple[int, ...]]) -> int:
    """Return the number of positions at which the weight is multiplied in a run."""
    return math.prod(sizes[1]) // layer.shape[1]


def _columns(weight: np.ndarray) -> np.ndarray:
    """Return the kernel as the matrix of its columns: [out * wide, in * tall]."""
    out, into, tall, wide = weight.shape
    return weight.transpose(0, 3, 1, 2).reshape(out * wide, into * tall)


def _windows(layer: LinearLayer, form: Form) -> list[Window | None]:
    """Return the windows of the factors."""
    window = layer.window
    if window is None:
        return [None, None]
    ones = (1,) * len(window.kernel)
    point = Window(kernel=ones, strides=ones, dilations=ones, pads=((0, 0),) * len(ones))
    if form == "spatial":
        return [_axis_window(window, 0), _axis_window(window, 1)]
    return [window, point] if form in ("matrix", "rows") else [point, window, point]


def _axis_window(window: Window, axis: int) -> Window:
    """Return a window's part along one axis."""

    def only(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(value if place == axis else 1 for place, value in enumerate(values))

    pads = window.pads
    return replace(
        window,
        kernel=only(window.kernel),
        strides=only(window.strides),
        dilations=only(window.dilations),
        pads=None if pads is None else tuple(pair if place == axis else (0, 0) for place, pair in enumerate(pads)),
    )
