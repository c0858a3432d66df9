"""Weights become indices of shared values, which the runtime folds into floats."""

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress import errors
from onnxcompress.base.gate import Gate
from onnxcompress.core import Action, Context
from onnxcompress.graph import edit, query
from onnxcompress.io import model_io
from onnxcompress.numerics.quantization.kmeans import codebook, nearest
from onnxcompress.packing import archive as packing
from onnxcompress.passes import build
from onnxcompress.passes.quantize.blocks_writer import array_of, matrix_of
from onnxcompress.passes.quantize.cluster import Cluster
from onnxcompress.passes.quantize.weight_storage import sites
from onnxcompress.runtime import session as runtime
from tests.helpers import floats, op_types, run, with_constants
from tests.passes.quantize.test_blocks import BRANCHES, CASES, PRODUCT, TIED

MOST_ERROR = {2: 0.15, 4: 0.02, 5: 0.0065, 8: 1.5e-4}
"""Bits -> squared error of a weight; the least for normal numbers is 0.1175, 0.0095, 0.0025 (Max 1960, table I)."""


def _applied(model, context=None, **options):
    changes = Cluster(min_elements=64, **options).run(model, context or Context())
    return [c for c in changes if c.action is Action.APPLIED and not c.target.startswith("opset")]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("bits", "rows"), [(2, 0), (4, 0), (4, 16), (5, 0), (8, 32)])
def test_it_gives_what_its_values_stand_for(case, bits, rows):
    text, arrays, feed = CASES[case]
    model = with_constants(text, opset=21, **arrays)
    before = run(model, feed)
    matrices = {name: array for name, array in arrays.items() if array.ndim > 1}
    changes = _applied(model, bits=bits, rows=rows)
    assert {c.target for c in changes} <= set(matrices)
    books = {k: v.const_value for k, v in model.graph.initializers.items() if k.endswith("_codebook")}
    assert len(books) == len(changes)
    if not changes:  # codebooks of 256 values for weights of a few thousand
        assert bits == 8
        return
    shared = with_constants(text, opset=21, **arrays)
    for site in [site for site, _ in sites(shared, lambda _: True, channelwise=True) if site.name in matrices]:
        matrix = matrix_of(site)
        parts = np.split(matrix, range(rows, len(matrix), rows)) if rows else [matrix]
        books_of = [codebook(part, 2**bits) for part in parts]
        close = np.concatenate([book[nearest(part, book)] for part, book in zip(parts, books_of, strict=True)])
        error = float(np.square(close - matrix).sum() / np.square(matrix).sum())
        assert error < MOST_ERROR[bits]
        if site.name in {c.target for c in changes}:
            edit.set_weight(site.value, array_of(site, close))
    for optimize in (False, True):
        expected, found = run(shared, feed, optimize=optimize), run(model, feed, optimize=optimize)
        for name in before:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=1e-5)
            assert np.any(found[name] != before[name])
    left = runtime.optimized_nodes(model_io.to_bytes(model))
    assert not {"Cast", "Add"} & set(left)  # folded at load
    assert left.count("Gather") == len([n for n in query.nodes(model) if n.inputs[-1].name == "i"])


def test_the_floats_are_exactly_the_shared_values():
    weight = floats(80, 48)
    model = with_constants(PRODUCT, opset=21, w=weight)
    _applied(model, bits=3)
    values = np.unique(run(model, {"x": np.eye(80, dtype=np.float32)})["y"])
    assert len(values) == 8
    assert np.array_equal(values, model.graph.initializers["w_codebook"].const_value.numpy())


def test_codebooks_for_some_rows_each_are_closer():
    scaled = floats(80, 48) * np.repeat([1, 30, 0.1], 16).astype(np.float32)
    errors_by_rows = {}
    for rows in (0, 16):
        model = with_constants(PRODUCT, opset=21, w=scaled)
        _applied(model, rows=rows)
        off = run(model, {"x": np.eye(80, dtype=np.float32)})["y"] - scaled
        errors_by_rows[rows] = np.square(off)[:, :16].sum()
    assert errors_by_rows[16] < 0.05 * errors_by_rows[0]


