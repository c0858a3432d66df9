"""Weights become integers of 2, 3, 4 or 8 bits with a scale for every few neighbours; the arithmetic stays float.

    survey --> what each width of each weight costs and loses --allocate--> widths within the budget
    data?  --> the layers are rounded one after the other, each making good what went wrong before it
    write  --> in the form that was measured to be fastest

How the integers are chosen:

    gptq      so that the layer's output changes least on the data (GPTQ, then descent on single integers)
    awq       to the nearest, errors counted by what the weights multiply on the data; channels scaled beforehand (AWQ)
    hqq       so that most weights fit well and a few badly, without data (half-quadratic quantization)
    nearest   every weight to its nearest integer, with clipping of least squared error

How they are written: see `block_writer`. What is fastest depends on the processor, on the widths and on how many rows
are multiplied at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from ...base import schemes
from ...base.gate import Gate, Memo
from ...core import Change, Context, Judge, Need
from ...graph import query
from ...io import model_io
from ...search import candidates as search
from ...search import drafts
from ...targets import facts as targets
from ..float16.widen import run_widened
from ..raise_opset import raise_opset
from .blocks_bits import WidthChoice, Widths, grids_of, own_bits, survey
from .blocks_rounding import Method, Rounder, has_enough
from .blocks_writer import OPSETS, BlockWriter, Form, kernel_fits, shape_of, stored_bytes
from .equalize import Equalize
from .weight_storage import StoredWeight, WeightContext, sites

_SPARE = 1.08
"""What is spent beyond the scheme's bits on the weights that hurt most, unless there is a budget."""
_STEPS = 3
"""Halvings of the range in which the smallest budget within a limit on quality is looked for."""
_FILE_STEPS = 3
"""Times that the budget is corrected by what a file takes beside the weights."""
_FASTER = 0.95
"""Times count as shorter from here on."""
_ROUGHER = 1.1
"""Most that the noise of the output may grow where products round their activations too."""
_DRAFT = "rounded to the nearest, whatever the method, and no channels scaled before"
"""Difference of a plan from a run."""


