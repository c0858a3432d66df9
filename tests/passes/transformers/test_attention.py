"""FuseTransformers: attention as exporters spell it, against the same graph with onnxruntime's optimizations off."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.base.clock import Clock
from onnxcompress.core import Context
from onnxcompress.passes.transformers.attention_writer import AttentionForm
from onnxcompress.passes.transformers.fuse import FuseTransformers
from onnxcompress.recipe import Recipe, shipped
from tests.lossless import applied, kinds, parsed, reasons, run_plain

B, H, D = 2, 3, 8
E = H * D
NUMBERS = (
    f"int64[4] cut = {{0, 0, {H}, {D}}}, int64[4] cut_dynamic = {{0, -1, {H}, {D}}}, int64[3] join = {{0, 0, {E}}},"
    f"int64[3] merged = {{-1, 0, {D}}}, float root = {{{D**0.5}}}, float scale = {{{D**-0.5}}},"
    f"float quarter = {{{D**-0.25}}}, float zero = {{0}}, float low = {{-1e9}}, float one = {{1}},"
    "float lowest = {-3.4e38}, float weak = {-10}, int64[1] two = {2}, int64[2] middle = {1, 2},"
    f"int64[4] c1 = {{0, 0, 1, {D}}}, int64[5] g = {{1, 1, {H}, 1, 1}}, int64[4] f = {{0, {H}, -1, {D}}}"
)
INPUTS = f"float[B, S, {E}] q, float[B, T, {E}] k, float[B, T, {E}] v"
HEADS = (
    "q1 = Reshape(q, cut)  q4 = Transpose<perm = [0, 2, 1, 3]>(q1)"
    "k1 = Reshape(k, cut)  k4 = Transpose<perm = [0, 2, 1, 3]>(k1)"
    "v1 = Reshape(v, cut)  v4 = Transpose<perm = [0, 2, 1, 3]>(v1)"
)
ROWS = HEADS.replace(" k4 = Transpose<perm = [0, 2, 1, 3]>(k1)", "").replace(
    "k4 = Transpose<perm = [0, 2, 1, 3]>(k1)", ""
)
TURN = "kt = Transpose<perm = [0, 1, 3, 2]>(k4)"
JOIN = "o = MatMul(p, v4)  ot = Transpose<perm = [0, 2, 1, 3]>(o)  y = Reshape(ot, join)"

SPELLINGS = {
    "torch legacy": ("", f"{ROWS} kt = Transpose<perm = [0, 2, 3, 1]>(k1) s = MatMul(q4, kt) d = Div(s, root)"
                     f" p = Softmax<axis = -1>(d) {JOIN}"),
    "torch legacy, causal": (
        "float[S, T] mask", f"{HEADS} {TURN} s = MatMul(q4, kt) d = Div(s, root) m = Add(d, mask)"
        f" p = Softmax<axis = -1>(m) {JOIN}"),
    "factor on queries, mask first": (
        "float[B, 1, S, T] mask", f"{HEADS} {TURN} qs = Mul(q4, scale) s = MatMul(qs, kt) m = Add(mask, s)"
        f" p = Softmax<axis = 3>(m) {JOIN}"),
    "torch sdpa": (
        "bool[B, 1, S, T] keep", f"{HEADS} {TURN} qs = Mul(q4, quarter) ks = Mul(kt, quarter) s = MatMul(qs, ks)"
        f" mask = Where(keep, zero, lowest) m = Add(s, mask) a = Softmax<axis = -1>(m) nan = IsNaN(a)"
        f" p = Where(nan, zero, a) {JOIN}"),
    "torch.export sdpa": (
        "", f"{HEADS} qs = Mul(q4, quarter) km = Reshape(k4, merged3)"
        " kt3 = Transpose<perm = [0, 2, 1]>(km) kt = Reshape(kt3, turned)"
        f" ks = Mul(kt, quarter) s = MatMul(qs, ks) p = Softmax<axis = -1>(s) {JOIN}"),
    "keys masked by a row": (
        "int64[B, T] keep", f"{HEADS} {TURN} u = Unsqueeze(keep, middle) fl = Cast<to = 1>(u) n = Sub(one, fl)"
        f" mask = Mul(n, low) s = MatMul(q4, kt) d = Mul(s, scale) m = Add(d, mask) p = Softmax<axis = -1>(m) {JOIN}"),
    "tf2onnx": (
        "float[B, 1, 1, T] mask", f"{ROWS} kt = Transpose<perm = [0, 2, 3, 1]>(k1) s = MatMul(q4, kt)"
        f" d = Mul(s, scale) m = Add(d, mask) p = Softmax<axis = -1>(m) {JOIN}"),
    "Keras": (
        "bool[B, 1, S, T] keep", f"{HEADS} {TURN} qs = Mul(scale, q4) s = MatMul(qs, kt) m = Where(keep, s, low)"
        f" p = Softmax<axis = -1>(m) {JOIN}"),
    "Where that masks what is true": (
        "bool[B, 1, S, T] drop", f"{HEADS} {TURN} s = MatMul(q4, kt) m = Where(drop, lowest, s)"
        f" p = Softmax<axis = -1>(m) {JOIN}"),
    "position bias and mask": (
        f"float[1, {H}, S, T] bias, float[B, 1, 1, T] mask", f"{HEADS} {TURN} s = MatMul(q4, kt) b = Add(s, bias)"
        f" m = Add(b, mask) p = Softmax<axis = -1>(m) {JOIN}"),
}  # fmt: skip


def model_of(more: str, body: str, inputs: str = INPUTS, outputs: str = "float[] y", opset: int = 17) -> ir.Model:
    numbers = f"{NUMBERS}, int64[3] merged3 = {{-1, 5, {D}}}, int64[4] turned = {{-1, {H}, {D}, 5}}"
    if "merged3" in body:
        inputs = inputs.replace("T", "5")
    given = ", ".join(part for part in (inputs, more) if part)
    model = parsed(f'<ir_version: 9, opset_import: ["" : {opset}]> m ({given}) => ({outputs}) <{numbers}> {{ {body} }}')
    for name in [n for n, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]
    return model


def feeds_of(model: ir.Model) -> list[dict[str, np.ndarray]]:
    """Return feeds of several sizes; in masks, a row without any key, as padding leaves it, and ordinary ones."""
    made = []
    for seed, (batch, seq, total, past) in enumerate([(2, 4, 5, 3), (1, 1, 5, 4), (3, 5, 5, 0), (1, 3, 5, 2)]):
        generator = np.random.default_rng(seed)
        sizes = {"B": batch, "S": seq, "T": total, "P": past, "A": past + seq}
        feed: dict[str, np.ndarray] = {}
        for value in model.graph.inputs:
            assert value.name
            assert value.dtype
            shape = [d if isinstance(d, int) else sizes[str(d)] for d in value.shape or ()]
            if value.name in ("keep", "drop"):
                kept = generator.random(shape) < 0.7
                kept[..., 0] = True
                if len(shape) == 4 and seq > 2:
                    kept[:, :, 1] = False
                feed[value.name] = (kept if value.name == "keep" else ~kept).astype(value.dtype.numpy())
            elif value.name == "mask":
                feed[value.name] = np.where(generator.random(shape) < 0.3, np.float32(-1e9), np.float32(0))
                if len(shape) == 4:
                    feed[value.name][0, ..., -1, :] = -1e9
            else:
                feed[value.name] = generator.standard_normal(shape, np.float32)
        made.append(feed)
    return made


def fused(model: ir.Model, form: AttentionForm = "standard") -> list[str]:
    """Fuse, and check that outputs stay the same at every size; return the operators that are left."""
    feeds = feeds_of(model)
    before = [run_plain(model, feed) for feed in feeds]
    changes = FuseTransformers(form=form).run(model, Context())
    for feed, expected in zip(feeds, before, strict=True):
        for name, array in run_plain(model, feed).items():
            assert array.shape == expected[name].shape
            np.testing.assert_allclose(array, expected[name], atol=3e-6)
    assert not applied(FuseTransformers(form=form).run(model, Context())), "a second run has nothing to do"
    assert applied(changes) or "Softmax" in kinds(model), reasons(changes)
    return kinds(model)


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name: str) -> None:
    found = fused(model_of(*SPELLINGS[name]))
    assert "Attention" in found
    assert not {"Softmax", "MatMul", "Transpose"} & set(found), found


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_in_the_runtime_s_own_operator(name: str) -> None:
    model = model_of(*SPELLINGS[name])
    found = fused(model, "microsoft")
    assert "MultiHeadAttention" in found
    assert "Softmax" not in found
    assert model.opset_imports[""] == 17


CACHE = f"float[B, {H}, P, {D}] pk, float[B, {H}, P, {D}] pv"


@pytest.mark.parametrize("form", ["standard", "microsoft"])
def test_a_cache_goes_into_the_operator(form: AttentionForm) -> None:
    body = (
        f"{HEADS} ck = Concat<axis = 2>(pk, k4) cv = Concat<axis = -2>(pv, v4) kt = Transpose<perm = [0, 1, 3, 2]>(ck)"
        " s = MatMul(q4, kt) d = Div(s, root) m = Add(d, mask) p = Softmax<axis = -1>(m) o = MatMul(p, cv)"
        " ot = Transpose<perm = [0, 2, 1, 3]>(o)  y = Reshape(ot, join)"
    )
    inputs = INPUTS.replace("T", "S")
    model = model_of(f"{CACHE}, float[B, 1, S, A] mask", body, inputs, "float[] y, float[] ck, float[] cv")
    found = fused(model, form)
    assert found == ["Attention" if form == "standard" else "MultiHeadAttention"]
    assert [value.name for value in model.graph.outputs] == ["y", "ck", "cv"]


def test_keys_that_queries_share_are_not_repeated() -> None:
    kv = f"float[B, S, {E}] q, float[B, S, {D}] k, float[B, S, {D}] v, float[B, 1, P, {D}] pk, float[B, 1, P, {D}] pv"
    body = (
        "q1 = Reshape(q, cut)  k1 = Reshape(k, c1)"
        " q4 = Transpose<perm = [0, 2, 1, 3]>(q1) k4 = Transpose<perm = [0, 2, 1, 3]>(k1)  v1 = Reshape(v, c1)"
        " v4 = Transpose<perm = [0, 2, 1, 3]>(v1) ck = Concat<axis = 2>(pk, k4) cv = Concat<axis = 2>(pv, v4)"
        " ku = Unsqueeze(ck, two) kx = Expand(ku, g) kr = Reshape(kx, f)"
        " vu = Unsqueeze(cv, two) vx = Expand(vu, g) vr = Reshape(vx, f) kt = Transpose<perm = [0, 1, 3, 2]>(kr)"
        " s = MatMul(q4, kt) d = Mul(s, scale) m = Add(d, mask) p = Softmax<axis = -1>(m) o = MatMul(p, vr)"
        " ot = Transpose<perm = [0, 2, 1, 3]>(o)  y = Reshape(ot, join)"
    )
    model = model_of("float[B, 1, S, A] mask", body, kv, "float[] y, float[] ck, float[] cv")
    assert fused(model) == ["Attention"]
    node = next(node for node in model.graph if node.op_type == "Attention")
    assert (node.attributes["q_num_heads"].value, node.attributes["kv_num_heads"].value) == (H, 1)


def test_keys_of_a_memory_that_is_cut_already() -> None:
    inputs = f"float[B, S, {E}] q, float[B, {H}, T, {D}] k4, float[B, {H}, T, {D}] v4"
    body = (
        "q1 = Reshape(q, cut) q4 = Transpose<perm = [0, 2, 1, 3]>(q1)"
        f" {TURN} s = MatMul(q4, kt) p = Softmax<axis = -1>(s) {JOIN}"
    )
    assert "Attention" in fused(model_of("", body, inputs))
    assert fused(model_of("", body, inputs), "microsoft") == ["MultiHeadAttention"]


def test_one_head_without_an_axis_for_it() -> None:
    inputs = f"float[B, S, {E}] q, float[B, P, {E}] past, float[B, A] mask"
    body = (
        "present = Concat<axis = 1>(past, q) kt = Transpose<perm = [0, 2, 1]>(present) s = MatMul(q, kt) o1 ="
        " Constant<value = int64[1] {1}>() m1 = Unsqueeze(mask, o1) sm = Add(s, m1) p = Softmax<axis = -1>(sm)"
        " y = MatMul(p, present)"
    )
    found = fused(model_of("", body, inputs, "float[] y, float[] present"))
    assert "Attention" in found
    assert "Softmax" not in found


NEARLY = {
    "scaled after the mask": f"{HEADS} {TURN} s = MatMul(q4, kt) m = Add(s, mask) d = Mul(m, scale)"
    f" p = Softmax<axis = -1>(d) {JOIN}",
    "another axis": f"{HEADS} {TURN} s = MatMul(q4, kt) m = Add(s, mask) p = Softmax<axis = 2>(m) {JOIN}",
    "weights are read elsewhere": f"{HEADS} {TURN} s = MatMul(q4, kt) m = Add(s, mask) p = Softmax<axis = -1>(m)"
    f" {JOIN} z = ReduceSum<keepdims = 0>(p)",
    "a mask that is no mask": f"{HEADS} {TURN} s = MatMul(q4, kt) n = Add(s, mask) t = Less(n, zero)"
    f" m = Where(t, weak, n) p = Softmax<axis = -1>(m) {JOIN}",
}


@pytest.mark.parametrize("name", NEARLY)
def test_what_is_nearly_attention_stays(name: str) -> None:
    outputs = "float[] y, float[] z" if " z =" in NEARLY[name] else "float[] y"
    model = model_of("float[B, 1, S, T] mask", NEARLY[name], outputs=outputs)
    before = kinds(model)
    assert fused(model) == before
    assert model.opset_imports[""] == 17, "the opset is not raised for nothing"


def test_queries_for_all_samples_stay() -> None:
    """A MatMul repeats learnt queries for each sample, the operators don't."""
    inputs = f"float[1, {H}, S, {D}] q4, float[B, {H}, T, {D}] k4, float[B, {H}, T, {D}] v4"
    model = model_of("", f"{TURN} s = MatMul(q4, kt) p = Softmax<axis = -1>(s) {JOIN}", inputs)
    assert "Softmax" in fused(model)


