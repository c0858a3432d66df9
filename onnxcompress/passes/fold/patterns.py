"""Replace decompositions that exporters write by the operator, where the model's opset has it.

    HardSigmoid     clip(x + b, 0, h) / h,  clip(a x + b, 0, 1)                                     float32
    HardSwish       x clip(x + 3, 0, 6) / 6; before opset 14: x HardSigmoid(x)                      float32
    Gelu            x (1 + erf(x / sqrt 2)) / 2;  x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2   opset 20
    Celu            a elu(x / a), a > 0                                                             opset 12
    Mish            x tanh(softplus(x))                                                             opset 18
    Softplus        log(1 + exp(x)); where exp overflows this is x and no longer infinite
    Softmax         exp(x - max x) / sum of the same                                                opset 13
    LayerNormalization  (x - mean x) / sqrt(mean (x - mean x)^2 + eps) [* scale [+ bias]]           opset 17
    RMSNormalization    x / sqrt(mean x^2 + eps) * scale                                            opset 23
    GlobalAveragePool   the mean over all spatial axes, kept; rank 4 and more                   float32
    Clip, Relu      chains of Clip, Relu, Max and Min with a number                                 float32
    pads            zeros from a Pad in front of Conv, ConvTranspose, AveragePool; -inf of MaxPool
    x               not not x, -(-x)

Each was checked to leave no more nodes after onnxruntime's own fusions than the spelled form. What has no
operator yet (SiLU before Swish) and what onnxruntime fuses by itself in old opsets stays as it is. The
opset is never raised. Constants may be off by 1e-6 of their value, 1e-3 when they are 16 bit wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass as plain
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...core import Change, Context, LosslessPass
from ...graph import edit, query
from ..rewriting import Refusal, Rewrite, RewriteContext, Rule, rewrite
from .clips import merge_clips
from .einsum import as_product
from .pads import absorb_pad
from .pattern_language import Any, Clip, Match, Num, Op, Pattern, Var, close, maybe_cast, over, search, squared, times

Make = Callable[[ir.Node, RewriteContext], ir.Value]
"""Inserts the new nodes before a node and returns the value that replaces its output."""


@dataclass(frozen=True, kw_only=True)
class FusePatterns(LosslessPass):
    """Replaces decomposed HardSwish, Gelu, LayerNormalization and others by the operator itself."""

    name: ClassVar[str] = "fuse-patterns"

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Rewrite every graph of the model but local functions, which can't hold constants."""
        rules: dict[str, list[Rule]] = {}
        for spelling in _SPELLINGS:
            for kind in spelling.roots:
                rules.setdefault(kind, []).append(spelling.rule)
        for kind in ("Clip", "Relu", "Max", "Min"):
            rules.setdefault(kind, []).append(merge_clips)
        for kind in ("Conv", "ConvTranspose", "AveragePool", "MaxPool"):
            rules.setdefault(kind, []).append(absorb_pad)
        rules.setdefault("ReduceMean", []).append(_global_average)
        rules.setdefault("Einsum", []).append(as_product)
        return rewrite(model, context, self.name, rules)


@plain(frozen=True)
class Spelling:
    """A decomposition: its pattern, its operator with the opset that introduced it, and the builder of the operator."""

    operator: str
    opset: int
    roots: tuple[str, ...]
    """The operators that its last node may be."""
    pattern: Pattern
    build: Callable[[Match, ir.Node, RewriteContext], Make | tuple[ir.Node, Make] | str | None]
    """Returns how to make the operator (and up to which node, if more belongs to it), a reason, or None."""

    def rule(self, node: ir.Node, ctx: RewriteContext) -> Rewrite | Refusal | None:
        """Look for the decomposition that ends at a node."""
        if ctx.opset < self.opset:
            return None
        found = search(self.pattern, node.outputs[0])
        if found is None:
            return None
        if isinstance(found, str):
            return Refusal(target=query.label(node), reason=f"no {self.operator}: {found}")
        built = _adds_an_axis(found, ctx) or self.build(found, node, ctx)
        if built is None:
            return None
        if isinstance(built, str):
            return Refusal(target=query.label(node), reason=f"no {self.operator}: {built}")
        last, make = built if isinstance(built, tuple) else (node, built)
        count = f"{len(found.nodes)} nodes{' and more' if last is not node else ''}"
        return Rewrite(
            target=query.label(node),
            reason=f"{count} were a spelled {self.operator}",
            apply=lambda: edit.take_over(last.outputs[0], make(last, ctx)),
        )


