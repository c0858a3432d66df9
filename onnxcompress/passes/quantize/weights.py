"""Weights become int8 and are turned back into floats where they are read; the arithmetic stays float.

For a matrix product, convolution or recurrent layer, one scale for each output channel, in one of two forms. The
target's facts say which is the faster one; the second also suits opsets without scales by channel.

    Op(x, w)         ->  Op(x, DequantizeLinear(w_int8, w_scale, axis))
    Op(x, w)         ->  Op(x, Mul(Cast(w_int8), w_scale))

For a table, one scale for each row, and only the rows that are looked up become floats:

    Gather(w, ids)   ->  Mul(Cast(Gather(w_int8, ids)), Gather(w_scale, ids))

Matrices are stored [in, out], since runtimes have fast kernels for that: Gemm loses its transB. A weight is stored
once however many read it, with the scales of the first reader that is not a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from ...base import schemes
from ...core import Action, Change, Context, Need
from ...graph import query
from ...targets import facts as targets
from ..float16.widen import run_widened
from ..raise_opset import raise_opset
from .weight_rounding import Rounding, round_weight
from .weight_storage import NODE_BYTES, StoredWeight, WeightContext, WeightWriter, sites

_MULTIPLY_OPSET = 7
"""Opset from which on Mul broadcasts as numpy does."""


@plain_dataclass(frozen=True, kw_only=True)
class WeightDecision:
    """Decision about one weight. `rounding` is None where it is skipped, for the reason given."""

    target: str
    reason: str
    bytes_before: int
    bytes_after: int
    site: StoredWeight | None = None
    rounding: Rounding | None = None
    form: targets.WeightForm = "dequantize"

    @property
    def predicted_loss(self) -> float:
        """Noise to signal of the weight: that of the layer's output where inputs are uncorrelated."""
        if self.rounding is None:
            return float("inf")
        return self.rounding.noise / max(self.rounding.signal, float(np.finfo(float).tiny))