def test_an_attention_takes_in_what_is_spelled_around_it() -> None:
    body = (
        f"{HEADS} ck = Concat<axis = 2>(pk, k4) cv = Concat<axis = 2>(pv, v4) o = Attention(q4, ck, cv, mask)"
        " ot = Transpose<perm = [0, 2, 1, 3]>(o)  y = Reshape(ot, join)"
    )
    inputs = INPUTS.replace("T", "S")
    model = model_of(f"{CACHE}, float[B, 1, S, A] mask", body, inputs, "float[] y, float[] ck, float[] cv", 23)
    assert fused(model) == ["Attention"]


def test_layers_share_one_mask() -> None:
    one = f"{HEADS} {TURN} s = MatMul(q4, kt) m = Where(keep, s, low) p = Softmax<axis = -1>(m) {JOIN}"
    names = "q1|q4|k1|k4|v1|v4|kt|s|m|p|o|ot"
    two = (
        re.sub(rf"(?<![\w<])({names})(?=[ ,)])", r"\1b", one)
        .replace("Reshape(q, ", "Reshape(y, ")
        .replace("y =", "z =")
    )
    model = model_of("bool[B, 1, S, T] keep", f"{one} {two}", outputs="float[] z")
    found = fused(model)
    assert found.count("Attention") == 2
    assert found.count("Where") == 1


