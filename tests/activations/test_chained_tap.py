"""Values that are taken out part by part are those of a run of the whole model, and each node runs once for a feed."""

from __future__ import annotations

import weakref
from collections import Counter

import numpy as np
import pytest

from onnxcompress.activations import chained_tap, observe, partial_run
from onnxcompress.graph import query
from onnxcompress.runtime import isolation
from tests.activations.test_observe import CHAIN, LOOP, NESTED, STATE
from tests.helpers import floats, from_text, with_constants

MIXED = """
g (bool p, float[N, 4] x, int64 n, float[4, 4] w, float16[4, 4] h) => (float[N, 4] y) {
  a = MatMul(x, w)
  m = If (p) <
    then_branch = yes () => (float[N, 4] u) { inner = Exp(a)  u = Relu(inner) },
    else_branch = no () => (float[N, 4] v) { other = Abs(x)  v = Neg(other) }
  >
  go = Constant <value = bool {1}> ()
  s = Loop (n, go, m) <
    body = round (int64 i, bool c, float[N, 4] t) => (bool d, float[N, 4] r) {
      d = Identity(c)
      half = Mul(t, t)
      r = Sub(half, a)
    }
  >
  k = Cast <to = 1> (h)
  b = MatMul(s, k)
  e = MatMul(a, k)
  y = Add(b, e)
}
"""
"""A branch and a loop that read a value of long before; a weight that is widened, and read at two places."""


def mixed():
    return with_constants(MIXED, w=floats(4, 4, seed=1) / 4, h=(floats(4, 4, seed=2) / 4).astype(np.float16))


def mixed_feeds():
    return [
        {"p": np.array(i != 1), "x": floats(3 + i, 4, seed=i) / 4, "n": np.array(i)} for i in range(3)
    ]  # of different sizes, the second takes the other branch, the first no round


def taken(model, feeds, parts, **options):
    tap = chained_tap.ChainedTap(model, parts, **options)
    found = []
    for feed in feeds:
        found.append({})
        tap.run(feed, found[-1].__setitem__)
    return found, tap


@pytest.fixture
def loaded(monkeypatch):
    """Operators of each segment that is loaded."""
    found = []
    extract = partial_run.extract

    def spied(*args, **options):
        segment = extract(*args, **options)
        found.append(sorted(node.op_type for node in query.nodes(segment) if node.op_type != "Constant"))
        return segment

    monkeypatch.setattr(partial_run, "extract", spied)
    return found


NAMES = ["x", "a", "inner", "u", "other", "m", "half", "s", "b", "y"]


@pytest.mark.parametrize("size", [1, 3, 10])
def test_parts_give_what_a_run_of_the_whole_gives(size):
    """Values of branches and loops, what later ones read of long before, and inputs; in parts of any size."""
    parts = [NAMES[at : at + size] for at in range(0, len(NAMES), size)]
    found, tap = taken(mixed(), mixed_feeds(), parts)
    expected = list(observe.stream(mixed(), mixed_feeds(), NAMES))
    assert not tap.refused
    assert [set(each) for each in found] == [set(each) for each in expected]
    assert ["other" in each for each in found] == [False, True, False]
    assert found[2]["half"].shape == (2, 5, 4)
    for got, want in zip(found, expected, strict=True):
        for name, array in want.items():
            np.testing.assert_allclose(got[name], array, rtol=1e-5, atol=1e-6)


def test_each_node_is_in_one_segment_and_each_segment_is_loaded_once(loaded):
    taken(mixed(), mixed_feeds(), [["a"], ["m"], ["s"], ["b"], ["y"]])
    assert len(loaded) == 5
    ran = Counter(op for ops in loaded for op in ops)
    whole = Counter(node.op_type for node in query.nodes(mixed()) if node.op_type != "Constant")
    assert ran == whole + Counter(["Cast"])  # of a weight: made anew for each of its readers, and not passed on


def test_a_segment_holds_only_what_its_values_need(loaded):
    taken(from_text(CHAIN), [{"x": floats(2, 3)}], [["a"], ["c"]])
    assert loaded == [["Mul"], ["Exp"]]


def test_what_nothing_reads_any_more_is_freed_before_the_next_part():
    model = from_text(
        "g (float[N] x) => (float[N] z) { a = Exp(x)  b = Neg(a)  c = Exp(b)  d = Neg(c)  z = Add(d, a) }"
    )
    seen: dict[str, weakref.ref[np.ndarray]] = {}
    alive: dict[str, set[str]] = {}

    def take(name, array):
        alive[name] = {each for each, other in seen.items() if other() is not None}
        seen[name] = weakref.ref(array)

    tap = chained_tap.ChainedTap(model, [[name] for name in "abcdz"])
    for _ in range(2):
        seen.clear()
        tap.run({"x": floats(3)}, take)
        assert alive == {"a": set(), "b": {"a"}, "c": {"a", "b"}, "d": {"a", "c"}, "z": {"a", "d"}}


