"""Inner values come out of runs as they are in the model, wherever they stand."""

from __future__ import annotations

import weakref

import numpy as np
import onnx_ir as ir
import pytest

from onnxcompress.activations import observe
from onnxcompress.data.feeds import Lazy
from onnxcompress.errors import ModelError
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.shapes import expose
from tests.helpers import floats, from_text, run

CHAIN = """
g (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
  a = Mul(x, x)
  b = Relu(a)
  y = Sub(b, x)
  c = Exp(x)
  z = Neg(c)
}
"""

NESTED = """
g (float[N] x, bool p, bool q) => (float[N] y) {
  y = If (p) <
    then_branch = then_g () => (float[N] u) {
      u = If (q) <
        then_branch = inner_then () => (float[N] s) { deep = Exp(x)  s = Neg(deep) },
        else_branch = inner_else () => (float[N] t) { t = Abs(x) }
      >
    },
    else_branch = else_g () => (float[N] v) { other = Mul(x, x)  v = Neg(other) }
  >
}
"""

LOOP = """
g (int64 n, float[2] x) => (float[2] y) {
  go = Constant <value = bool {1}> ()
  y = Loop (n, go, x) <
    body = round (int64 i, bool c, float[2] s) => (bool d, float[2] t) {
      d = Identity(c)
      twice = Add(s, s)
      t = Relu(twice)
    }
  >
}
"""


def _values(model: ir.Model, feed, *names: str, **options):
    (found,) = observe.stream(model, [feed], names, **options)
    return found


def test_inner_values_and_inputs_are_given():
    x = floats(2, 3)
    found = _values(from_text(CHAIN), {"x": x}, "x", "a", "b", "y")
    assert list(found) == ["x", "a", "b", "y"]
    np.testing.assert_array_equal(found["a"], x * x)
    np.testing.assert_array_equal(found["b"], x * x)
    np.testing.assert_array_equal(found["x"], x)


def test_the_model_stays_as_it_is():
    model = from_text(CHAIN)
    before = model_io.to_bytes(model)
    _values(model, {"x": floats(2, 3)}, "a", "c")
    assert model_io.to_bytes(model) == before


def test_only_what_is_needed_is_run():
    shown = expose.expose(from_text(CHAIN), ["a"])
    assert [node.op_type for node in query.nodes(shown.model)] == ["Mul"]
    kept = expose.expose(from_text(CHAIN), ["a"], keep=["z"])
    assert sorted(node.op_type for node in query.nodes(kept.model)) == ["Exp", "Mul", "Neg"]


def test_what_the_runtime_would_fuse_is_seen():
    text = """
    g (float[1, 1, 4, 4] x) => (float[1, 2, 4, 4] y)
    <float[2, 1, 1, 1] w = {-1.0, 2.0}> { inner = Conv(x, w)  y = Relu(inner) }
    """
    x = floats(1, 1, 4, 4)
    found = _values(from_text(text), {"x": x}, "inner")
    assert found["inner"].min() < 0
    np.testing.assert_allclose(found["inner"][0, 0], -x[0, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("p", "q", "present"), [(True, True, {"deep"}), (True, False, {"t"}), (False, True, {"other"})]
)
def test_values_in_branches_are_absent_where_the_branch_is_not_taken(p, q, present):
    x = floats(5)
    found = _values(from_text(NESTED), {"x": x, "p": np.array(p), "q": np.array(q)}, "deep", "other", "t")
    assert set(found) == present
    expected = {"deep": np.exp(x), "other": x * x, "t": np.abs(x)}
    for name in present:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-6)


def test_a_branch_whose_shapes_old_opsets_compare():
    text = NESTED.replace("float[N]", "float[5]")
    model = from_text(text, opset=10, ir_version=5)
    found = _values(model, {"x": floats(5), "p": np.array(True), "q": np.array(True)}, "deep")
    assert set(found) == {"deep"}


def test_an_output_of_a_branch_can_be_asked_for():
    x = floats(5)
    found = _values(from_text(NESTED), {"x": x, "p": np.array(False), "q": np.array(True)}, "v", "s", "y")
    assert set(found) == {"v", "y"}
    np.testing.assert_array_equal(found["v"], found["y"])


def test_values_of_a_loop_are_stacked():
    x = np.array([1.0, -1.0], np.float32)
    found = _values(from_text(LOOP), {"n": np.array(3), "x": x}, "twice", "s")
    np.testing.assert_array_equal(found["twice"], [[2, -2], [4, 0], [8, 0]])
    np.testing.assert_array_equal(found["s"], [[1, -1], [2, 0], [4, 0]])