def _adds_an_axis(match: Match, ctx: RewriteContext) -> str:
    """Return why numbers written as [1] may give a scalar x an axis, which the operator would not ("": can't)."""
    rank = ctx.shapes.rank(match.values["x"])
    numbers = [t for n in match.nodes for v in n.inputs if (t := query.constant_tensor(v)) is not None]
    if rank or all(len(query.dims(t)) == 0 for t in numbers if t.dtype.is_floating_point()):
        return ""
    return f"its numbers may add an axis to {match.values['x'].name}, whose rank is not known to be 1 or more"


X = Var("x")


def _single_node(kind: str, match: Match, attributes: dict[str, float | int | str] | None = None) -> Make:
    """Return a function that makes one node that reads x."""
    return lambda anchor, ctx: edit.insert_before(
        anchor, ctx.names, kind, [match.values["x"]], attributes=attributes
    ).outputs[0]


def _is_float32(match: Match, ctx: RewriteContext) -> bool:
    return ctx.shapes.dtype(match.values["x"]) == ir.DataType.FLOAT


# HardSigmoid and HardSwish

_RELU_H = Clip(Op("Add", X, Num("b")), 0.0, Num("h"))
_HARD_SIGMOID = Any(
    Op("Div", _RELU_H, Num("divisor")),
    Op("Mul", _RELU_H, Num("factor")),
    Clip(Op("Add", Op("Mul", X, Num("a")), Num("b")), 0.0, 1.0),
    Clip(Op("Add", Op("Div", X, Num("c")), Num("b")), 0.0, 1.0),
)


def _hard_sigmoid(match: Match, _node: ir.Node, ctx: RewriteContext) -> Make | str | None:
    n = match.numbers
    if "h" in n:
        height = n["divisor"] if "divisor" in n else 1 / n["factor"] if n["factor"] else math.inf
        if not (0 < n["h"] < math.inf) or not close(height, n["h"]):
            return None
        alpha, beta = 1 / n["h"], n["b"] / n["h"]
    else:
        alpha, beta = n["a"] if "a" in n else 1 / n["c"] if n["c"] else math.inf, n["b"]
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        return None
    if not _is_float32(match, ctx):
        return "runtimes have it for float32 only"
    return lambda anchor, ctx: _hard_sigmoid_node(match.values["x"], alpha, beta, anchor, ctx)


def _hard_sigmoid_node(x: ir.Value, alpha: float, beta: float, anchor: ir.Node, ctx: RewriteContext) -> ir.Value:
    attributes = {"alpha": float(alpha), "beta": float(beta)}
    return edit.insert_before(anchor, ctx.names, "HardSigmoid", [x], attributes=attributes).outputs[0]


_RELU6 = Clip(Op("Add", X, Num(3.0)), 0.0, 6.0)
_SIXTH = Op(
    "HardSigmoid",
    X,
    where=lambda n: close(query.attribute(n, "alpha", 0.2), 1 / 6) and close(query.attribute(n, "beta", 0.5), 0.5),
)
_HARD_SWISH = Any(over(Op("Mul", X, _RELU6), 6.0), Op("Mul", X, over(_RELU6, 6.0)), Op("Mul", over(X, 6.0), _RELU6))


