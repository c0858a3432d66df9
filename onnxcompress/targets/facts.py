"""Facts about a runtime on one kind of processor: data files, one for each target, and their reader."""

from __future__ import annotations

import functools
import importlib.resources
import tomllib
from collections.abc import Mapping
from typing import Any, Literal

import pydantic
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from ..errors import UsageError
from ..numerics.quantization.affine_activations import IntegerGrid

_FOLDER = importlib.resources.files(__package__)
_STRICT = ConfigDict(extra="forbid")

HERE = "cpu"
"""The target that is this machine: the only one on which candidates can be timed."""
NAMES = ("cpu", "arm", "tensorrt", "qnn")

WeightKind = Literal["product", "lookup", "other"]
WeightForm = Literal["dequantize", "multiply"]
BiasForm = Literal["float", "int32", "spread", "none"]
"""How a bias is stored: floats, integers with a scale, floats with as many axes as the activations; not at all."""


@dataclass(frozen=True, kw_only=True)
class WeightOnly:
    """Form of int8 weights with which a target computes fastest: nodes to write, and a note on their effect."""

    form: WeightForm = "dequantize"
    note: str = ""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class OperatorFacts:
    """Integer kernel of an operator; one without such a row runs on floats.

    Args:
        form: compute (multiply-accumulates of activations with a weight or with activations), pointwise (inputs and
            output have scales of their own), moves (elements are passed on: one scale before and after).
        channels: a weight may have a scale for each output channel.
        zero_point: a weight's zero point has to be given, though it is 0.
        float_output: a compute operator runs on integers too where its result is left in floats.
        bias: how a bias is stored where the result is quantized.
        bias_float_output: the same where the result is left in floats.
        absorbs: activation functions that it does on the way where the least integer represents their lower bound.
        constant: an operand that is a constant may be given in integers.
        requires: attributes that a node must have, by name.
        saturates: it is written as a quantizer whose saturation does the work of the hard sigmoid in it.
        float_ps: picoseconds on floats, for each multiply-accumulate of a compute operator or else element of the
            largest tensor.
        integer_ps: the same on integers.
    """

    form: Literal["compute", "pointwise", "moves"]
    channels: bool = True
    zero_point: bool = False
    float_output: bool = False
    bias: BiasForm = "float"
    bias_float_output: BiasForm = "float"
    absorbs: tuple[str, ...] = ()
    constant: bool = True
    saturates: bool = False
    requires: Mapping[str, str | int] = Field(default_factory=dict)
    float_ps: float = Field(default=20, ge=0)
    integer_ps: float = Field(default=5, ge=0)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ConversionCosts:
    """Picoseconds for each element; `layout_ps` is paid where feature maps enter and leave integer convolutions."""

    quantize_ps: float = Field(default=100, ge=0)
    dequantize_ps: float = Field(default=100, ge=0)
    layout_ps: float = Field(default=0, ge=0)
    node_ns: float = Field(default=0, ge=0)
    """Nanoseconds that every further node costs, whatever its size."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class StaticFacts:
    """Integer kernels of a target, and the form of quantized tensors for it.

    Args:
        basis: whether the rows were measured by `tools/probe.py` or taken from the runtime's documentation.
        runtime: of which runtime, version and processor they are true.
        activation: the type of activations.
        symmetric: their zero point is the middle of the type.
        weight: the type of weights, whose zero point is 0.
        opset: the least opset with the operators that are written.
        least_range: ranges of activations are widened to this.
        conversions: what Q and DQ cost.
        operators: operator type, or one with its kind of kernel behind a dot -> its row.
    """

    basis: Literal["measured", "documented"]
    runtime: str
    activation: Literal["uint8", "int8"]
    symmetric: bool
    weight: Literal["int8"]
    opset: int = Field(ge=10)
    least_range: float = Field(default=0, ge=0)
    conversions: ConversionCosts = Field(default_factory=ConversionCosts)
    operators: Mapping[str, OperatorFacts]

    @property
    def grid(self) -> IntegerGrid:
        """The integers of activations."""
        return IntegerGrid("u8" if self.activation == "uint8" else "s8", symmetric=self.symmetric)

    def operator(self, op_type: str, kind: str = "") -> OperatorFacts | None:
        """Return the row of an operator's kind, or of the operator, None where it runs on floats."""
        return self.operators.get(f"{op_type}.{kind}") or self.operators.get(op_type)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DynamicFacts:
    """Break-even of quantizing activations at run time, in multiply-accumulates (MACs) of a run.

    Args:
        product_macs: cost of the further steps of a product, whatever its size.
        product_macs_per_input: what they cost for each element of the activations.
        lstm_macs: cost of the further steps of an LSTM, whatever its size.
        lstm_macs_per_step: what they cost in each time step.
    """

    product_macs: int = Field(ge=0)
    product_macs_per_input: int = Field(ge=0)
    lstm_macs: int = Field(ge=0)
    lstm_macs_per_step: int = Field(ge=0)

    def product_pays(self, rows: int, depth: int, columns: int) -> bool:
        """Return True where a product of [rows, depth] and [depth, columns] is faster on integers."""
        return rows * depth * columns > self.product_macs + self.product_macs_per_input * rows * depth

    def lstm_pays(self, steps: int, step_macs: int) -> bool:
        """Return True where an LSTM with so many MACs in each of its time steps is faster on integers."""
        return steps * (step_macs - self.lstm_macs_per_step) > self.lstm_macs


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class BlockFacts:
    """Widths of block-quantized weights that a runtime multiplies by about as fast as by floats, or faster.

    Args:
        kernel_bits: with activations in floats.
        integer_bits: with activations that are rounded to 8 bits on the way.
    """

    kernel_bits: tuple[int, ...] = ()
    integer_bits: tuple[int, ...] = ()


def check(target: str) -> None:
    """Refuse a target of which nothing is known.

    Raises:
        UsageError: there is no such target.
    """
    if target not in NAMES:
        raise UsageError(f"unknown target {target!r}", hint=f"Known: {', '.join(NAMES)}")


def weight_only(target: str, kind: WeightKind) -> WeightOnly:
    """Return what is known of int8 weights on a target; where nothing is, DequantizeLinear is right."""
    return WeightOnly(**_read(target).get("weight_only", {}).get(kind, {}))


def block_facts(target: str) -> BlockFacts:
    """Return which products with few-bit weights are fast on a target, none where nothing is known."""
    return BlockFacts(**_read(target).get("blocks", {}))


def half_compute(target: str) -> bool:
    """Say whether a target computes faster in float16 than in float32; where nothing is known, it does not."""
    return bool(_read(target).get("float16", {}).get("compute", False))


def channel_multiple(target: str) -> int:
    """Return the number of which a layer's count of channels should be a multiple; where nothing is known, 8."""
    return int(_read(target).get("channels", {}).get("multiple", 8))


def static_facts(target: str) -> StaticFacts:
    """Return what a target runs on integers.

    Raises:
        UsageError: there is no such target, or its file is malformed.
    """
    check(target)
    found = _read(target).get("static", {})
    try:
        return StaticFacts(**found)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError(f"targets/{target}.toml: static.{place}: {first['msg']}") from error


def dynamic_facts(target: str) -> DynamicFacts | None:
    """Return when dynamic quantization pays on a target, None where its runtime can't do it.

    Raises:
        UsageError: there is no such target.
    """
    check(target)
    found = _read(target).get("dynamic")
    return None if found is None else DynamicFacts(**found)


@functools.cache
def _read(target: str) -> Mapping[str, Any]:
    file = _FOLDER / f"{target}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