def test_bytes_in_the_file_and_in_an_archive(tmp_path):
    sizes = {}
    for bits in (3, 4):
        model = with_constants(PRODUCT.replace("80", "400"), opset=21, w=floats(400, 48))
        (change,) = _applied(model, bits=bits)
        assert change.bytes_before == 4 * 400 * 48
        assert change.bytes_after == 400 * 48 // 2 + 4 * 2**bits
        assert model_io.model_bytes(model) < change.bytes_after + 600
        sizes[bits] = packing.save_packed(model, tmp_path / f"{bits}.onnxpack").path.stat().st_size
    assert sizes[3] < 0.85 * sizes[4]


def test_bodies_and_shared_tensors():
    model = with_constants(BRANCHES, opset=21, v=floats(64, 40), w=floats(64, 40, seed=1))
    before = model_io.clone(model)
    assert {c.target for c in _applied(model, bits=8)} == {"v", "w"}
    for taken in (True, False):
        feed = {"x": floats(3, 64, seed=2), "c": np.array(taken)}
        was, now = run(before, feed)["y"], run(model, feed, optimize=True)["y"]
        assert np.square(was - now).sum() < 1e-3 * np.square(was).sum()
    tied = with_constants(TIED, opset=21, w=floats(90, 64))
    assert len(_applied(tied)) == 1
    assert sum(v.const_value.nbytes > 500 for v in tied.graph.initializers.values()) == 1


def test_opsets_without_half_bytes():
    old = with_constants(PRODUCT, opset=13, w=floats(80, 48))
    assert [c.bytes_after for c in _applied(old)] == [80 * 48 // 2 + 64]
    assert query.opset(old) == 21
    stays = with_constants(PRODUCT, opset=13, w=floats(80, 48))
    gate = Gate(denied=frozenset({("cluster", "opset 21")}))
    assert [c.bytes_after for c in _applied(stays, Context(gate=gate))] == [80 * 48 + 64]
    assert run(stays, {"x": floats(2, 80)})["y"].shape == (2, 48)
    bytes_only = with_constants(PRODUCT, opset=13, w=floats(80, 48))
    _applied(bytes_only, bits=5)
    assert query.opset(bytes_only) == 13


def test_what_is_left_alone():
    def reason(model):
        (change,) = Cluster(min_elements=64).run(model, Context())
        assert change.action is Action.SKIPPED
        return change.reason

    half = PRODUCT.replace("float[", "float16[")
    assert "float16" in reason(with_constants(half, w=floats(80, 48).astype(np.float16)))
    broken = floats(80, 48)
    broken[0, 0] = np.inf
    assert "infinite" in reason(with_constants(PRODUCT, w=broken))
    tiny = "g (float[n, 10] x, float[10, 7] w) => (float[n, 7] y) { y = MatMul(x, w) }"
    assert "would take" in reason(with_constants(tiny, w=floats(10, 7)))
    assert not Cluster().run(with_constants(tiny, w=floats(10, 7)), Context())
    denied = Context(gate=Gate(denied=frozenset({("cluster", "w")})))
    model = with_constants(PRODUCT, opset=21, w=floats(80, 48))
    assert not _applied(model, denied)
    assert op_types(model) == ["MatMul"]
    _applied(model)
    before = model_io.to_bytes(model)
    assert not _applied(model)
    assert model_io.to_bytes(model) == before
    for options in ({"bits": 0}, {"bits": 9}, {"rows": -1}, {"min_elements": 0}):
        with pytest.raises(errors.UsageError):
            build("cluster", options)


def test_the_recipe():
    model = with_constants(PRODUCT, opset=21, w=floats(80, 48))
    result = oc.compress(model, recipe="cluster", settings=["cluster.bits=3"])
    assert result.report.output.bytes < 0.2 * result.report.input.bytes
    assert result.report.quality["drop"] < 0.05