def _hard_swish(match: Match, _node: ir.Node, ctx: RewriteContext) -> Make | str:
    if not _is_float32(match, ctx):
        return "runtimes have it for float32 only"
    x = match.values["x"]

    def make(anchor: ir.Node, ctx: RewriteContext) -> ir.Value:
        if ctx.opset >= 14:
            return edit.insert_before(anchor, ctx.names, "HardSwish", [x]).outputs[0]
        gate = _hard_sigmoid_node(x, 1 / 6, 0.5, anchor, ctx)
        return edit.insert_before(anchor, ctx.names, "Mul", [x, gate]).outputs[0]

    return make


# Celu, Gelu, Mish, Softplus

_PLAIN_ELU = {
    name: Op("Elu", over_, where=lambda n: query.attribute(n, "alpha", 1.0) == 1.0)
    for name, over_ in (("Div", Op("Div", X, Num("a"))), ("Mul", Op("Mul", X, Num("reciprocal"))))
}
_CELU = Any(*(Op("Mul", elu, Num("factor")) for elu in _PLAIN_ELU.values()))


def _celu(match: Match, _node: ir.Node, _ctx: RewriteContext) -> Make | None:
    n = match.numbers
    alpha = n["factor"]
    if not 0 < alpha < math.inf or not close(
        n["a"] if "a" in n else 1 / n["reciprocal"] if n["reciprocal"] else 0, alpha
    ):
        return None
    return _single_node("Celu", match, {"alpha": alpha})


_GELU_ERF = times(X, Op("Add", Op("Erf", over(X, math.sqrt(2))), Num(1.0)), Num(0.5))
_CUBE = Any(Op("Pow", X, Num(3.0)), Op("Mul", X, squared(X)))
_GELU_TANH_OF = Any(
    Op("Mul", Op("Add", X, Op("Mul", _CUBE, Num(0.044715))), Num(math.sqrt(2 / math.pi))),
    times(
        X,
        Op("Add", Any(Op("Mul", squared(X), Num(0.044715)), Op("Mul", X, Op("Mul", X, Num(0.044715)))), Num(1.0)),
        Num(math.sqrt(2 / math.pi)),
    ),
)
_GELU_TANH = times(X, Op("Add", Op("Tanh", _GELU_TANH_OF), Num(1.0)), Num(0.5))
_MISH = Op("Mul", X, Op("Tanh", Op("Softplus", X)))
_SOFTPLUS = Op("Log", Op("Add", Op("Exp", X), Num(1.0)))


# Reductions: Softmax and the normalisations


def _keeps(node: ir.Node) -> bool:
    return bool(query.attribute(node, "keepdims", 1))


def _axes(node: ir.Node, rank: int | None) -> tuple[int, ...] | None:
    """Return the axes of a reduction counted from the end, None where they are not known."""
    axes = query.integers(node, "axes", 1)
    if not axes or (rank is None and any(a >= 0 for a in axes)):
        return None
    return tuple(sorted(a - rank if rank is not None and a >= 0 else a for a in axes))


def _common_axes(match: Match, ctx: RewriteContext) -> tuple[int, ...] | None:
    """Return the axes that all reductions of a match share, None where they differ or are not known."""
    rank = ctx.shapes.rank(match.values["x"])
    found = {_axes(n, rank) for n in match.nodes if n.op_type.startswith("Reduce")}
    return next(iter(found)) if len(found) == 1 else None


_EXP = Op("Exp", Op("Sub", X, Op("ReduceMax", X, where=_keeps)))
_SOFTMAX = Op("Div", _EXP, Op("ReduceSum", _EXP, where=_keeps))
_SOFTMAX_BARE = Op("Div", Op("Exp", X), Op("ReduceSum", Op("Exp", X), where=_keeps))


def _softmax(match: Match, _node: ir.Node, ctx: RewriteContext) -> Make | None:
    axes = _common_axes(match, ctx)
    if axes is None or len(axes) != 1:
        return None
    return _single_node("Softmax", match, {"axis": axes[0]})


