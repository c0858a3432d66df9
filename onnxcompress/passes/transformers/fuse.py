"""Attention and rotary embeddings that exporters spell out become one operator each.

    softmax(c q k' + masks) v              ->  Attention (opset 23), or com.microsoft MultiHeadAttention
    x cos + turned(x) sin                  ->  RotaryEmbedding (opset 23)

Keys and values that a cache is joined to, and those that groups of queries share, go into the operator as they are:
nothing is copied for every query. RMSNorm follows by itself, since `fuse-patterns` writes it where the opset has it.

What is not written, since it was measured to be slower than what it replaces (see the decisions):
SkipLayerNormalization, SkipSimplifiedLayerNormalization and GroupQueryAttention. Gelu, BiasGelu and QuickGelu are found
by the runtime itself.
"""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import ClassVar, Literal

import onnx_ir as ir
from pydantic.dataclasses import dataclass

from ...base.gate import Gate, Memo
from ...core import Action, Change, Context, LosslessPass
from ...graph import query
from ...io import model_io
from ...targets import facts as targets
from ..raise_opset import raise_opset
from ..rewriting import Refusal, Rewrite, RewriteContext, rewrite
from .attention import recognise, recognise_operator
from .attention_writer import STANDARD_OPSET, AttentionForm, form_problem, write
from .masks import mask_problem
from .rotary import rotary_rule
from .scene import Scene

_ROOTS = ("Softmax", "Attention")
"""Nodes at which a block is looked for."""
_LEAST_SECONDS = 60.0
"""Time that has to be left for candidates to be timed, where it is limited: three races take 6 s, a tenth of it. Chosen
by judgement."""
_NO_SLOWER = 0.99
"""Times count as shorter from here on: less is within the noise of paired runs. Chosen by judgement."""


@dataclass(frozen=True, kw_only=True)
class FuseTransformers(LosslessPass):
    """Replaces spelled-out attention and rotary embeddings by one operator each, where measured to be faster."""

    name: ClassVar[str] = "fuse-transformers"

    form: Literal["auto", "standard", "microsoft"] = "auto"
    """standard: Attention and RotaryEmbedding; the opset is raised to 23. microsoft: onnxruntime's MultiHeadAttention,
    at the model's opset. auto: on cpu the fastest of both and of the spelled form; nothing on other targets."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Rewrite every graph of the model but local functions, which can't hold constants."""
        if not any(query.is_op(node, *_ROOTS) for node in query.nodes(model)):
            return []
        form = self._form(model, context)
        if isinstance(form, str) and form in ("standard", "microsoft"):
            return self._written(model, context, form)  # type: ignore[arg-type]
        return [Change.skipped(self.name, form)] if form else []

    def _form(self, model: ir.Model, context: Context) -> str:
        """Return the form to write, or why none is; "" where there is nothing to write."""
        if self.form != "auto":
            return self.form
        if context.target != targets.HERE:
            return f"attention is written as one operator where it can be timed, which {context.target} can't be here"
        if context.race is not None and context.clock.is_limited and context.clock.left_seconds < _LEAST_SECONDS:
            return "attention is written as one operator where it can be timed, and too little time is left for that"
        return self._fastest(model, context)

    def _fastest(self, model: ir.Model, context: Context) -> str:
        forms: tuple[AttentionForm, ...] = ("standard", "microsoft")
        tried: dict[str, ir.Model] = {}
        for form in forms:
            gate = Gate()
            candidate = model_io.clone(model)
            apart = replace(context, gate=gate, memo=Memo(gate))
            changes = self._written(candidate, apart, form)
            if any(change.action is Action.APPLIED for change in changes):
                tried[form] = candidate
        if not tried:
            return ""
        if context.race is None:
            return "standard" if "standard" in tried else "microsoft"
        now = context.race(model, f"{self.name}/spelled")
        times = {form: context.race(each, f"{self.name}/{form}") for form, each in tried.items()}
        best = min(times, key=lambda form: times[form])
        if times[best] < _NO_SLOWER * now:
            return best
        ratios = ", ".join(f"{form} {time / now:.2f}" for form, time in times.items())
        return f"attention as one operator is not faster here: {ratios} of the time"

    def _written(self, model: ir.Model, context: Context, form: AttentionForm) -> list[Change]:
        """Rewrite the model in place, if there is anything to rewrite."""
        scene = Scene()
        rule = functools.partial(self._attention, form=form, scene=scene)
        changes: list[Change] = []
        if form == "standard":
            if not self._has_attention(model, context):
                return []
            changes = raise_opset(model, context, self.name, STANDARD_OPSET, "Attention needs it")
            if query.opset(model) < STANDARD_OPSET:
                return changes
            turned = functools.partial(_rotary, scene=Scene())
            changes += rewrite(model, context, self.name, {"Add": [turned]})
        return changes + rewrite(model, context, self.name, dict.fromkeys(_ROOTS, (rule,)))

    def _has_attention(self, model: ir.Model, context: Context) -> bool:
        """Say whether there is an attention block to write, so that the opset is raised for something."""
        ctx, scene = RewriteContext(model, context), Scene()
        return any(
            isinstance(self._attention(node, ctx, form="standard", scene=scene), Rewrite)
            for graph in query.graphs_outside_functions(model)
            for node in graph
            if query.is_op(node, *_ROOTS)
        )

    def _attention(
        self, node: ir.Node, ctx: RewriteContext, *, form: AttentionForm, scene: Scene
    ) -> Rewrite | Refusal | None:
        """Look for the attention around a Softmax, or an Attention that does not hold all of it yet."""
        find = recognise if query.is_op(node, "Softmax") else recognise_operator
        found = find(node, scene, ctx)
        if found is None:
            return None
        if form == "microsoft" and query.is_op(node, "Attention"):
            return None
        kind = "Attention" if form == "standard" else "MultiHeadAttention"
        problem = found if isinstance(found, str) else form_problem(found, form) or mask_problem(found, scene, ctx)
        if problem is not None or isinstance(found, str):
            return Refusal(target=query.label(node), reason=f"no {kind}: {problem}")
        shared = f", {found.repeats} queries to each key" if found.repeats > 1 else ""
        cached = " with its cache" if found.cache is not None else ""
        return Rewrite(
            target=query.label(node),
            reason=f"attention{cached}{shared} is one {kind}",
            apply=lambda: write(found, form, scene, ctx),
        )


def _rotary(node: ir.Node, ctx: RewriteContext, *, scene: Scene) -> Rewrite | Refusal | None:
    return rotary_rule(node, scene, ctx)