def test_values_of_a_scan_with_axes_are_stacked():
    text = """
    g (float[2] s, float[3, 2] x) => (float[2] last, float[2, 3] all) {
      last, all = Scan <num_scan_inputs = 1, scan_output_axes = [1],
        body = round (float[2] a, float[2] b) => (float[2] c, float[2] d) {
          sum = Add(a, b)
          c = Identity(sum)
          d = Neg(sum)
        }> (s, x)
    }
    """
    x = floats(3, 2)
    found = _values(from_text(text), {"s": np.zeros(2, np.float32), "x": x}, "sum")
    np.testing.assert_allclose(found["sum"], np.cumsum(x, axis=0), rtol=1e-6)


def test_a_value_that_not_every_round_computes_is_refused():
    text = LOOP.replace(
        "t = Relu(twice)",
        """t = If (c) <
             then_branch = yes () => (float[2] e) { f = Exp(twice)  e = Neg(f) },
             else_branch = no () => (float[2] h) { h = Neg(twice) }
           >""",
    )
    model = from_text(text)
    assert expose.expose(model, ["f", "twice"]).refused == {"f": "not every round of a loop computes it"}
    with pytest.raises(ModelError, match="f: can't be observed: not every round"):
        _values(model, {"n": np.array(1), "x": floats(2)}, "f")


@pytest.mark.parametrize(("name", "why"), [("k", "a constant"), ("nowhere", "no such value")])
def test_what_no_run_makes_is_refused(name, why):
    text = """
    g (float[2] x) => (float[2] y) { k = Constant <value = float[2] {1.0, 2.0}> ()  y = Add(x, k) }
    """
    with pytest.raises(ModelError, match=f"{name}: can't be observed: .*{why}"):
        _values(from_text(text), {"x": floats(2)}, name)
    watch = observe.ActivationTap(from_text(text), [name, "y"], skip_refused=True)
    assert list(watch.refused) == [name]
    assert list(watch.run({"x": floats(2)})) == ["y"]


def test_two_values_of_one_name_are_refused():
    model = from_text(NESTED)
    next(v for n in query.nodes(model) for v in n.outputs if v.name == "other").name = "deep"
    assert expose.expose(model, ["deep"]).refused == {"deep": "two values have this name"}


STATE = "g (float[2] x, float[2] h) => (float[2] y, float[2] h2) { inner = Add(x, h)  h2 = Neg(inner)  y = Exp(x) }"


def test_state_is_carried_from_run_to_run():
    feeds = [{"x": floats(2, seed=i), "h": np.zeros(2, np.float32)} for i in range(3)]
    found = list(observe.stream(from_text(STATE), iter(feeds), ["inner", "h"], state={"h": "h2"}))
    session_state = feeds[0]["h"]
    for feed, values in zip(feeds, found, strict=True):
        expected = feed["x"] + session_state
        np.testing.assert_allclose(values["inner"], expected, rtol=1e-6)
        np.testing.assert_allclose(values["h"], session_state)
        session_state = -expected


class Sum:
    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def update(self, array: np.ndarray) -> None:
        self.total += float(array.sum())
        self.count += 1


@pytest.mark.parametrize("once", [False, True])
@pytest.mark.parametrize("memory_bytes", [1, 1 << 20])
def test_collectors_see_every_feed_whatever_the_memory(once, memory_bytes):
    feeds = [{"x": floats(4, 3, seed=i)} for i in range(20)]
    collectors = {name: Sum() for name in ("b", "x", "c")}
    refused = observe.observe(from_text(CHAIN), iter(feeds) if once else feeds, collectors, memory_bytes=memory_bytes)
    assert not refused
    assert {c.count for c in collectors.values()} == {20}
    expected = sum(float(np.square(feed["x"]).sum()) for feed in feeds)
    assert collectors["b"].total == pytest.approx(expected, rel=1e-6)


def test_values_are_divided_by_their_size_at_the_largest_feed():
    feeds = [{"x": floats(1, 3)}, {"x": floats(8, 3)}]
    names = ["c", "a", "b"]
    model = from_text(CHAIN)
    assert observe.divided(model, feeds, names, 3 * 96) == [["a", "b", "c"]]
    assert observe.divided(model, feeds, names, 2 * 96) == [["a", "b"], ["c"]]
    assert observe.divided(model, feeds, names, 95) == [["a"], ["b"], ["c"]]


def test_what_a_collector_can_not_get_is_told():
    collectors = {"f": Sum(), "y": Sum()}
    refused = observe.observe(from_text(NESTED), [_nested_feed()], collectors)
    assert refused == {"f": "no such value outside of local functions"}
    assert collectors["y"].count == 1


def _nested_feed():
    return {"x": floats(5), "p": np.array(True), "q": np.array(True)}


