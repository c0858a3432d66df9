"""FuseTransformers: rotary embeddings as exporters spell them, in front of attention."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.core import Context
from onnxcompress.passes.transformers.fuse import FuseTransformers
from tests.lossless import kinds, parsed, reasons, run_plain

H, D = 2, 8
E = H * D
NUMBERS = (
    f"int64[4] cut = {{0, 0, {H}, {D}}}, int64[3] join = {{0, 0, {E}}}, int64[1] zero = {{0}},"
    f"int64[1] half = {{{D // 2}}}, int64[1] most = {{9223372036854775807}}, "
    f"int64[1] last = {{-1}}, int64[1] one = {{1}},"
    f"float[{D // 2}] speed = {{1, 0.5, 0.1, 0.01}}, float warm = {{0.9}}"
)
ANGLES = "pf = Cast<to = 1>(pos) pu = Unsqueeze(pf, last) f = Mul(pu, speed)"
JOINED = f"{ANGLES} a = Concat<axis = -1>(f, f) c0 = Cos(a) s0 = Sin(a) c = Unsqueeze(c0, one) s = Unsqueeze(s0, one)"
SCALED = (
    f"{ANGLES} a = Concat<axis = 2>(f, f) ca = Cos(a) c0 = Mul(ca, warm) sa = Sin(a) s0 = Mul(sa, warm)"
    " c = Unsqueeze(c0, one) s = Unsqueeze(s0, one)"
)
LOOKED_UP = "c0 = Gather(tc, pos) s0 = Gather(ts, pos) c = Unsqueeze(c0, one) s = Unsqueeze(s0, one)"
SLICES = "{0}1 = Slice({0}4, zero, half, last) {0}2 = Slice({0}4, half, most, last)"
SPLIT = "{0}1, {0}2 = Split<axis = -1, num_outputs = 2>({0}4)"
TURN = (
    " {0}n = Neg({0}2) {0}u = Concat<axis = -1>({0}n, {0}1) {0}c = Mul({0}4, c) {0}s = Mul({0}u, s)"
    " {0}r = Add({0}c, {0}s)"
)


def model_of(factors: str, halves: str, turn: str = TURN, differ: bool = False) -> ir.Model:
    """Return rotary embeddings of queries and keys, and attention behind them."""
    heads = "".join(
        f" {x}0 = Reshape({x}, cut) {x}4 = Transpose<perm = [0, 2, 1, 3]>({x}0)" + (halves + turn).format(x)
        for x in "qk"
    )
    rest = (
        " v0 = Reshape(v, cut) v4 = Transpose<perm = [0, 2, 1, 3]>(v0) kt = Transpose<perm = [0, 1, 3, 2]>(kr)"
        " w = MatMul(qr, kt) p = Softmax<axis = -1>(w) o = MatMul(p, v4) ot = Transpose<perm = [0, 2, 1, 3]>(o)"
        " y = Reshape(ot, join)"
    )
    inputs = ", ".join(f"float[B, S, {E}] {x}" for x in "qkv")
    table = np.random.default_rng(0).standard_normal((12, D // 2))
    tables = [np.concatenate([t, t + differ], axis=1).astype(np.float32) for t in (np.cos(table), np.sin(table))]
    texts = [
        f"float[12, {D}] {n} = {{{', '.join(map(str, t.ravel()))}}}" for n, t in zip(("tc", "ts"), tables, strict=True)
    ]
    model = parsed(
        f'<ir_version: 9, opset_import: ["" : 18]> m ({inputs}, int64[B, S] pos) => (float[] y)'
        f" <{', '.join([NUMBERS, *texts])}> {{ {factors} {heads} {rest} }}"
    )
    for name in [n for n, value in model.graph.initializers.items() if not value.uses()]:
        del model.graph.initializers[name]
    return model


def fused(model: ir.Model) -> tuple[list[str], str]:
    feeds = []
    for batch, seq in ((1, 1), (2, 5)):
        generator = np.random.default_rng(seq)
        feed: dict[str, np.ndarray] = {x: generator.standard_normal((batch, seq, E), np.float32) for x in "qkv"}
        feed["pos"] = generator.integers(0, 12, (batch, seq))
        feeds.append(feed)
    before = [run_plain(model, feed)["y"] for feed in feeds]
    changes = FuseTransformers(form="standard").run(model, Context())
    for feed, expected in zip(feeds, before, strict=True):
        np.testing.assert_allclose(run_plain(model, feed)["y"], expected, atol=3e-6)
    return kinds(model), reasons(changes)


@pytest.mark.parametrize("halves", [SLICES, SPLIT])
@pytest.mark.parametrize("factors", [JOINED, SCALED, LOOKED_UP])
def test_spellings(factors: str, halves: str) -> None:
    found, _ = fused(model_of(factors, halves))
    assert found.count("RotaryEmbedding") == 2
    assert found[-1] == "Attention"
    assert not {"Concat", "Neg", "Slice", "Transpose", "Softmax"} & set(found), found
    assert found.count("Cos") <= 1, "cos and sin are made once"


@pytest.mark.parametrize("turn", [TURN.replace("({0}n, {0}1)", "({0}1, {0}n)"), TURN.replace("Neg({0}2)", "Neg({0}1)")])
def test_what_is_nearly_a_rotary_embedding_stays(turn: str) -> None:
    found, _ = fused(model_of(JOINED, SPLIT, turn))
    assert "RotaryEmbedding" not in found
    assert "Attention" in found


def test_halves_that_differ_are_refused() -> None:
    found, why = fused(model_of(LOOKED_UP, SPLIT, differ=True))
    assert "RotaryEmbedding" not in found
    assert "halves of cos and sin are not known to be equal" in why
