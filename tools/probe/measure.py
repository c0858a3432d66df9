"""Ask onnxruntime what becomes of the models, and time those that run on integers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from onnxcompress.runtime import session as runtime
from onnxcompress.runtime.latency import race
from onnxcompress.runtime.profiles import profile

from .build import Around, Builder, Case, activation_type, feed, float_model, quantized_model
from .cases import ABSORBED, COMPUTE, MOVES, POINTWISE, SATURATING

_CONVERSIONS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}

_ATTEMPTS = 25
"""Attempts at a time, of which the least counts: it is the one that nothing else on the machine disturbed."""

_LAYOUT = {"Transpose", "ReorderInput", "ReorderOutput"}

_AS_FAST = 1.1
"""Forms whose times are within this factor count as equally fast: the plainest is taken."""

Row = dict[str, Any]
Say = Callable[[str], None]


def rows(activation: str, say: Say) -> Iterator[tuple[str, Row]]:
    """Yield (key, what is known) for every operator that runs on integers."""
    around = Around(activation=activation)  # type: ignore[arg-type]
    for case in COMPUTE:
        if row := _compute(case, around):
            yield case.key, row
        say(f"{case.key}: {row or 'float'}")
    for case in SATURATING:
        if row := _saturating(case, around):
            yield case.key, row
        say(f"{case.key}: {row or 'float'}")
    for case in POINTWISE:
        if row := _pointwise(case, around):
            yield case.key, row
        say(f"{case.key}: {row or 'float'}")
    for case in MOVES:
        equal = replace(around, scales="equal")
        row = {}
        if is_integer(quantized_model(case, equal)):
            free = is_integer(quantized_model(case, around))
            row = {"form": "pointwise" if free else "moves", **_times(case, equal)}
            if "mode" in case.attributes:
                row["requires"] = {"mode": case.attributes["mode"]}
            yield case.key, row
        say(f"{case.key}: {row or 'float'}")


def conversions() -> Row:
    """Return what a quantizer, a dequantizer, and a change of layout cost, in picoseconds for each element."""
    shape = (1, 64, 56, 56)
    size = int(np.prod(shape))
    model = quantized_model(Case(key="", op_type="Sqrt", inputs=(shape,)), Around())
    conv = quantized_model(COMPUTE[0], Around())
    elements = 2 * int(np.prod(COMPUTE[0].inputs[0]))

    def only(model: bytes, op_type: str) -> float:
        others = set(runtime.optimized_nodes(model)) - {op_type}
        return _kernels(model, others)

    return {
        "quantize_ps": _digits(only(model, "QuantizeLinear") / size),
        "dequantize_ps": _digits(only(model, "DequantizeLinear") / size),
        "layout_ps": _digits(only(conv, "Transpose") / elements),
        "node_ns": _digits(_node_nanoseconds()),
    }


def _node_nanoseconds(length: int = 40) -> float:
    """Return what a Q or DQ costs that has next to nothing to do: a chain with them against one without."""
    models = []
    for quantized in (False, True):
        b = Builder()
        value = b.input(onnx.TensorProto.FLOAT, (1, 4))
        for _ in range(length):
            value = b.op("Neg", value)[0]
            if quantized:
                value = b.dequantize(b.quantize(value, 0.1, 128, "uint8"), 0.1, 128, "uint8")
        models.append(b.model({value: onnx.TensorProto.FLOAT}))
    times = [_least_milliseconds(model) for model in models]
    return max(0.0, (times[1] - times[0]) * 1e6 / (2 * length))


def _least_milliseconds(model: bytes) -> float:
    session, values = runtime.open_session(model, optimize=True), feed(model)
    return min(race(session, session, values).original_ms for _ in range(_ATTEMPTS))


def is_integer(model: bytes) -> bool:
    """Say whether the model runs without a conversion to or from floats."""
    return not _CONVERSIONS & set(runtime.optimized_nodes(model))


def _compute(case: Case, around: Around) -> Row:
    if case.weight is None:
        if not is_integer(quantized_model(case, around)):
            return {}
        free = is_integer(quantized_model(case, replace(around, output=False)))
        return {"form": "compute", "float_output": free, **_times(case, replace(around, output=not free))}
    channels = is_integer(quantized_model(case, around))
    if not channels and not is_integer(quantized_model(case, replace(around, channels=False))):
        return {}
    around = replace(around, channels=channels)
    row: Row = {"form": "compute", "channels": channels}
    row["zero_point"] = not is_integer(quantized_model(replace(case, bias=None), replace(around, zero_point=False)))
    around = replace(around, zero_point=row["zero_point"])
    row["float_output"] = is_integer(quantized_model(replace(case, bias=None), replace(around, output=False)))
    row |= _biases(case, around, float_output=row["float_output"])
    row["absorbs"] = [a for a in ABSORBED if is_integer(quantized_model(case, replace(around, after=a)))]
    return row | _times(replace(case, bias=None), replace(around, output=not row["float_output"]))


def _biases(case: Case, around: Around, *, float_output: bool) -> Row:
    """Find how a bias is to be stored: the plainest of the fastest forms, by the kind of output."""
    found: Row = {}
    for output in (True, False) if float_output else (True,):
        forms = {}
        for form, biased in _biased(case):
            trial = quantized_model(biased, replace(around, output=output, bias=form))
            if is_integer(trial):
                forms["spread" if biased.bias and len(biased.bias) > 1 else form] = _kernels(trial)
        name = "bias" if output else "bias_float_output"
        found[name] = "none"
        if forms:
            fast = _AS_FAST * min(forms.values())
            found[name] = next(form for form, ps in forms.items() if ps <= fast)
    return found


def _biased(case: Case) -> Iterator[tuple[Any, Case]]:
    if case.op_type == "MatMul":
        assert case.weight is not None
        size = case.weight[-1]
        rank = len(case.inputs[0])
        yield "float", replace(case, bias=(size,), add_bias=True)
        yield "float", replace(case, bias=(1,) * (rank - 1) + (size,), add_bias=True)
        yield "int32", replace(case, bias=(size,), add_bias=True)
    else:
        yield "float", case
        yield "int32", case


def _pointwise(case: Case, around: Around) -> Row:
    if not is_integer(quantized_model(case, around)):
        return {}
    row: Row = {"form": "pointwise"}
    absorbed = [a for a in ABSORBED if is_integer(quantized_model(case, replace(around, after=a)))]
    if absorbed:
        row["absorbs"] = absorbed
    if len(case.inputs) > 1:
        row["constant"] = is_integer(quantized_model(case, replace(around, constant="integer")))
    return row | _times(case, around)


def _saturating(case: Case, around: Around) -> Row:
    """Try a quantizer that saturates in place of the hard sigmoid, whose offset is in the middle."""
    kind, middle = around.activation, 128 if around.activation == "uint8" else 0
    b = Builder()
    x = b.dequantize(b.input(activation_type(kind), case.inputs[0]), 0.02, middle, kind)
    codes = b.quantize(x, 6 / 256, middle, kind)
    expected = {"DequantizeLinear", "QuantizeLinear"}
    if case.op_type == "HardSwish":
        expected = {*expected, "QLinearMul"}
        gate = b.dequantize(codes, 1 / 256, middle - 128, kind)
        codes = b.quantize(b.op("Mul", x, gate)[0], 0.02, middle, kind)
    model = b.model({codes: activation_type(kind)})
    if not set(runtime.optimized_nodes(model)) <= expected:
        return {}
    units = int(np.prod(case.inputs[0]))
    times = {"float_ps": _kernels(float_model(case)) / units, "integer_ps": _kernels(model) / units}
    return {"form": "pointwise", "saturates": True, **{name: _digits(ps) for name, ps in times.items()}}


def _times(case: Case, around: Around) -> Row:
    """Return picoseconds of the kernels on floats and on integers, for each MAC, or else element of the largest tensor.

    What changes the layout of a feature map for a kernel is left out: between neighbours that agree there is none.
    Integers are also tried behind convolutions, whose layout some kernels are made for. What moves elements stands
    between two nodes: some of it needs no copy there.
    """
    plain = float_model(case)
    between = around.scales == "equal" and case.op_type != "Transpose"
    units = case.macs
    if not units:
        outputs = runtime.open_session(plain, optimize=True).run(feed(plain))
        made = sum(int(array.size) for array in outputs.values())
        units = max(made, *(int(np.prod(shape)) for shape in case.inputs), 1)
    without = _LAYOUT - {case.op_type}
    if between:
        plain = float_model(case, between=True)
    integer = _kernels(quantized_model(case, around, between=between), without)
    if not case.macs and case.op_type != "Transpose":
        behind = quantized_model(case, around, behind_conv=True)
        integer = min(integer, _kernels(behind, {*without, "QLinearConv"}))
    return {"float_ps": _digits(_kernels(plain, without) / units), "integer_ps": _digits(integer / units)}


def _kernels(model: bytes, without: Collection[str] = ()) -> float:
    """Return the picoseconds of a run's kernels, some operators left out; the least of many short attempts."""
    values = feed(model)
    attempts = [profile(model, values, runs=3) for _ in range(_ATTEMPTS)]
    return 1e9 * min(sum(ms for _, op_type, ms in found if op_type not in without) for found in attempts)


def _digits(number: float) -> float:
    return float(f"{number:.2g}")
