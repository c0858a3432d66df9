"""Matrix products and LSTMs compute with int8; activations are quantized with the range that each run finds.

    MatMul(x, w)  ->  q, s, z = DynamicQuantizeLinear(x)
                      Mul(Cast(MatMulInteger(q, w_int8, z)), Mul(s, w_scale))
    Gemm          ->  the same, with alpha in w_scale, transB in w_int8, and Add for its bias
    LSTM          ->  com.microsoft DynamicQuantizeLSTM

Needs no data, and the result of a layer is float again, so that ranges of one layer never hurt another. Only what the
target's facts call faster is rewritten: small layers are not, nor convolutions, which would take 5 to 14 times as
long. What stays float here can have its weights stored as int8 by quantize-weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass

from ...base import schemes
from ...core import Action, Change, Context, Need
from ...data import feeds as feed_facts
from ...graph import constants as float_constants
from ...graph import query
from ...shapes import infer as shapes
from ...targets import facts as targets
from ..raise_opset import raise_opset
from . import dynamic_lstm, dynamic_matmul
from .weight_rounding import Rounding, round_weight, saturates
from .weight_storage import WeightContext, sites


@plain_dataclass(frozen=True)
class _DynamicPlan:
    """Layers to round, and those that are skipped."""

    products: tuple[dynamic_matmul.DynamicProduct, ...]
    lstms: tuple[ir.Node, ...]
    refused: list[DynamicDecision]


@plain_dataclass(frozen=True, kw_only=True)
class DynamicDecision:
    """Decision about one weight matrix or LSTM; neither `product` nor `lstm` where it stays float."""

    target: str
    reason: str
    bytes_before: int = 0
    bytes_after: int = 0
    product: dynamic_matmul.DynamicProduct | None = None
    rounding: Rounding | None = None
    lstm: dynamic_lstm.RoundedLstm | None = None

    @property
    def applies(self) -> bool:
        """True where anything is rewritten."""
        return self.product is not None or self.lstm is not None

    @property
    def predicted_loss(self) -> float:
        """Noise to signal of the weights, infinite for a refusal."""
        found = self.lstm or self.rounding
        return float("inf") if found is None else found.noise / max(found.signal, float(np.finfo(float).tiny))


@dataclass(frozen=True, kw_only=True)
class QuantizeDynamic:
    """Run MatMul, Gemm and LSTM on int8 weights, with activations quantized by the range of each run."""

    name: ClassVar[str] = "quantize-dynamic"
    lossless: ClassVar[bool] = False
    covers_layers: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    scheme: Annotated[str, AfterValidator(schemes.checked)] = "int8/channel/sym"
    """type/group/symmetry of weights: int8/channel/sym has a scale for each output channel, int8/tensor/sym one."""
    weight_bits: Literal[7, 8] | None = None
    """7: integers from -63 to 63, with which kernels that add in 16 bits (x64 without VNNI) can't overflow. None: 7
    where the target is this machine and has such kernels, else 8."""
    clip: Literal["none", "mse"] = "none"
    """mse: clip the largest weights of a channel where that lowers the squared error."""
    one_scale_db: float = 32
    """An LSTM's recurrent weight gets one scale, which is faster, where its rounding noise is so far below it."""
    layers: Literal["worthwhile", "all"] = "worthwhile"
    """worthwhile: only layers that are faster on the target, at the sizes of the data. all: whatever their size."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Rewrite products and LSTMs of every graph of `model`, those with the least rounding error first."""
        changes: list[Change] = []
        if query.opset(model) < dynamic_matmul.OPSET and self.products(model, context):
            why = "DynamicQuantizeLinear needs it"
            changes = raise_opset(model, context, self.name, dynamic_matmul.OPSET, why)
        decisions = self._decide(model, context, query.opset(model))
        scene = WeightContext(model)
        inputs, lstms = dynamic_matmul.QuantizedInputs(scene), dynamic_lstm.LstmWriter(model, scene)
        for decision in decisions:
            if not decision.applies or context.gate.admits(self.name, decision.target):
                if decision.product is not None and decision.rounding is not None:
                    form = decision.product.site.fact(context.target).form
                    dynamic_matmul.ProductWriter(scene, decision.product, decision.rounding, form, inputs).write()
                elif decision.lstm is not None:
                    lstms.write(decision.lstm)
                changes.append(self._change(decision, self._bits(context)))
        return changes

    def decide(self, model: ir.Model, context: Context) -> list[DynamicDecision]:
        """Return what `run` does if the opset can be raised, the least rounding error first, refusals last."""
        return self._decide(model, context, max(query.opset(model), dynamic_matmul.OPSET))

    def products(self, model: ir.Model, context: Context) -> tuple[dynamic_matmul.DynamicProduct, ...]:
        """Return the matrix products that `run` would write on integers; no weight is read."""
        return self._plan(model, context).products

    def _decide(self, model: ir.Model, context: Context, opset: int) -> list[DynamicDecision]:
        plan, bits = self._plan(model, context), self._bits(context)
        layers = context.progress("Quantizing products and LSTMs", [*plan.products, *plan.lstms])
        found = [
            self._round_lstm(layer, bits) if isinstance(layer, ir.Node) else self._round_product(layer, opset, bits)
            for layer in layers
        ]
        found.sort(key=lambda d: d.predicted_loss)  # stable: refusals stay in the graph's order
        return found + plan.refused

    def _plan(self, model: ir.Model, context: Context) -> _DynamicPlan:
        """Return what is to be rounded and what is not, with the reasons; no weight is read."""
        facts = targets.dynamic_facts(context.target)
        if facts is None:
            reason = f"{context.target} doesn't run layers with activations that are quantized by the range of each run"
            return _DynamicPlan((), (), [DynamicDecision(target="graph", reason=reason)])
        if self.layers == "all":
            facts = targets.DynamicFacts(product_macs=0, product_macs_per_input=0, lstm_macs=0, lstm_macs_per_step=0)
        known = _shapes(model, context)
        products, refused = [], []
        for site, fault in sites(model, context.selects, channelwise=self._channelwise):
            faults = dynamic_matmul.faults(site, known, facts)
            if faults and (fault or all(faults.values())):
                size = site.stored_bytes
                reason = fault or next(iter(faults.values()))
                refused.append(DynamicDecision(target=site.name, reason=reason, bytes_before=size, bytes_after=size))
            elif faults:
                products.append(dynamic_matmul.product(site, [node for node, why in faults.items() if not why]))
        lstms = []
        convolutions = 0
        for node in _nodes(model):
            convolutions += query.is_op(node, "Conv", "ConvTranspose")
            why: str | None = None
            if query.is_op(node, "LSTM"):
                why = dynamic_lstm.fault(node, known, context.selects, facts)
            elif query.is_op(node, "GRU", "RNN"):
                why = f"onnxruntime has no {node.op_type} on integers: only its weights can be stored as int8"
            elif dynamic_matmul.has_rounded_weight(node):
                why = "its weight is quantized already"
            if why:
                refused.append(DynamicDecision(target=query.label(node), reason=why))
            elif why is not None:
                lstms.append(node)
        if convolutions:
            counted = f"{convolutions} convolution{'s' if convolutions > 1 else ''}"
            reason = f"{counted} left to other passes: slower on integers if ranges are found in each run"
            refused.append(DynamicDecision(target="graph", reason=reason))
        return _DynamicPlan(tuple(products), tuple(lstms), refused)

    def _round_product(self, product: dynamic_matmul.DynamicProduct, opset: int, bits: int) -> DynamicDecision:
        site = product.site
        before = site.stored_bytes
        refused = DynamicDecision(target=site.name, reason="", bytes_before=before, bytes_after=before)
        if opset < dynamic_matmul.OPSET:
            return replace(refused, reason=f"needs opset {dynamic_matmul.OPSET}, the model has {opset}")
        try:
            rounding = round_weight(site.tensor, site.axis, clip=self.clip == "mse", bits=bits)
        except ValueError as error:
            return replace(refused, reason=f"can't be rounded: {error}")
        kind = "a scale for each output channel" if self._channelwise else "one scale"
        reason = f"on integers, int8 weights with {kind}, activations with the range of each run"
        after = site.tensor.size + rounding.scale.nbytes
        return replace(refused, reason=reason, bytes_after=after, product=product, rounding=rounding)

    def _round_lstm(self, node: ir.Node, bits: int) -> DynamicDecision:
        before = sum(float_constants.stored_bytes(v) for v in dynamic_lstm.weights(node) if v is not None)
        refused = DynamicDecision(target=query.label(node), reason="", bytes_before=before, bytes_after=before)
        try:
            lstm = dynamic_lstm.round_lstm(
                node,
                channelwise=self._channelwise,
                one_scale_db=self.one_scale_db,
                clip=self.clip == "mse",
                bits=bits,
            )
        except ValueError as error:
            return replace(refused, reason=f"can't be rounded: {error}")
        scales = [r.scale for r in lstm.roundings]
        after = sum(r.tensor.size + r.scale.nbytes for r in lstm.roundings)
        kinds = " and ".join(str(s.size) for s in scales)
        reason = f"on integers, int8 weights with {kinds} scales, states with the range of each step"
        return replace(refused, reason=reason, bytes_after=after, lstm=lstm)

    def _bits(self, context: Context) -> int:
        return self.weight_bits or (7 if saturates(context.target) else 8)

    @property
    def _channelwise(self) -> bool:
        return schemes.parse(self.scheme).group == "channel"

    def _change(self, decision: DynamicDecision, bits: int) -> Change:
        details: dict[str, Any] = {}
        if decision.applies:
            details = {"scheme": self.scheme, "weight_bits": bits}
            noise = decision.predicted_loss
            if noise:
                details["sqnr_db"] = round(-10 * float(np.log10(noise)), 2)
        return Change(
            pass_name=self.name,
            target=decision.target,
            action=Action.APPLIED if decision.applies else Action.SKIPPED,
            reason=decision.reason,
            bytes_before=decision.bytes_before,
            bytes_after=decision.bytes_after,
            details=details,
        )


def _shapes(model: ir.Model, context: Context) -> shapes.Shapes:
    """Return the shapes that the largest feed leads to, or what the model alone says of them."""
    if not context.feeds:
        return shapes.inferred(model, context)
    largest = feed_facts.largest(context.feeds)
    return shapes.infer_at(model, feed_facts.dims(largest))


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    for body in query.graphs_outside_functions(model):
        yield from body