def _softmax_bare(match: Match, _node: ir.Node, ctx: RewriteContext) -> str | None:
    axes = _common_axes(match, ctx)
    if axes is None or len(axes) != 1:
        return None
    return "without the maximum taken off first, large inputs overflow, which the operator does not repeat"


_CENTRED = Op("Sub", X, Op("ReduceMean", X, where=_keeps))
_VARIANCE = Op("ReduceMean", squared(maybe_cast(_CENTRED)), where=_keeps)
_DEVIATION = Op("Sqrt", Op("Add", _VARIANCE, Num("eps")))
_STANDARDISED = Any(
    Op("Div", maybe_cast(_CENTRED), _DEVIATION), Op("Mul", maybe_cast(_CENTRED), Op("Reciprocal", _DEVIATION))
)
_MEAN_SQUARE = Op("Sqrt", Op("Add", Op("ReduceMean", squared(X), where=_keeps), Num("eps")))
_ROOT_MEAN = Any(
    Op("Div", X, _MEAN_SQUARE),
    Op("Mul", X, Any(Op("Reciprocal", _MEAN_SQUARE), Op("Div", Num(1.0), _MEAN_SQUARE))),
)


def _normalised(match: Match, node: ir.Node, ctx: RewriteContext) -> tuple[int, tuple[int, ...]] | str:
    """Return the first axis (from the end) and the sizes normalised, or why there is no operator for it."""
    x = match.values["x"]
    axes, dims = _common_axes(match, ctx), ctx.shapes.shape(x)
    if axes is None or axes != tuple(range(-len(axes), 0)):
        return "it does not run over the last axes"
    dtype = ctx.shapes.dtype(x)
    if dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16) or ctx.shapes.dtype(node.outputs[0]) != dtype:
        return "its type is not float32 or float16 all through"
    sizes = dims[-len(axes) :] if dims is not None else ()
    known = tuple(d for d in sizes if isinstance(d, int))
    if len(known) != len(axes):
        return "the sizes of the normalised axes are not known"
    return axes[0], known


def _tail(node: ir.Node, kind: str, sizes: tuple[int, ...], ctx: RewriteContext) -> tuple[ir.Node, ir.Value] | None:
    """Return the next node where it alone reads this one, beside a value of these sizes and this type."""
    after = query.sole_consumer(node.outputs[0])
    if after is None or not query.is_op(after, kind) or after.graph is not node.graph or len(after.inputs) != 2:
        return None
    other = after.inputs[1] if after.inputs[0] is node.outputs[0] else after.inputs[0]
    if other is None or ctx.shapes.static(other) != sizes:
        return None
    return (after, other) if ctx.shapes.dtype(other) == ctx.shapes.dtype(node.outputs[0]) else None


def _layer_norm(match: Match, node: ir.Node, ctx: RewriteContext) -> tuple[ir.Node, Make] | str:
    found = _normalised(match, node, ctx)
    if isinstance(found, str):
        return found
    axis, sizes = found
    scale: ir.Value | np.ndarray | None = None
    bias: ir.Value | None = None
    last = node
    if (scaled := _tail(last, "Mul", sizes, ctx)) is not None:
        last, scale = scaled
    if (shifted := _tail(last, "Add", sizes, ctx)) is not None:
        last, bias = shifted
    dtype = ctx.shapes.dtype(match.values["x"])
    if scale is None:
        if dtype is None or math.prod(sizes) * dtype.itemsize > _FREED_BYTES:
            return "it has no scale, and a scale of ones would make the file larger"
        scale = np.ones(sizes, dtype=dtype.numpy())
    weights = [scale] if bias is None else [scale, bias]
    return last, _normalisation("LayerNormalization", match, axis, weights)


