"""Weights share few values: each becomes the index of one in a codebook.

    Op(x, w)  ->  Op(x, Gather(codebook, Cast(indices)))
    Op(x, w)  ->  Op(x, Gather(codebooks, Add(Cast(indices), offsets)))      with a codebook for every few rows

onnxruntime folds these nodes when it loads the model: memory and speed are those of floats, the file is smaller. Few
values compress well, too: what a byte or half a byte leaves of 3, 5 or 6 bits, `--pack` takes away, and where indices
are not alike in number it comes below their bits.
"""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from typing import Annotated, ClassVar

import numpy as np
import onnx_ir as ir
from pydantic import Field
from pydantic.dataclasses import dataclass

from ...core import Change, Context, Need
from ...graph import query
from ...numerics import snr
from ...numerics.quantization.kmeans import codebook, nearest
from ..raise_opset import raise_opset
from .blocks_writer import array_of, matrix_of
from .weight_storage import NODE_BYTES, SiteWriter, StoredWeight, WeightContext, sites

_UINT4_OPSET = 21
"""Opset from which on integers of half a byte can be cast."""


@plain_dataclass(frozen=True, kw_only=True)
class Clustered:
    """A weight as indices.

    Args:
        indices: uint8 [out, in].
        codebooks: float32 [groups, values].
        rows: outputs that share a codebook.
        noise: of the weight, relative to its signal.
    """

    indices: np.ndarray
    codebooks: np.ndarray
    rows: int
    noise: float


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Store float weights as indices of few shared values (k-means); onnxruntime makes floats of them at load."""

    name: ClassVar[str] = "cluster"
    lossless: ClassVar[bool] = False
    covers_layers: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    bits: Annotated[int, Field(ge=1, le=8)] = 4
    """2^bits values; up to 4 bits are stored in half a byte, more in one, and packing takes the rest away."""
    rows: Annotated[int, Field(ge=0)] = 0
    """Output channels that share a codebook; 0: the whole weight does."""
    min_elements: Annotated[int, Field(ge=1)] = 1024
    """Smaller weights stay as they are; so do those that would not become smaller."""

    def run(self, model: ir.Model, context: Context) -> list[Change]:
        """Replace the weights of every graph of `model`, the least harmful first."""
        changes: list[Change] = []
        large = self._large(model, context)
        if self.bits <= 4 and any(not why and self._objection(site) is None for site, why in large):
            changes += raise_opset(model, context, self.name, _UINT4_OPSET, "indices of half a byte need it")
        is_half = self.bits <= 4 and query.opset(model) >= _UINT4_OPSET
        found: list[tuple[StoredWeight, Clustered]] = []
        for site, refusal in context.progress("Clustering", self._large(model, context)):
            reason = refusal or self._objection(site)
            if reason:
                changes.append(Change.skipped(self.name, reason, target=site.name, bytes_before=site.stored_bytes))
            else:
                found.append((site, self._clustered(matrix_of(site))))
        scene = WeightContext(model)
        for site, clustered in sorted(found, key=lambda each: each[1].noise):
            if context.gate.admits(self.name, site.name):
                stored = clustered.codebooks.nbytes + -(-site.tensor.size // (2 if is_half else 1))
                values = clustered.codebooks.shape[1]
                whose = "" if not self.rows else f" for every {self.rows} output channels"
                change = Change.applied(
                    self.name,
                    f"{values} shared values{whose}; floats again once loaded",
                    target=site.name,
                    bytes_before=site.stored_bytes,
                    bytes_after=stored,
                )
                ClusterWriter(scene, site, clustered, is_half=is_half).write()
                changes.append(change)
        return changes

    def _large(self, model: ir.Model, context: Context) -> list[tuple[StoredWeight, str]]:
        every = sites(model, context.selects, channelwise=True)
        return [(site, why) for site, why in every if site.tensor.size >= self.min_elements]

    def _objection(self, site: StoredWeight) -> str | None:
        if site.tensor.dtype != ir.DataType.FLOAT:
            return f"{site.tensor.dtype.name.lower()} weights are not clustered"
        outputs = query.dims(site.tensor)[site.axis or 0]
        books = -(-outputs // self.rows) if self.rows else 1
        after = site.tensor.size // (2 if self.bits <= 4 else 1) + books * 4 * 2**self.bits + 4 * NODE_BYTES
        if after >= site.stored_bytes:
            return f"would take {after} bytes with its codebooks and nodes instead of {site.stored_bytes}"
        return None if np.isfinite(site.tensor.numpy()).all() else "can't be clustered: it has NaN or infinite elements"

    def _clustered(self, weight: np.ndarray) -> Clustered:
        count, rows = 2**self.bits, self.rows or len(weight)
        indices = np.empty(weight.shape, np.uint8)
        books = []
        noise = 0.0
        for start in range(0, len(weight), rows):
            part = weight[start : start + rows]
            values = codebook(part, count)
            own = nearest(part, values)
            indices[start : start + rows] = own
            noise += snr.energy(values[own] - part)
            books.append(np.pad(values, (0, count - len(values)), mode="edge"))
        signal = max(snr.energy(weight), float(np.finfo(float).tiny))
        return Clustered(indices=indices, codebooks=np.stack(books), rows=rows, noise=noise / signal)


class ClusterWriter(SiteWriter):
    """Writes one weight as indices, in its own shape."""

    def __init__(self, scene: WeightContext, site: StoredWeight, clustered: Clustered, *, is_half: bool) -> None:
        super().__init__(scene, site)
        self.clustered = clustered
        self.is_half = is_half

    def write(self) -> None:
        """Let every reader read the values of the indices, and remove the floats."""
        anchor, site = self.first_reader(), self.site
        indices = array_of(site, self.clustered.indices)
        tensor: np.ndarray | ir.TensorProtocol = indices
        if self.is_half:
            tensor = ir.tensor(indices.astype(ir.DataType.UINT4.numpy()), dtype=ir.DataType.UINT4)
        found = self.insert(anchor, "Cast", [self.store("indices", tensor)], {"to": int(ir.DataType.INT32)})
        books = self.clustered.codebooks
        if len(books) > 1:
            outputs = len(self.clustered.indices)
            offsets = (np.arange(outputs) // self.clustered.rows * books.shape[1]).astype(np.int32)
            axis = site.axis or 0
            spread = offsets.reshape([-1 if i == axis else 1 for i in range(site.rank)])
            found = self.insert(anchor, "Add", [found, self.store("offsets", spread)])
        values = self.store("codebook", books.reshape(-1))
        floats = self.insert(anchor, "Gather", [values, found], {"axis": 0})
        self.replace_by(floats)