def test_feeds_are_joined_where_samples_do_not_meet():
    feeds = [{"x": floats(1, 3, seed=i)} for i in range(5)] + [{"x": floats(2, 3)}]
    joined = observe.batched(from_text(CHAIN), feeds, 3)
    for _ in range(2):
        assert [feed["x"].shape[0] for feed in joined] == [3, 2, 2]
    rows = np.concatenate([feed["x"] for feed in joined])
    np.testing.assert_array_equal(rows, np.concatenate([feed["x"] for feed in feeds]))


@pytest.mark.parametrize(("most_bytes", "sizes"), [(48, [4, 4]), (36, [3, 3, 2]), (1, [2, 2, 2, 2])])
def test_fewer_feeds_are_joined_where_a_value_would_take_much_memory(most_bytes, sizes, monkeypatch):
    monkeypatch.setattr(observe, "JOINED_BYTES", most_bytes)  # a value of one sample takes 12 bytes
    joined = observe.batched(from_text(CHAIN), [{"x": floats(1, 3, seed=i)} for i in range(8)], 4)
    assert [feed["x"].shape[0] for feed in joined] == sizes
    assert observe.joined_size(joined) == sizes[0]


def test_feeds_that_are_not_joined_have_size_one():
    feeds = [{"x": floats(1, 3)}]
    assert observe.batched(from_text(CHAIN), feeds, 4) is feeds
    assert observe.joined_size(feeds) == 1


@pytest.mark.parametrize(
    "body",
    [
        "m = ReduceMean <axes = [0], keepdims = 1> (x)  y = Sub(x, m)",  # samples meet
        "k = Constant <value = int64[2] {1, 3}> ()  y = Reshape(x, k)",  # fails with more than one
        "y = ReduceSum <keepdims = 0> (x)",  # no axis of samples
    ],
)
def test_feeds_are_not_joined_where_that_gives_something_else(body):
    model = from_text(f"g (float[N, 3] x) => (float[M, 3] y) {{ {body} }}" if "Sum" not in body else
                      f"g (float[N, 3] x) => (float y) {{ {body} }}")  # fmt: skip
    feeds = [{"x": floats(1, 3, seed=i)} for i in range(4)]
    assert [feed["x"].shape[0] for feed in observe.batched(model, iter(feeds), 4)] == [1, 1, 1, 1]


def test_feeds_are_not_joined_where_the_model_fixes_the_first_dimension():
    model = from_text(CHAIN.replace("float[N, 3] x", "float[1, 3] x"))
    feeds = [{"x": floats(1, 3, seed=i)} for i in range(4)]
    assert len(list(observe.batched(model, feeds, 4))) == 4


def test_joined_and_single_feeds_show_the_same():
    model = model_io.load("models/mbv2.onnx")
    with np.load("models/fmnist_calib.npz") as data:
        feeds = [{"x": x[None]} for x in data["x"][:6]]
    name = next(node.outputs[0].name for node in list(model.graph)[-3:] if node.op_type == "Gemm")
    single = [values[name] for values in observe.stream(model, feeds, [name])]
    joined = [values[name] for values in observe.stream(model, observe.batched(model, feeds, 4), [name])]
    assert [len(each) for each in joined] == [4, 2]
    np.testing.assert_allclose(np.concatenate(joined), np.concatenate(single), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(single[0], run(model, feeds[0])[name], rtol=1e-4, atol=1e-4)


def test_fewer_feeds_are_enough_where_values_are_large():
    model = from_text(CHAIN)
    feeds = [{"x": floats(2, 3, seed=seed)} for seed in range(20)]
    each = 2 * 2 * 3 * 4  # two values of 2 x 3 floats
    assert observe.enough_feeds(model, feeds, ["a", "b"], most_bytes=each * 20) is feeds
    spread = observe.enough_feeds(model, feeds, ["a", "b"], most_bytes=each * 10)
    assert [id(feed) for feed in spread] == [id(feed) for feed in feeds[::2]]
    assert len(observe.enough_feeds(model, feeds, ["a", "b"], most_bytes=1)) == 8
    assert observe.enough_feeds(model, feeds[:5], ["a"], most_bytes=1) == feeds[:5]


class _Counted(np.ndarray):
    """An array that is counted as long as it lives."""


def test_of_feeds_that_are_loaded_when_read_a_few_are_in_memory_at_a_time():
    living, most = weakref.WeakSet(), []

    def load(index):
        feed = floats(2, 3, seed=index).view(_Counted)
        living.add(_Alive(feed))
        return {"x": feed}

    class _Alive:
        """Lives as long as an array."""

        def __init__(self, array):
            array.alive = self

    class _Taker:
        def update(self, _):
            most.append(len(living))

    model = from_text(CHAIN)
    feeds = observe.enough_feeds(model, Lazy(range(60), load), ["a", "b"], most_bytes=2 * 2 * 3 * 4 * 30)
    assert len(feeds) == 30
    observe.observe(model, feeds, {"a": _Taker()})
    assert len(most) == 30
    assert max(most) <= 4
