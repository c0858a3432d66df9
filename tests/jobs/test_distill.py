"""Students of many kinds learn from a teacher: who is whose pair, what is kept, and what the command says."""

from __future__ import annotations

import json
import sys

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress import cli
from onnxcompress.distillation.match_layers import pair_layers
from onnxcompress.errors import LimitError, ModelError, UsageError
from onnxcompress.graph import query
from onnxcompress.io import model_io
from onnxcompress.jobs.distill import distill
from onnxcompress.numerics.linear.correlation import assigned, correlations
from onnxcompress.quality.divergence import Divergence
from tests.helpers import floats, run, with_constants

NET = """g (float[N, 6] x, float[6, 16] a, float[16] c, float[16, 12] b, float[12, 4] d) => (float[N, 4] y) {
    h = Gemm(x, a, c)  r = Relu(h)  k = MatMul(r, b)  q = Relu(k)  y = MatMul(q, d) }"""
SHAPES = {"a": (6, 16), "c": (16,), "b": (16, 12), "d": (12, 4)}
SAMPLES = np.stack([floats(6, seed=seed) for seed in range(300)])
FEEDS = [{"x": row[None]} for row in SAMPLES]
UNSEEN = [{"x": floats(1, 6, seed=5000 + seed)} for seed in range(100)]


def _net(seed: int = 0) -> ir.Model:
    return with_constants(
        NET, **{name: floats(*shape, seed=seed + i) for i, (name, shape) in enumerate(SHAPES.items())}
    )


def _cut(model: ir.Model, hidden: list[int]) -> ir.Model:
    """Return the model with just these of the first layer's channels, in this order."""
    held = {name: query.constant(value) for name, value in model.graph.initializers.items()}
    held |= {"a": held["a"][:, hidden], "c": held["c"][hidden], "b": held["b"][hidden]}
    text = NET.replace("float[6, 16]", f"float[6, {len(hidden)}]").replace("float[16]", f"float[{len(hidden)}]")
    return with_constants(text.replace("float[16, 12]", f"float[{len(hidden)}, 12]"), **held)


def _renamed(model: ir.Model, prefix: str = "my_") -> ir.Model:
    copy = model_io.clone(model)
    for node in copy.graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.name = f"{prefix}{output.name}"
    return copy


def _loss(model: ir.Model, teacher: ir.Model) -> float:
    return Divergence(teacher, UNSEEN).of(model)


def test_a_student_that_lost_channels_finds_them_by_its_weights_and_comes_back():
    teacher = _net()
    kept = [0, 2, 3, 4, 6, 7, 8, 9, 11, 12, 14, 15]
    student = _cut(teacher, kept)
    result = distill(student, teacher, data=SAMPLES, steps=0)
    pairs = {pair.student: pair for pair in result.report.pairs}
    assert pairs["h"].by == "weights"
    np.testing.assert_array_equal(pairs["h"].channels, kept)
    assert (pairs["k"].by, pairs["y"].by) == ("name", "name")
    assert result.report.kept == "refitted"
    assert _loss(result.model, teacher) < 0.7 * _loss(student, teacher)
    assert query.constant(student.graph.initializers["b"]).shape == (12, 12)


def test_training_from_end_to_end_goes_on_where_closed_forms_end():
    teacher = _net()
    student = _cut(teacher, [0, 2, 3, 4, 6, 7, 8, 9, 11, 12, 14, 15])
    closed = distill(student, teacher, data=SAMPLES, steps=0)
    trained = distill(student, teacher, data=SAMPLES, steps=200)
    assert trained.report.kept == "distilled"
    assert trained.report.divergences["distilled"] < trained.report.divergences["refitted"]
    assert _loss(trained.model, teacher) < _loss(closed.model, teacher)
    assert list(closed.report.divergences) == ["given", "refitted"]
    assert closed.report.distilled is None


def test_layers_of_other_names_are_found_by_their_activations():
    teacher = _net()
    order = [15, *range(15)]
    pairs = {pair.student: pair for pair in pair_layers(_renamed(_cut(teacher, order)), teacher, FEEDS)}
    assert {name: pair.teacher for name, pair in pairs.items()} == {"my_h": "h", "my_k": "k", "y": "y"}
    assert pairs["my_h"].by == "activations"
    np.testing.assert_array_equal(pairs["my_h"].channels, order)
    assert pairs["my_h"].correlation == pytest.approx(1, abs=1e-5)


