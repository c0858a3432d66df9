"""Rounds weights in blocks: alone, or layer by layer so that each makes good what went wrong before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import onnx_ir as ir

from ...activations import observe
from ...core import Context, Feed
from ...distillation import reconstruct
from ...graph import constants as float_constants
from ...graph import edit, query
from ...io import model_io
from ...numerics.linear.moments import MOST_COLUMNS
from ...numerics.quantization import gptq
from ...numerics.quantization.blocks import CANDIDATES, BlockGrid, Blocks, round_half_quadratic, round_nearest
from ...numerics.threads import one_thread
from ...ops.linear import LinearLayer, linear_layers
from .blocks_writer import array_of, matrix_of
from .weight_storage import StoredWeight

Method = Literal["auto", "gptq", "awq", "hqq", "nearest"]

_DAMPINGS = (0.01, 0.1, 1.0)
"""Of the inputs' moments, as a part of their mean: the more, the fewer inputs there are for each column."""
_LEAST_FEEDS = 2
"""A refit solves from some and chooses by others."""


class Rounder:
    """Rounds weights on given grids, and keeps the integers and how each was rounded by the weight's name.

    Args:
        grids: name of the weight -> its integers.
        method: hqq or nearest for what is rounded without data; awq to round by data to the nearest.
        candidates: clipped ranges that are tried.
    """

    def __init__(
        self, grids: Mapping[str, BlockGrid], *, method: Method = "auto", candidates: int = CANDIDATES
    ) -> None:
        self._grids = grids
        self._method = method
        self._candidates = candidates
        self.blocks: dict[str, Blocks] = {}
        self.how: dict[str, str] = {}

    def alone(self, site: StoredWeight) -> np.ndarray:
        """Round a weight without data and return what it has become: float32 [out, in].

        Rows that are looked up are rounded to the nearest: what reads them gets their squared error, whatever it is.
        """
        weight, grid = matrix_of(site), self._grids[site.name]
        if self._method == "nearest" or not site.others:
            blocks, how = round_nearest(weight, grid, candidates=self._candidates), "rounded to nearest"
        else:
            blocks, how = round_half_quadratic(weight, grid), "rounded without data"
        return self._keep(site.name, blocks, how)

    def all_alone(self, sites: Sequence[StoredWeight]) -> None:
        """Round weights without data; the model has what they have become."""
        with one_thread():
            for site in sites:
                self._replace(site)

    def by_data(self, model: ir.Model, sites: Sequence[StoredWeight], context: Context) -> None:
        """Round weights so that what `model` computes changes least; its layers are changed on the way.

        Linear layers of the main graph are refitted and rounded in the order of the graph, after the weights that are
        rounded alone: each compensates for those before it.
        """
        teacher = model_io.clone(model)
        feeds = completed(teacher, context)
        layers = {layer.weight: layer for layer in linear_layers(model)}
        fitted = {
            layer.node for site in sites if (layer := layers.get(site.value)) is not None and self._takes(layer, model)
        }
        with one_thread():
            for site in sites:
                if site.value in layers and layers[site.value].node in fitted:
                    continue
                self._replace(site)
            reconstruct.refit(
                model,
                teacher,
                feeds,
                selects=lambda node: node in fitted,
                finish=self._finish,
                seed=context.seed,
                progress=context.while_time,
            )
            for site in sites:  # what no sample reaches
                if site.name not in self.blocks:
                    self._replace(site)

    def _replace(self, site: StoredWeight) -> None:
        floats = array_of(site, self.alone(site))
        cast = site.value.producer() if float_constants.is_cast(site.value) else None
        value = site.value if cast is None else cast.inputs[0]
        if value is not None and value.is_initializer():
            assert value.dtype is not None
            edit.set_weight(value, float_constants.cast(floats, value.dtype.numpy()))

    def _takes(self, layer: LinearLayer, model: ir.Model) -> bool:
        """Say whether a layer can be rounded as it is refitted: its moments fit into memory, its weight is its own."""
        is_small = layer.shape[2] <= MOST_COLUMNS
        return is_small and layer.node.graph is model.graph and len(layer.weight.uses()) == 1 and not layer.is_fixed

    def _finish(
        self, layer: LinearLayer, matrix: np.ndarray, bias: np.ndarray | None, data: reconstruct.LayerData
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Round a refitted layer by the moments of its rows; its bias takes up the mean of the error."""
        name = layer.weight.name or ""
        grid = self._grids[name]
        moments, held_out = (
            each.covariance() if bias is not None else each.second() for each in (data.train, data.held_out)
        )
        how = "rounded by what the layer computes"
        if self._method == "awq":
            how = "rounded to nearest, by activations"
            parts = [round_nearest(m, grid, np.diag(h)) for m, h in zip(matrix, moments, strict=True)]
        else:
            parts = [
                gptq.round_with_moments(m, h, grid, damping=gptq.best_damping(m, h, e, grid, _DAMPINGS))
                for m, h, e in zip(matrix, moments, held_out, strict=True)
            ]
        integers, scale, zero = (
            np.concatenate([getattr(part, field) for part in parts]) for field in ("integers", "scale", "zero")
        )
        alpha = np.float32(query.attribute(layer.node, "alpha", 1.0))  # the matrix has it, the weight has not
        blocks = Blocks(grid, integers, scale / alpha, zero)
        floats = self._keep(name, blocks, how).reshape(matrix.shape) * alpha
        if bias is not None:
            shift = np.einsum("gok,gk->go", matrix.astype(np.float64) - floats, data.train.mean())
            bias = (bias + shift.reshape(-1)).astype(np.float32)
        return floats, bias

    def _keep(self, name: str, blocks: Blocks, how: str) -> np.ndarray:
        self.blocks[name], self.how[name] = stored(blocks), how
        return self.blocks[name].floats()


def has_enough(context: Context) -> bool:
    """Say whether there are samples enough to round by."""
    return len(context.feeds) >= _LEAST_FEEDS


def completed(model: ir.Model, context: Context, most: int | None = None) -> Sequence[Feed]:
    """Return the user's feeds, at most so many, each with the state that a recurrent model had come to before it."""
    feeds = context.feeds if most is None else context.feeds[:most]
    if not context.state:
        return feeds
    states = observe.stream(model, feeds, list(context.state), state=context.state)
    return [{**feed, **found} for feed, found in zip(feeds, states, strict=True)]


def stored(blocks: Blocks) -> Blocks:
    """Return blocks with their scales as they are stored, in float16, where these are fit for that."""
    scale = blocks.scale.astype(np.float16).astype(np.float32)
    return replace(blocks, scale=scale) if np.isfinite(scale).all() and (scale != 0).all() else blocks
