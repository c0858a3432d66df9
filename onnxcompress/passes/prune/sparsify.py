"""Single weights become zero, and with samples the others compensate for them, layer after layer.

    W [out, in]   ->   W' with a share of zeros, or 2 of every 4, or ||W'|| <= T

Zeros take no space once the file is compressed; they make nothing faster where the runtime multiplies them as well.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from ...core import Change, Context, DataFor, Need
from ...distillation.reconstruct import LayerData, refit
from ...graph import constants as float_constants
from ...graph import edit, query
from ...io import model_io
from ...numerics.linear import sparsity
from ...numerics.linear.sparsity import SparsityPattern
from ...ops.linear import LinearLayer, linear_layers, why_not_linear
from ...ops.weight_layers import WeightedLayer
from ...search import drafts

_LATE = "the time limit was reached before it"
_DRAFT = "smallest first: with samples a run removes what the other weights compensate best"
"""Difference of a plan from a run."""


def _checked(text: str) -> str:
    SparsityPattern.parse(text)
    return text


@dataclass(frozen=True, kw_only=True)
class Sparsify:
    """Set single weights of linear layers to zero, by a share, a pattern, or a bound on their norm."""

    name: ClassVar[str] = "sparsify"
    lossless: ClassVar[bool] = False
    covers_layers: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = DataFor("criterion", "elimination", "use")  # type: ignore[assignment]  # a descriptor

    ratio: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of zeros; not used with a pattern or a bound."""
    pattern: Annotated[str, AfterValidator(_checked)] = "free"
    """free: zeros anywhere. N:M: at most N of M neighbouring input channels differ from zero, for each output."""
    criterion: Literal["elimination", "use", "magnitude"] | None = None
    """elimination: the least harm with the others compensating. use: size times what it multiplies (Wanda).
    magnitude: size alone. None: elimination with data, magnitude without."""
    scope: Literal["layer", "global"] = "layer"
    """layer: every layer gets the same share of zeros. global: a weight stays that is large for its layer."""
    norm: Literal["l1", "l2"] = "l2"
    """The norm by which layers are compared, and that a bound is about."""
    limit: Annotated[float | None, Field(gt=0)] = None
    """Bound of each layer's norm, in place of a share: with l1 small weights become zero, with l2 all shrink."""
    limit_share: Annotated[float | None, Field(gt=0, le=1)] = None
    """The same as a part of the layer's own norm."""
    min_elements: Annotated[int, Field(ge=1)] = 256
    """Smaller weights stay as they are."""
    samples: Annotated[int, Field(ge=2)] = 512
    """Samples that are used, at most."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Change the weights of every linear layer that holds its own."""
        layers: list[LinearLayer] = []
        refused: list[Change] = []
        for layer in linear_layers(model):
            if not context.selects(layer.node) or math.prod(layer.shape) < self.min_elements:
                continue
            why = "its weights are integers" if layer.is_fixed else "others read its weights too"
            if layer.is_fixed or len(layer.weight.uses()) > 1:
                refused.append(Change.skipped(self.name, why, target=layer.label, bytes_before=_stored(layer)))
            elif context.gate.admits(self.name, layer.label):
                layers.append(layer)
        if not layers:
            return refused
        ratios = self._ratios(layers)
        before = {layer.label: layer.matrix() for layer in layers}
        done: set[str] = set()
        reasons: dict[str, str] = {}
        uses_data = self.criterion != "magnitude" and len(context.feeds) > 1 and not context.state
        if uses_data and not context.is_plan:
            done, reasons = self._with_data(model, ratios, context)
        names = edit.Names(model)
        late = {name for name, reason in reasons.items() if reason == _LATE}
        for layer in layers:
            if layer.label not in done | late:
                layer.with_weights(self._sparse(layer, layer.matrix(), None, ratios[layer.label]), None, names)
        results = [
            self._result(layer, before[layer.label], by_data=layer.label in done, why=reasons.get(layer.label))
            for layer in layers
            if layer.label not in late
        ]
        if uses_data and context.is_plan:
            results = drafts.marked(results, _DRAFT, samples=0)
        refused += [
            Change.skipped(self.name, _LATE, target=layer.label, bytes_before=_stored(layer))
            for layer in layers
            if layer.label in late
        ]
        return results + refused

    def why_left(self, layer: WeightedLayer, changes: Sequence[Change]) -> str | None:  # noqa: ARG002 - as its signature is wanted
        """Return why a layer that `run` did not look at keeps its weights as they are."""
        is_small = all(weight.size < self.min_elements for weight in layer.main)
        return None if layer.form or is_small else why_not_linear(layer.node)

    def _with_data(
        self, model: ir.Model, ratios: Mapping[str, float], context: Context
    ) -> tuple[set[str], dict[str, str]]:
        """Go through the layers of the main graph in order, each with what reaches it by then.

        Returns:
            the layers that were done, and why others could not be.
        """
        done: set[str] = set()

        def finish(
            layer: LinearLayer, matrix: np.ndarray, bias: np.ndarray | None, data: LayerData
        ) -> tuple[np.ndarray, np.ndarray | None]:
            if not data.train.is_full:
                return matrix, bias
            done.add(layer.label)
            moments = data.train.merge(data.held_out)
            second = moments.second() if bias is None else moments.covariance()  # a bias takes the means over
            sparse = self._sparse(layer, matrix, second, ratios[layer.label])
            if bias is not None:
                lost = np.einsum("gok,gk->go", matrix.astype(np.float64) - sparse, moments.mean())
                bias = bias + lost.reshape(-1).astype(np.float32)
            return sparse, bias

        step = max(1, -(-len(context.feeds) // self.samples))
        changes = refit(
            model,
            model_io.clone(model),
            context.feeds[::step],
            selects=lambda node: query.label(node) in ratios,
            finish=finish,
            seed=context.seed,
            progress=context.while_time,
        )
        why = {change.layer: change.reason for change in changes if change.layer not in done}
        if context.clock.is_over:
            why |= {name: _LATE for name in ratios if name not in done and name not in why}
        return done, why

    def _ratios(self, layers: Sequence[LinearLayer]) -> dict[str, float]:
        """Return the share of zeros of each layer, by label."""
        if self.scope == "layer":
            return {layer.label: self.ratio for layer in layers}
        sizes = [np.abs(layer.matrix()).reshape(-1) for layer in layers]
        parts = [
            size / max(float(size.mean() if self.norm == "l1" else np.sqrt(np.square(size).mean())), 1e-30)
            for size in sizes
        ]
        threshold = np.quantile(np.concatenate(parts), self.ratio)
        return {layer.label: float((part < threshold).mean()) for layer, part in zip(layers, parts, strict=True)}

    def _sparse(self, layer: LinearLayer, matrix: np.ndarray, second: np.ndarray | None, ratio: float) -> np.ndarray:
        """Return the new matrix, float32 [groups, out, columns].

        Args:
            layer: the layer.
            matrix: float32 [groups, out, columns].
            second: mean of x' x, [groups, columns, columns]; None where there is no data.
            ratio: share of zeros.
        """
        if self.limit is not None or self.limit_share is not None:
            return self._bounded(matrix)
        pattern = SparsityPattern.parse(self.pattern)
        order = _by_channel(layer) if pattern.of else np.arange(matrix.shape[2])
        found = np.empty_like(matrix)
        for group, weights in enumerate(matrix):
            own = weights[:, order]
            if second is not None and self.criterion != "use":
                sparse = sparsity.eliminated(own, second[group][np.ix_(order, order)], ratio, pattern)
            else:
                use = second is not None and self.criterion == "use"
                scores = (
                    sparsity.by_use(own, second[group][np.ix_(order, order)])
                    if use and second is not None
                    else np.abs(own)
                )
                goes = (
                    sparsity.patterned(scores, pattern) if pattern.of else sparsity.smallest(scores, ratio, per_row=use)
                )
                sparse = np.where(goes, 0.0, own)
            found[group][:, order] = sparse
        return found

    def _bounded(self, matrix: np.ndarray) -> np.ndarray:
        wide = matrix.astype(np.float64)
        norm = float(np.abs(wide).sum()) if self.norm == "l1" else float(np.linalg.norm(wide))
        limits = [self.limit, None if self.limit_share is None else self.limit_share * norm]
        limit = min(each for each in limits if each is not None)
        project = sparsity.within_l1 if self.norm == "l1" else sparsity.within_l2
        return project(wide, limit).astype(np.float32)

    def _result(self, layer: LinearLayer, before: np.ndarray, *, by_data: bool, why: str | None) -> Change:
        after = layer.matrix()
        zeros = float((after == 0).mean())
        how = "least used first" if self.criterion == "use" else "the others compensate for them"
        reason = f"{zeros:.1%} zeros" + (f", {how}" if by_data else ", smallest first")
        if why is not None:
            reason += f", since without the samples: {why}"
        if self.limit is not None or self.limit_share is not None:
            reason = f"{self.norm} norm within its bound, {zeros:.1%} zeros"
        change = float(np.linalg.norm(after - before) / max(float(np.linalg.norm(before)), 1e-30))
        details = {"zeros": round(zeros, 4), "weight_change": round(change, 4)}
        size = _stored(layer)
        return Change.applied(
            self.name, reason, target=layer.label, bytes_before=size, bytes_after=size, details=details
        )


def _by_channel(layer: LinearLayer) -> np.ndarray:
    """Return the columns in an order in which neighbours are input channels at the same place of a window."""
    columns = layer.shape[2]
    taps = 1 if layer.window is None else math.prod(layer.window.kernel)
    return np.arange(columns).reshape(-1, taps).T.reshape(-1)


def _stored(layer: LinearLayer) -> int:
    return float_constants.stored_bytes(layer.weight)