def test_layers_that_have_learnt_nothing_are_found_by_their_shape_and_place():
    teacher, student = _net(), _renamed(_net(seed=40))
    pairs = {pair.student: pair for pair in pair_layers(student, teacher, FEEDS)}
    assert {name: (pair.teacher, pair.by) for name, pair in pairs.items()} == {
        "my_h": ("h", "shape"),
        "my_k": ("k", "shape"),
        "y": ("y", "name"),
    }
    result = distill(student, teacher, data=SAMPLES, steps=0)
    assert _loss(result.model, teacher) < 1e-4 < 0.1 < _loss(student, teacher)


def test_a_layer_that_nothing_is_like_has_no_pair():
    other = with_constants(
        "g (float[N, 6] x, float[6, 30] u, float[30, 4] v) => (float[N, 4] y)"
        "{ p = MatMul(x, u)  r = Relu(p)  y = MatMul(r, v) }",
        u=floats(6, 30, seed=1),
        v=floats(30, 4, seed=2),
    )
    result = distill(other, _net(), data=SAMPLES, steps=0)
    assert [pair.student for pair in result.report.pairs] == ["y"]
    assert result.report.unpaired == [query.label(next(iter(result.model.graph)))]


IMAGES = np.stack([floats(2, 5, 5, seed=seed) for seed in range(400)])


def test_a_fully_connected_student_learns_from_a_convolutional_teacher():
    teacher = with_constants(
        """g (float[N, 2, 5, 5] x, float[6, 2, 3, 3] a, float[6] b, float[6, 3] d) => (float[N, 3] y) {
           h = Conv(x, a, b)  r = Relu(h)  p = GlobalAveragePool(r)  f = Flatten(p)  y = MatMul(f, d) }""",
        a=floats(6, 2, 3, 3, seed=1),
        b=floats(6, seed=2),
        d=floats(6, 3, seed=3),
    )
    student = with_constants(
        """g (float[N, 2, 5, 5] x, float[50, 24] a, float[24] b, float[24, 3] d, float[3] e) => (float[N, 3] y) {
           f = Flatten(x)  h = Gemm(f, a, b)  r = Relu(h)  y = Gemm(r, d, e) }""",
        a=floats(50, 24, seed=4) / 7,
        b=floats(24, seed=5) / 9,
        d=floats(24, 3, seed=6) / 5,
        e=np.zeros(3, np.float32),
    )
    result = distill(student, teacher, data=IMAGES, steps=300)
    unseen = [{"x": floats(1, 2, 5, 5, seed=9000 + seed)} for seed in range(100)]
    judge = Divergence(teacher, unseen)
    assert result.report.kept == "distilled"
    assert judge.of(result.model) < 0.6 * judge.of(student)


def test_a_student_of_another_depth_learns():
    teacher = _net()
    shallow = with_constants(
        "g (float[N, 6] x, float[6, 16] a, float[16] c, float[16, 4] d) => (float[N, 4] y)"
        "{ h = Gemm(x, a, c)  r = Relu(h)  y = MatMul(r, d) }",
        a=query.constant(teacher.graph.initializers["a"]),
        c=query.constant(teacher.graph.initializers["c"]),
        d=np.zeros((16, 4), np.float32),
    )
    result = distill(shallow, teacher, data=SAMPLES, steps=0)
    assert _loss(result.model, teacher) < 0.3 * _loss(shallow, teacher)


def test_a_student_that_can_t_get_better_stays_as_it_is():
    result = distill(_net(), _net(), data=SAMPLES, steps=20)
    assert result.report.kept == "given"
    assert result.report.divergences["given"] == 0
    np.testing.assert_array_equal(query.constant(result.model.graph.initializers["a"]), floats(6, 16, seed=0))


def test_inputs_and_outputs_may_have_other_names():
    teacher = with_constants(
        NET.replace("x", "pixels").replace(" y", " scores").replace("mapixels", "max"),
        **{name: floats(*shape, seed=i) for i, (name, shape) in enumerate(SHAPES.items())},
    )
    result = distill(_net(seed=40), teacher, data=SAMPLES, steps=0)
    assert _loss(result.model, _net()) < 1e-4
    assert set(run(result.model, FEEDS[0])) == {"y"}


