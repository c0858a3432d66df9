"""Samples that differ in length, scored against labels and against the original."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto as T
from onnx import helper

import onnxcompress as oc
from onnxcompress.errors import DataError

LENGTHS = (3, 7, 5, 4)


def model(path, *, factor, by_position):
    """Write scores of `x`: of its places (float [1, n]), or of two classes at every place (float [1, n, 2])."""
    node = helper.make_node
    nodes = [node("Mul", ["x", "factor"], ["y"])]
    shape = [1, "n"]
    if by_position:
        nodes = [node("Mul", ["x", "factor"], ["scaled"]), node("Unsqueeze", ["scaled", "last"], ["one"])]
        nodes += [node("Neg", ["one"], ["other"]), node("Concat", ["one", "other"], ["y"], axis=2)]
        shape = [1, "n", 2]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, [1, "n"])],
        [helper.make_tensor_value_info("y", T.FLOAT, shape)],
        [
            onnx.numpy_helper.from_array(np.float32(factor), "factor"),
            onnx.numpy_helper.from_array(np.array([2], np.int64), "last"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def samples(label_of):
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((1, n)).astype(np.float32)} for n in LENGTHS]
    return [{**feed, "label": label_of(feed["x"])} for feed in feeds]


def compared(tmp_path, label_of, *, by_position, **options):
    a = model(tmp_path / "a.onnx", factor=1, by_position=by_position)
    b = model(tmp_path / "b.onnx", factor=-1, by_position=by_position)
    return oc.compare(a, b, eval_data=samples(label_of), **options).quality


@pytest.mark.parametrize("metric", ["top1", None])
def test_the_best_place_of_each_sample_is_scored(tmp_path, metric):
    found = compared(tmp_path, lambda x: x.argmax(-1), by_position=False, metric=metric)
    assert (found.metric, found.original, found.compressed) == ("top1", 1.0, 0.0)


def test_every_place_of_each_sample_is_scored(tmp_path):
    found = compared(tmp_path, lambda x: (x < 0).astype(np.int64), by_position=True)
    assert (found.original, found.compressed) == (1.0, 0.0)
    assert found.drop_interval is not None


def test_agreement_needs_no_labels(tmp_path):
    a = model(tmp_path / "a.onnx", factor=1, by_position=True)
    feeds = [{"x": sample["x"]} for sample in samples(lambda x: x)]
    assert oc.compare(a, a, eval_data=feeds, metric="agreement").quality.compressed == 1.0
    b = model(tmp_path / "b.onnx", factor=-1, by_position=True)
    assert oc.compare(a, b, eval_data=feeds, metric="agreement").quality.compressed == 0.0


def test_a_function_gets_one_array_per_sample(tmp_path, monkeypatch):
    (tmp_path / "signs.py").write_text(
        "def score(outputs, labels):\n"
        "    assert [each.shape for each in outputs] == [(1, 3), (1, 7), (1, 5), (1, 4)]\n"
        "    return sum((o > 0).sum() == l.sum() for o, l in zip(outputs, labels)) / 4\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = compared(tmp_path, lambda x: (x > 0).astype(np.int64), by_position=False, metric="signs:score")
    assert found.original == 1.0


def test_labels_that_do_not_fit_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"top1.*labels are int64"):
        compared(tmp_path, lambda x: np.zeros(x.shape, np.int64), by_position=False)