def test_other_targets_and_slower_forms_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(*SPELLINGS["torch legacy"])
    assert "can't be" in reasons(FuseTransformers().run(model, Context(target="qnn")))
    changes = FuseTransformers().run(model, Context(race=lambda _, label: 1.0 if "spelled" in label else 1.1))
    assert "not faster" in reasons(changes)
    assert "Softmax" in kinds(model)
    changes = FuseTransformers().run(model, Context(race=lambda _, label: 0.8 if "microsoft" in label else 1.0))
    assert applied(changes)
    assert kinds(model) == ["MultiHeadAttention"]


def test_where_little_time_is_left_nothing_is_timed() -> None:
    def race(_: ir.Model, label: str) -> float:
        raise AssertionError(label)

    model = model_of(*SPELLINGS["torch legacy"])
    changes = FuseTransformers().run(model, Context(race=race, clock=Clock(20)))
    assert reasons(changes) == (
        "attention is written as one operator where it can be timed, and too little time is left for that"
    )
    assert "Softmax" in kinds(model)


def test_heads_are_cut_where_they_are_still_spelled() -> None:
    """No recipe writes attention as one operator before a pass that cuts heads, and `fold` never raises the opset."""
    for name in shipped():
        passes = [each.name for each in Recipe.load(name).passes]
        place = passes.index("fuse-transformers") if "fuse-transformers" in passes else len(passes)
        assert not {"prune-channels", "search-best"} & set(passes[place:]), name
    assert "fuse-transformers" not in [each.name for each in Recipe.load("fold").passes]