def test_what_can_t_be_a_pair_of_student_and_teacher_is_an_error():
    two = with_constants(
        "g (float[N, 6] x, float[N, 6] z, float[6, 4] a) => (float[N, 4] y) { s = Add(x, z)  y = MatMul(s, a) }",
        a=floats(6, 4),
    )
    with pytest.raises(ModelError, match="inputs are x in the student and x, z in the teacher"):
        distill(_net(), two, data=SAMPLES)
    with pytest.raises(UsageError, match="fewer than none"):
        distill(_net(), _net(), data=SAMPLES, steps=-1)


def test_a_limit_on_the_score_holds():
    with pytest.raises(LimitError) as caught:
        distill(_net(seed=40), _net(), data=SAMPLES[:40], steps=0, max_drop=-1.0, metric="agreement")
    assert caught.value.report.kept == "refitted"


def test_correlations_are_pearson_s_and_what_does_not_vary_has_none():
    rows = np.column_stack([np.arange(10.0), -np.arange(10.0), np.full(10, 3.0)])
    np.testing.assert_allclose(correlations(rows, rows), [[1, -1, 0], [-1, 1, 0], [0, 0, 0]], atol=1e-12)
    np.testing.assert_array_equal(assigned(np.array([[0.9, 0.8, 0.0], [0.9, 0.1, 0.2]])), [1, 0])


def _main(monkeypatch: pytest.MonkeyPatch, *args: object) -> object:
    monkeypatch.setattr(sys, "argv", ["onnxcompress", *map(str, args)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    oc.save(_net(), tmp_path / "teacher.onnx")
    oc.save(_cut(_net(), list(range(12))), tmp_path / "student.onnx")
    np.savez(tmp_path / "data.npz", x=SAMPLES)
    return tmp_path


def test_the_command_writes_the_student_and_a_report(files, monkeypatch, capsys):
    words = ("distill", "student.onnx", "--teacher", "teacher.onnx", "--data", "data.npz", "-o", "taught.onnx")
    assert _main(monkeypatch, *words, "--steps", 40, "--json", "report.json") == 0
    report = json.loads((files / "report.json").read_text())
    assert [layer["student"] for layer in report["layers"]] == ["h", "k", "y"]
    assert report["divergence"][report["kept"]] < report["divergence"]["given"]
    assert report["distillation"]["steps"] == 40
    assert report["comparison"]["quality"]["drop"] is not None
    assert sum(line.endswith("   kept") for line in capsys.readouterr().out.splitlines()) == 1
    taught = model_io.load(files / "taught.onnx")
    assert _loss(taught, _net()) < _loss(model_io.load(files / "student.onnx"), _net())
    assert _main(monkeypatch, *words, "--steps", 0) == 2
    assert "exists" in capsys.readouterr().err
    assert _main(monkeypatch, *words, "--steps", 0, "--force", "-v", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["distillation"] is None


def test_every_layer_stands_in_the_table_with_how_it_was_found(files, monkeypatch, capsys):
    words = ("distill", "student.onnx", "--teacher", "teacher.onnx", "--data", "data.npz", "-o", "taught.onnx")
    assert _main(monkeypatch, *words, "--steps", 0, "-v") == 0
    out = capsys.readouterr().out
    assert "weights" in out
    assert "correlation" in out


def test_without_samples_there_is_nothing_to_learn_from(files, monkeypatch, capsys):
    assert _main(monkeypatch, "distill", "student.onnx", "--teacher", "teacher.onnx", "-o", "taught.onnx") == 2
    assert "--data" in capsys.readouterr().err
    assert not (files / "taught.onnx").exists()


def test_a_limit_that_is_not_met_is_exit_1_and_no_file(files, monkeypatch, capsys):
    words = ("distill", "student.onnx", "--teacher", "teacher.onnx", "--data", "data.npz", "-o", "taught.onnx")
    assert _main(monkeypatch, *words, "--steps", 0, "--metric", "agreement", "--max-drop", 0) == 1
    assert sum(line.endswith("   kept") for line in capsys.readouterr().out.splitlines()) == 1
    assert not (files / "taught.onnx").exists()