_FREED_BYTES = 512
"""Bytes of the nodes of a decomposed normalisation in a file, at least. Estimated; not measured."""


def _rms_norm(match: Match, node: ir.Node, ctx: RewriteContext) -> tuple[ir.Node, Make] | str:
    found = _normalised(match, node, ctx)
    if isinstance(found, str):
        return found
    axis, sizes = found
    scaled = _tail(node, "Mul", sizes, ctx)
    if scaled is None:
        return "it has no scale"
    return scaled[0], _normalisation("RMSNormalization", match, axis, [scaled[1]])


def _normalisation(kind: str, match: Match, axis: int, weights: Sequence[ir.Value | np.ndarray]) -> Make:
    def make(anchor: ir.Node, ctx: RewriteContext) -> ir.Value:
        hint = anchor.outputs[0].name or kind
        stored = [w if isinstance(w, ir.Value) else ctx.add_constant(anchor, f"{hint}_weight", w) for w in weights]
        attributes = {"axis": axis, "epsilon": float(match.numbers["eps"])}
        inputs = [match.values["x"], *stored]
        return edit.insert_before(anchor, ctx.names, kind, inputs, attributes=attributes).outputs[0]

    return make


_SPELLINGS: Sequence[Spelling] = (
    Spelling("HardSwish", 6, ("Mul", "Div"), _HARD_SWISH, _hard_swish),
    Spelling("HardSwish", 14, ("Mul",), Op("Mul", X, _SIXTH), _hard_swish),
    Spelling("HardSigmoid", 6, ("Mul", "Div", "Clip"), _HARD_SIGMOID, _hard_sigmoid),
    Spelling("Celu", 12, ("Mul",), _CELU, _celu),
    Spelling("Gelu", 20, ("Mul",), _GELU_ERF, lambda match, *_: _single_node("Gelu", match)),
    Spelling("Gelu", 20, ("Mul",), _GELU_TANH, lambda match, *_: _single_node("Gelu", match, {"approximate": "tanh"})),
    Spelling("Mish", 18, ("Mul",), _MISH, lambda match, *_: _single_node("Mish", match)),
    Spelling("Softplus", 1, ("Log",), _SOFTPLUS, lambda match, *_: _single_node("Softplus", match)),
    Spelling("Softmax", 13, ("Div",), _SOFTMAX, _softmax),
    Spelling("Softmax", 13, ("Div",), _SOFTMAX_BARE, _softmax_bare),
    Spelling("LayerNormalization", 17, ("Div", "Mul"), _STANDARDISED, _layer_norm),
    Spelling("RMSNormalization", 23, ("Div", "Mul"), _ROOT_MEAN, _rms_norm),
)


def _global_average(node: ir.Node, ctx: RewriteContext) -> Rewrite | None:
    """Write a mean over all spatial axes of images and volumes as GlobalAveragePool.

    A mean that is taken off again, or of squares, belongs to a normalisation, which runtimes find as a whole. Images
    of height or width 0, which runtimes refuse to pool, are taken for impossible unless the shape says so.
    """
    x = node.inputs[0]
    if 0 in (ctx.shapes.shape(x) or ()):
        return None
    rank = ctx.shapes.rank(x)
    if x is None or rank is None or rank < 4 or not _keeps(node) or ctx.shapes.dtype(x) != ir.DataType.FLOAT:
        return None
    of_squares = query.is_op(x.producer(), "Pow", "Mul") and search(squared(X), x) is not None
    if of_squares or any(query.is_op(use.node, "Sub") for use in node.outputs[0].uses()):
        return None
    if _axes(node, rank) != tuple(range(2 - rank, 0)):
        return None
    return Rewrite(
        target=query.label(node),
        reason="the mean over all spatial axes is GlobalAveragePool",
        apply=lambda: edit.take_over(
            node.outputs[0], edit.insert_before(node, ctx.names, "GlobalAveragePool", [x]).outputs[0]
        ),
    )
