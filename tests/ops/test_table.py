"""The operator table: axes of weights, and MACs counted by hand."""

import numpy as np
import onnx.helper
import onnx_ir as ir
import pytest

from onnxcompress.graph import query
from onnxcompress.ops import table as ops
from onnxcompress.shapes import count as counting
from onnxcompress.shapes import resolve
from tests.helpers import from_text


def _macs(text, **weights):
    return ops.total_macs(from_text(text), resolve.shape_lookup(resolve.infer_dims(from_text(text), weights)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # a 3x3 kernel over 4 channels for each of 6x6 positions and 16 output channels
        ("g (float[1, 4, 8, 8] x, float[16, 4, 3, 3] w) => (float[a, b, c, d] y) { y = Conv(x, w) }", 9 * 4 * 36 * 16),
        (
            "g (float[1, 4, 8, 8] x, float[4, 1, 3, 3] w) => (float[a, b, c, d] y) { y = Conv<group = 4>(x, w) }",
            9 * 36 * 4,
        ),
        (
            "g (float[1, 4, 8, 8] x, float[4, 16, 3, 3] w) => (float[a, b, c, d] y) { y = ConvTranspose(x, w) }",
            4 * 64 * 16 * 9,
        ),
        ("g (float[5, 7] x, float[7, 3] w) => (float[a, b] y) { y = Gemm(x, w) }", 5 * 7 * 3),
        ("g (float[7, 5] x, float[3, 7] w) => (float[a, b] y) { y = Gemm<transA = 1, transB = 1>(x, w) }", 5 * 7 * 3),
        ("g (float[2, 5, 7] x, float[7, 3] w) => (float[a, b, c] y) { y = MatMul(x, w) }", 2 * 5 * 7 * 3),
        ("g (float[7] x, float[7, 3] w) => (float[a] y) { y = MatMul(x, w) }", 7 * 3),
        (
            "g (float[2, 5, 7] x, float[2, 7, 3] w) => (float[a, b, c] y) "
            '{ y = Einsum<equation = "bij,bjk->bik">(x, w) }',
            2 * 5 * 7 * 3,
        ),
        (
            "g (float[6, 2, 5] x, float[1, 12, 5] w, float[1, 12, 3] r) => (float[a, b, c, d] y) "
            "{ y = LSTM<hidden_size = 3>(x, w, r) }",
            6 * 2 * (12 * 5 + 12 * 3),
        ),
        ("g (float[5, 7] x) => (float[a, b] y) { y = Relu(x) }", 0),
    ],
)
def test_macs(text, expected):
    assert _macs(text) == ops.Macs(expected, ())


def test_macs_of_both_branches_are_counted():
    text = """g (bool c, float[5, 64] x, float[64, 3] w) => (float[a, b] y) {
        y = If (c) <then_branch = t () => (float[a, b] p) { p = MatMul(x, w) },
                    else_branch = e () => (float[a, b] q) { q = MatMul(x, w) }> }"""
    assert _macs(text).total == 2 * 5 * 64 * 3


def test_a_node_of_unknown_shape_is_named_and_a_feed_makes_it_known():
    text = "g (float[n, m] x, float[7, 3] w) => (float[a, b] y) { y = MatMul(x, w) }"
    assert _macs(text).uncounted == ("MatMul:y",)
    assert _macs(text, x=np.zeros((5, 7), np.float32)) == ops.Macs(5 * 7 * 3, ())


@pytest.mark.parametrize(
    ("op_type", "domain", "port", "dims", "attributes", "out_axis", "in_axis"),
    [
        ("Conv", "", 1, 4, {}, 0, 1),
        ("ConvTranspose", "", 1, 4, {"group": 2}, 1, 0),
        ("Gemm", "", 1, 2, {}, 1, 0),
        ("Gemm", "", 1, 2, {"transB": 1}, 0, 1),
        ("MatMul", "", 1, 3, {}, 2, 1),
        ("MatMul", "", 0, 3, {}, 1, 2),
        ("LSTM", "", 2, 3, {}, 1, 2),
        ("FusedMatMul", "com.microsoft", 1, 3, {}, 2, 1),
        ("FusedMatMul", "com.microsoft", 1, 3, {"transB": 1}, 1, 2),
        ("FusedMatMul", "com.microsoft", 0, 3, {"transA": 1}, 2, 1),
    ],
)
def test_axes(op_type, domain, port, dims, attributes, out_axis, in_axis):
    proto = onnx.helper.make_node(op_type, ["a", "b", "c"], ["y"], domain=domain, **attributes)
    node = ir.from_proto(proto)
    weight = ops.spec(node).weight(port)
    assert weight is not None
    assert weight.in_axis is not None
    assert (weight.out_axis(node, dims), weight.in_axis(node, dims)) == (out_axis, in_axis)
    assert ops.spec(node).weight(7) is None