@dataclass(frozen=True, kw_only=True)
class QuantizeWeights:
    """Store float weights as int8 with a scale for each output channel or row, the arithmetic stays float."""

    name: ClassVar[str] = "quantize-weights"
    lossless: ClassVar[bool] = False
    covers_layers: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    scheme: Annotated[str, AfterValidator(schemes.checked)] = "int8/channel/sym"
    """type/group/symmetry: int8/channel/sym, or int8/tensor/sym for runtimes without scales by channel."""
    min_elements: Annotated[int, Field(ge=1)] = 256
    """Smaller weights stay as they are; so do those that would not become smaller, their scales and nodes counted."""
    form: Literal["auto", "multiply", "dequantize"] = "auto"
    """How weights become float again. multiply: Cast and Mul, exactly the int8 weights, folded at load by runtimes.
    dequantize: DequantizeLinear, which runtimes may replace by int8 kernels. auto: what is best on the target."""
    clip: Literal["none", "mse"] = "none"
    """mse: clip the largest weights of a channel where that lowers the squared error."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Quantize the weights of every graph of `model`, the least harmful first."""
        return run_widened(model, context, lambda base: self._run(base, context))

    def _run(self, model: ir.Model, context: Context) -> list[Change]:
        changes = self._raise_opset(model, context)
        decisions = self._decide(model, context, query.opset(model))
        scene = WeightContext(model)
        for decision in decisions:
            if decision.rounding is None or context.gate.admits(self.name, decision.target):
                changes.append(self._apply(scene, decision))
        return changes

    def decide(self, model: ir.Model, context: Context) -> list[WeightDecision]:
        """Return what `run` does if the opset can be raised, the least harmful first, refusals last."""
        return self._decide(model, context, max(query.opset(model), self._needed_opset(model, context)))

    def apply(self, model: ir.Model, decision: WeightDecision) -> Change:
        """Carry out one decision that was made on this model at its present opset."""
        return self._apply(WeightContext(model), decision)

    def _decide(self, model: ir.Model, context: Context, opset: int) -> list[WeightDecision]:
        found: list[WeightDecision] = []
        small = 0
        for site, refusal in context.progress("Quantizing weights", list(self._sites(model, context))):
            if site.tensor.size < self.min_elements:
                small += 1
            elif refusal:
                found.append(_refusal(site, refusal))
            else:
                found.append(self._round(site, context, opset))
        found.sort(key=lambda d: d.predicted_loss)  # stable: equal ones and refusals stay in the graph's order
        if small:
            reason = f"{small} weights of fewer than {self.min_elements} elements stay as they are"
            found.append(WeightDecision(target="graph", reason=reason, bytes_before=0, bytes_after=0))
        return found

    def _sites(self, model: ir.Model, context: Context) -> Iterator[tuple[StoredWeight, str]]:
        channelwise = schemes.parse(self.scheme).group == "channel"
        return sites(model, context.selects, channelwise=channelwise)

    def _needed_opset(self, model: ir.Model, context: Context) -> int:
        """Return the opset that the target's favourite form needs for float32; float16 has the other form."""
        wanted = [
            site.dequantize_opset
            for site, refusal in self._sites(model, context)
            if not refusal
            and site.tensor.size >= self.min_elements
            and site.tensor.dtype == ir.DataType.FLOAT
            and site.others
            and self._form(site, context) == "dequantize"
        ]
        return max(wanted, default=0)

    def _raise_opset(self, model: ir.Model, context: Context) -> list[Change]:
        """Raise the opset in place where a weight needs it; on failure say so, and coarser scales are used."""
        why = "DequantizeLinear with a scale for each channel needs it"
        return raise_opset(model, context, self.name, self._needed_opset(model, context), why)

    def _round(self, site: StoredWeight, context: Context, opset: int) -> WeightDecision:
        """Choose the scales of a weight and measure the error; refuse where it can't be written or saves nothing."""
        if opset < _MULTIPLY_OPSET:
            return _refusal(site, f"needs opset {_MULTIPLY_OPSET}, the model has {opset}")
        fact = site.fact(context.target)
        form = "multiply" if opset < site.dequantize_opset else self._form(site, context)
        scales = 1 if site.axis is None else query.dims(site.tensor)[site.axis]
        new_nodes = 2 + sum(3 if r.weight.is_table else 1 for r in site.readers) + (form == "multiply")
        before = site.stored_bytes
        added = scales * site.tensor.dtype.bitwidth // 8 + new_nodes * (NODE_BYTES + 2 * len(site.name))
        after = site.tensor.size + added
        if after >= before:
            return _refusal(site, f"would take {after} bytes with its scales and nodes instead of {before}")
        try:
            rounding = round_weight(site.tensor, site.axis, clip=self.clip == "mse")
        except ValueError as error:
            return _refusal(site, f"can't be rounded: {error}")
        return WeightDecision(
            target=site.name,
            reason=_reason(site, fact.note if form == fact.form else ""),
            bytes_before=before,
            bytes_after=after,
            site=site,
            rounding=rounding,
            form=form,
        )

    def _form(self, site: StoredWeight, context: Context) -> targets.WeightForm:
        return site.fact(context.target).form if self.form == "auto" else self.form

    def _apply(self, scene: WeightContext, decision: WeightDecision) -> Change:
        details: dict[str, Any] = {}
        action = Action.SKIPPED
        if decision.rounding is not None and decision.site is not None:
            WeightWriter(scene, decision.site, decision.rounding, decision.form).write()
            action = Action.APPLIED
            details = {"scheme": self.scheme, "form": decision.form, "scales": int(decision.rounding.scale.size)}
            if np.isfinite(decision.rounding.sqnr_db):
                details["sqnr_db"] = round(decision.rounding.sqnr_db, 2)
        return Change(
            pass_name=self.name,
            target=decision.target,
            action=action,
            reason=decision.reason,
            bytes_before=decision.bytes_before,
            bytes_after=decision.bytes_after,
            details=details,
        )


def _refusal(site: StoredWeight, reason: str) -> WeightDecision:
    size = site.stored_bytes
    return WeightDecision(target=site.name, reason=reason, bytes_before=size, bytes_after=size)


def _reason(site: StoredWeight, note: str) -> str:
    """Say how a weight is stored and what that does to speed."""
    scales = "one scale" if site.axis is None else f"a scale for each {'output channel' if site.others else 'row'}"
    return f"int8 with {scales}" + (f"; {note}" if note else "")