def test_state_is_carried_from_run_to_run():
    feeds = [{"x": floats(2, seed=i), "h": np.zeros(2, np.float32)} for i in range(3)]
    found, _ = taken(from_text(STATE), feeds, [["h", "inner"], ["y"]], state={"h": "h2"})
    state = feeds[0]["h"]
    for feed, values in zip(feeds, found, strict=True):
        np.testing.assert_allclose(values["h"], state)
        np.testing.assert_allclose(values["inner"], feed["x"] + state, rtol=1e-6)
        np.testing.assert_allclose(values["y"], np.exp(feed["x"]), rtol=1e-6)
        state = -(feed["x"] + state)


def test_inputs_alone_need_no_run_but_that_of_their_state(loaded):
    feeds = [{"x": floats(2, seed=i), "h": np.zeros(2, np.float32)} for i in range(2)]
    taken(from_text(STATE), feeds, [["x"], ["h"]])
    assert loaded == []
    found, _ = taken(from_text(STATE), feeds, [["x"], ["h"]], state={"h": "h2"})
    assert loaded == [["Add", "Neg"]]
    np.testing.assert_allclose(found[1]["h"], -feeds[0]["x"])


def test_there_is_no_cut_where_a_list_would_have_to_be_passed_on(loaded):
    text = """
    g (float[N] x) => (float[M] y) {
      a = Exp(x)
      one = Constant <value = int64 {2}> ()
      parts = SplitToSequence <axis = 0> (a, one)
      b = Neg(x)
      c = Neg(b)
      y = ConcatFromSequence <axis = 0> (parts)
      z = Abs(y)
    }
    """
    feeds = [{"x": floats(4 + 2 * i, seed=i)} for i in range(2)]
    parts = [["a"], ["b", "parts"], ["c"], ["y"], ["z"]]
    found, _ = taken(from_text(text), feeds, parts)
    assert len(loaded) == 5  # two of them only to find that they can't be cut off
    for feed, values in zip(feeds, found, strict=True):
        assert set(values) == {"a", "b", "c", "y", "z"}
        np.testing.assert_allclose(values["y"], np.exp(feed["x"]), rtol=1e-6)
        np.testing.assert_allclose(values["z"], np.exp(feed["x"]), rtol=1e-6)
        np.testing.assert_allclose(values["c"], feed["x"], rtol=1e-6)


def test_a_random_value_is_drawn_once():
    text = """
    g (float[4] x) => (float[4] y) {
      r = RandomNormal <shape = [4]> ()
      a = Neg(r)
      b = Exp(x)
      y = Add(r, b)
    }
    """
    ((values,), _) = taken(from_text(text), [{"x": floats(4)}], [["a"], ["b"], ["y"]])
    np.testing.assert_allclose(values["y"] - values["b"], -values["a"], rtol=1e-5, atol=1e-6)
    assert values["a"].std() > 0


def test_an_input_with_a_default_is_fed_or_not():
    text = "g (float[3] x, float[3] k) => (float[3] y) { a = Mul(x, k)  b = Neg(k)  y = Add(a, b) }"
    model = with_constants(text, k=np.full(3, 2, np.float32))
    model.graph.inputs.append(model.graph.initializers["k"])
    feeds = [{"x": floats(3), "k": np.full(3, 5, np.float32)}, {"x": floats(3)}]
    found, _ = taken(model, feeds, [["a"], ["b"], ["y"]])
    for feed, values, k in zip(feeds, found, (5, 2), strict=True):
        np.testing.assert_allclose(values["a"], feed["x"] * k)
        np.testing.assert_allclose(values["b"], np.full(3, -k))
        np.testing.assert_allclose(values["y"], feed["x"] * k - k)


def test_what_can_not_be_observed_is_told():
    model = from_text(LOOP)
    found, tap = taken(model, [{"n": np.array(2), "x": floats(2)}], [["nowhere"], ["twice"], ["go"], ["y"]])
    assert set(tap.refused) == {"nowhere", "go"}
    assert set(found[0]) == {"twice", "y"}
    found, tap = taken(model, [{"n": np.array(2), "x": floats(2)}], [["nowhere"], ["go"]])
    assert found == [{}]


def test_in_processes_of_their_own_segments_are_loaded_one_at_a_time(loaded):
    feeds = [{"x": floats(2, 3, seed=i)} for i in range(2)]
    with isolation.isolated("apart"):
        found, _ = taken(from_text(CHAIN), feeds, [["a"], ["b"], ["y"]])
    assert loaded == [["Mul"], ["Relu"], ["Sub"]] * 2
    np.testing.assert_allclose(found[1]["y"], np.square(feeds[1]["x"]) - feeds[1]["x"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("memory_bytes", [1, 1 << 20])
def test_values_in_branches_reach_their_collectors_whatever_the_memory(memory_bytes):
    class Last:
        def __init__(self):
            self.array = None

        def update(self, array):
            self.array = array.copy()

    x = floats(5)
    takers = {name: Last() for name in ("deep", "t", "other", "y", "x")}
    feed = {"x": x, "p": np.array(True), "q": np.array(True)}
    assert observe.observe(from_text(NESTED), iter([feed]), takers, memory_bytes=memory_bytes) == {}
    assert takers["t"].array is takers["other"].array is None
    np.testing.assert_allclose(takers["deep"].array, np.exp(x), rtol=1e-6)
    np.testing.assert_allclose(takers["y"].array, -np.exp(x), rtol=1e-6)