def test_a_table_has_rows_and_no_sum():
    node = ir.from_proto(onnx.helper.make_node("Gather", ["w", "i"], ["y"], axis=-1))
    weight = ops.spec(node).weight(0)
    assert weight is not None
    assert weight.is_table
    assert weight.out_axis(node, 3) == 2


def test_kinds_of_operators_hold_in_the_standard_domain_only():
    for domain, expected in (("", True), ("ai.onnx", True), ("elsewhere", False)):
        assert ops.is_nondeterministic(ir.node("RandomUniform", [], domain=domain)) is expected
        assert ops.is_generator(ir.node("ConstantOfShape", [], domain=domain)) is expected
        assert ops.moves_data(ir.node("Slice", [], domain=domain), 0) is expected
        assert bool(ops.spec(ir.node("Conv", [], domain=domain)).weights) is expected
    assert not ops.moves_data(ir.node("Slice", []), 1)
    assert ops.moves_data(ir.node("Concat", []), 1)


def test_elements_are_carried_through_data_ports_only():
    inputs = [ir.Value(name=name) for name in "abc"]
    where, gather, join, cast = (
        ir.node("Where", inputs),
        ir.node("Gather", inputs[:2]),
        ir.node("Concat", inputs, {"axis": 0}),
        ir.node("CastLike", inputs[:2]),
    )
    carried = [[ops.carries(node, port) for port in range(3)] for node in (where, gather, join, cast)]
    assert carried == [[False, True, True], [True, False, False], [True, True, True], [True, False, False]]
    assert not ops.carries(ir.node("Concat", inputs, domain="custom"), 0)


def test_the_columns_that_move_data_lie_in_each_other():
    assert ops.RESHAPES < ops.REARRANGES < ops.MOVES < ops.DATA_MOVEMENT < ops.CARRIES < ops.SELECT | ops.CARRIES
    assert ops.MOVES < ops.KEEPS_FILL < ops.CARRIES
    assert {"Dropout"} == ops.STOCHASTIC - ops.NONDETERMINISTIC


def test_every_weight_port_of_the_table_names_distinct_axes():
    for (domain, op_type), row in ops.OPS.items():
        for weight in row.weights:
            node = ir.node(op_type, [], domain=domain)
            if weight.in_axis is not None:
                assert weight.out_axis(node, 3) != weight.in_axis(node, 3), op_type


def test_parameters_count_each_tensor_once_and_no_scales():
    text = """g (float[n, 8] x) => (float[n, 8] y) <float[8, 8] w, int8[8, 8] q, float s, int64[2] i> {
        d = DequantizeLinear(q, s) a = MatMul(x, w) b = MatMul(a, w) c = MatMul(b, d) y = Reshape(c, i) }"""
    model = from_text(
        text.replace("<float[8, 8] w, int8[8, 8] q, float s, int64[2] i>", "").replace(
            "8] x)", "8] x, float[8, 8] w, int8[8, 8] q, float s, int64[2] i)"
        )
    )
    arrays = {
        "w": np.ones((8, 8), np.float32),
        "q": np.ones((8, 8), np.int8),
        "s": np.float32(1),
        "i": np.array([-1, 8]),
    }
    for value in list(model.graph.inputs)[1:]:
        owner = model.graph
        owner.inputs.remove(value)
        value.const_value = ir.tensor(np.asarray(arrays[value.name or ""]), name=value.name)
        owner.register_initializer(value)
    assert counting.parameters(model) == 128
    assert query.node_count(model) == len(list(query.nodes(model))) == 5


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [((5, 7), (7, 3), 105), ((2, 5, 7), (7, 3), 210), ((4, 1, 5, 7), (2, 7, 3), 840), ((7,), (7, 3), None)],
)
def test_a_product_whose_result_is_not_known_has_the_macs_of_its_operands(left, right, expected):
    (node,) = from_text("g (float[a, b] x, float[c, d] w) => (float[e, f] y) { y = MatMul(x, w) }").graph
    macs = ops.spec(node).macs
    assert macs(node, [left, right], [None]) == expected