@dataclass(frozen=True, kw_only=True)
class QuantizeBlocks:
    """Store float weights as integers of 2 to 8 bits with a scale for every block of neighbours."""

    name: ClassVar[str] = "quantize-blocks"
    lossless: ClassVar[bool] = False
    covers_layers: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.DATA_IF_GIVEN})

    scheme: Annotated[str, AfterValidator(schemes.checked_blocks)] = "int4/block32/sym"
    """type/group/symmetry: int4/block32/sym, uint4/block64/asym, with 2, 3, 4 or 8 bits and blocks of 16 to 128. 3 bits
    are stored as 4: only a packed file gains by them."""
    bits_per_weight: Annotated[float | None, Field(gt=0, le=32)] = None
    """Budget, scales included, spent on 2, 4 and 8 bits where each helps most. Default: what --max-bytes leaves; with
    data and --max-drop as few as it allows; else a little more than the scheme takes, and no weight gets fewer bits."""
    method: Method = "auto"
    """auto: gptq with data, hqq without. Both gptq and awq scale channels first, where that takes off a clear part."""
    form: Literal["auto", "kernel", "integer", "multiply", "dequantize"] = "auto"
    """kernel: onnxruntime's MatMulNBits and GatherBlockQuantized, where they fit. integer: the same, products on int8.
    multiply: standard operators that are folded at load. dequantize: DequantizeLinear with blocks. auto: on cpu the
    fastest of the first three, products on int8 only where held-out samples show no harm; else dequantize."""
    min_elements: Annotated[int, Field(ge=1)] = 1024
    """Smaller weights stay as they are; so do those that would not become smaller."""
    equalize: Equalize = Equalize()
    """For channels that are scaled first; its scheme is this pass's."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Quantize the weights of every graph of `model`, the least harmful first."""
        return run_widened(model, context, lambda base: self._run(base, context))

    def _run(self, model: ir.Model, context: Context) -> list[Change]:
        scheme = schemes.parse(self.scheme)
        scales = replace(self.equalize, scheme=self.scheme)
        scaled = scales.run(model, context) if self._uses_data(context) else []
        limit = None if context.judge is None else context.judge.limit
        is_budgeted = any(each is not None for each in (self.bits_per_weight, context.max_bytes, limit))
        widths = survey(model, grids_of(scheme, is_budgeted=is_budgeted), context, min_elements=self.min_elements)
        refusals = [self._skipped(each.target, each.reason, each.bytes) for each in widths.refused]
        chosen = self._chosen(model, widths, context) if widths.elements else {}
        chosen = {name: choice for name, choice in chosen.items() if context.gate.admits(self.name, name)}
        if not chosen:
            return scaled + refusals
        rounder = self._rounded(model, chosen, context)
        form = self._form(model, chosen, rounder, context)
        written = self._write(model, chosen, rounder, form, context)
        if context.is_plan:
            written = drafts.marked(written, _DRAFT, samples=widths.samples)
        return scaled + written + refusals

    def _chosen(self, model: ir.Model, widths: Widths, context: Context) -> dict[str, WidthChoice]:
        """Return the widths within the budget that was given, or that limits on the file or the quality leave."""
        if self.bits_per_weight is not None:
            return widths.at(self.bits_per_weight)
        if context.max_bytes is not None:
            return self._fitting(model, widths, context, context.max_bytes)
        if context.judge is not None and context.judge.limit is not None:
            return self._good_enough(model, widths, context, context.judge)
        return widths.at(own_bits(schemes.parse(self.scheme)) * _SPARE)

    def _fitting(self, model: ir.Model, widths: Widths, context: Context, max_bytes: int) -> dict[str, WidthChoice]:
        """Return the best widths with which the file has so many bytes at most, or the smallest."""
        rest = 0
        chosen = widths.within(max_bytes)
        for _ in range(_FILE_STEPS):
            candidate, apart = _copy(model, context)
            rounder = Rounder({name: choice.grid for name, choice in chosen.items()}, method="nearest", candidates=1)
            rounder.all_alone(self._sites(candidate, chosen, context))
            self._write(candidate, chosen, rounder, "kernel", apart)
            size = model_io.model_bytes(candidate)
            if rest and size <= max_bytes:
                break
            rest = max(rest, size - sum(choice.bytes for choice in chosen.values()))
            chosen = widths.within(max_bytes - rest)
        return chosen

    def _good_enough(self, model: ir.Model, widths: Widths, context: Context, judge: Judge) -> dict[str, WidthChoice]:
        """Return the smallest widths with which the score stays within the limit, or the best."""
        least = sum(min(costs) for costs in widths.costs.values())
        most = sum(max(costs) for costs in widths.costs.values())
        best = widths.within(most)
        for _ in range(_STEPS):
            middle = float(np.sqrt(least * most))
            chosen = widths.within(middle)
            candidate, apart = _copy(model, context)
            self._rounded(candidate, chosen, apart)
            drop = judge.score(candidate).limited_drop
            is_good = judge.limit is None or (drop is not None and drop <= judge.limit)
            if is_good and judge.fault(candidate) is None:
                most, best = middle, chosen
            else:
                least = middle
        return best

    def _rounded(self, model: ir.Model, chosen: Mapping[str, WidthChoice], context: Context) -> Rounder:
        """Round the weights; in `model` they stand as floats from then on.

        For a plan they are rounded to the nearest: its bytes are the same.
        """
        method: Method = "nearest" if context.is_plan else self.method
        rounder = Rounder({name: choice.grid for name, choice in chosen.items()}, method=method)
        found = self._sites(model, chosen, context)
        if self._uses_data(context):
            rounder.by_data(model, found, context)
        else:
            rounder.all_alone(found)
        return rounder

    def _uses_data(self, context: Context) -> bool:
        return self.method in ("auto", "gptq", "awq") and has_enough(context) and not context.is_plan

    def _form(self, model: ir.Model, chosen: Mapping[str, WidthChoice], rounder: Rounder, context: Context) -> Form:
        """Return the form that was measured to be fastest; of those that are alike, the first."""
        if self.form != "auto":
            return self.form
        if context.target != targets.HERE:
            return "dequantize"
        products = [site for site in self._sites(model, chosen, context) if site.others and kernel_fits(site)]
        if context.race is None or not products:
            return "kernel"
        times: dict[Form, float] = {}
        written: dict[Form, ir.Model] = {}
        forms: tuple[Form, ...] = ("kernel", "multiply", "integer")
        for form in forms[: 2 if context.judge is None else 3]:
            written[form], apart = _copy(model, context)
            self._write(written[form], chosen, rounder, form, apart)
            times[form] = context.race(written[form], f"{self.name}/{self.scheme}/{form}")
        plain: Form = "multiply" if times["multiply"] < _FASTER * times["kernel"] else "kernel"
        if context.judge is None or times["integer"] >= _FASTER * times[plain]:
            return plain
        noises = [search.noise(context.judge.score(written[form])) for form in ("multiply", "integer")]
        return "integer" if noises[1] <= _ROUGHER * noises[0] else plain

    def _write(
        self, model: ir.Model, chosen: Mapping[str, WidthChoice], rounder: Rounder, form: Form, context: Context
    ) -> list[Change]:
        """Write the weights that were rounded, in one form where that is possible and pays."""
        changes, forms = self._forms(model, chosen, form, context)
        scene = WeightContext(model)
        for site in self._sites(model, forms, context):
            name = site.name
            change = _applied(self.name, site, chosen[name], forms[name], rounder.how[name])
            BlockWriter(scene, site, rounder.blocks[name], forms[name]).write()
            changes.append(change)
        return changes

    def _sites(self, model: ir.Model, names: Iterable[str], context: Context) -> list[StoredWeight]:
        """Return weights in the order of their names."""
        found = {site.name: site for site, refusal in sites(model, context.selects, channelwise=True) if not refusal}
        return [found[name] for name in names]

    def _forms(
        self, model: ir.Model, chosen: Mapping[str, WidthChoice], form: Form, context: Context
    ) -> tuple[list[Change], dict[str, Form]]:
        """Return the form of each weight that can be written; and refusals, and the opset that was raised."""
        found = {site.name: site for site in self._sites(model, chosen, context)}
        forms = {name: self._own_form(found[name], choice, form, context.target) for name, choice in chosen.items()}
        needed = {
            name: OPSETS[chosen[name].grid.stored.bits]
            for name, own in forms.items()
            if own not in ("kernel", "integer")
        }
        why = "tensors of few bits need it"
        changes = raise_opset(model, context, self.name, max(needed.values(), default=0), why)
        now = query.opset(model)
        for name in [name for name, opset in needed.items() if opset > now]:
            if form in ("kernel", "integer") and kernel_fits(found[name]):
                forms[name] = form  # slow perhaps, but right
                continue
            del forms[name]
            reason = f"{chosen[name].grid.bits} bits need opset {needed[name]}, the model has {now}"
            size = found[name].stored_bytes
            changes.append(self._skipped(name, reason, size))
        return changes, forms

    def _own_form(self, site: StoredWeight, choice: WidthChoice, form: Form, target: str) -> Form:
        """Return the form of one weight: products that have no fast kernel are better off as floats, unless asked."""
        if form not in ("kernel", "integer"):
            return form
        if not kernel_fits(site):
            return "multiply"
        if not site.others or self.form == form:
            return form
        facts = targets.block_facts(target)
        fast = facts.kernel_bits if form == "kernel" else facts.integer_bits
        return form if choice.grid.stored.bits in fast else "multiply"

    def _skipped(self, target: str, reason: str, size: int) -> Change:
        return Change.skipped(self.name, reason, target=target, bytes_before=size)


def _copy(model: ir.Model, context: Context) -> tuple[ir.Model, Context]:
    """Return a copy to try things on, and a context whose gate does not count them."""
    gate = Gate()
    return model_io.clone(model), replace(context, gate=gate, memo=Memo(gate))


def _applied(name: str, site: StoredWeight, choice: WidthChoice, form: Form, how: str) -> Change:
    grid = choice.grid
    details: dict[str, Any] = {
        "scheme": schemes.named(grid.bits, grid.block, symmetric=grid.symmetric),
        "form": form,
        "predicted_loss": float(f"{choice.loss:.3g}"),
    }
    return Change.applied(
        name,
        f"{grid.bits} bits in blocks of {grid.block}, {how}",
        target=site.name,
        bytes_before=site.stored_bytes,
        bytes_after=stored_bytes(*shape_of(site), grid.stored, is_padded=kernel_fits(site)),
        details=details,
    )
