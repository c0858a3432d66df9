"""Splitting: equal to the whole model to the bit, within the budget, and what can't be done is told."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

import onnxcompress as oc
from onnxcompress.base import atomic_files
from onnxcompress.errors import LimitError, ModelError, UsageError
from onnxcompress.io import model_io
from onnxcompress.partition import check, manifest
from onnxcompress.partition import split as split_job
from onnxcompress.runtime import session as runtime
from tests.helpers import floats, from_text

MODELS = Path(__file__).parents[2] / "models"
SCHEMA = json.loads((Path(manifest.__file__).parent / "manifest-schema.json").read_text(encoding="utf-8"))


def _mlp(layers=6, width=64, *, shared=False):
    """Return float [n, width] -> MatMul, Relu, MatMul, ... with weights of 16 KB; all the same one if `shared`."""
    nodes, weights = [], []
    for i in range(layers):
        name = "w0" if shared else f"w{i}"
        nodes += [
            helper.make_node("MatMul", [f"h{i}", name], [f"m{i}"], name=f"matmul{i}"),
            helper.make_node("Relu", [f"m{i}"], [f"h{i + 1}"], name=f"relu{i}"),
        ]
        if name not in {w.name for w in weights}:
            weights.append(onnx.numpy_helper.from_array(floats(width, width, seed=i) / 8, name))
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("h0", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info(f"h{layers}", TensorProto.FLOAT, ["n", width])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _equal(model, folder, feed, *, optimize=False):
    whole = runtime.open_session(model_io.to_bytes(model_io.load(model)), optimize=False).run(feed)
    with oc.PartitionedModel(folder, optimize=optimize) as parts:
        given = parts.run(None, feed)
    for (name, expected), got in zip(whole.items(), given, strict=True):
        assert got.dtype == expected.dtype, name
        if optimize:
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        else:
            assert got.tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("name", ["resnet14", "mbv2", "vit"])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_parts_give_what_the_whole_gives(name, count, tmp_path):
    path = MODELS / f"{name}.onnx"
    found = oc.split(path, tmp_path / "parts", parts=count)
    assert len(found.manifest.parts) == count
    feed = {"x": floats(3, 1, 28, 28)}
    _equal(path, tmp_path / "parts", feed)
    _equal(path, tmp_path / "parts", feed, optimize=True)
    content = json.loads((tmp_path / "parts" / "manifest.json").read_text(encoding="utf-8"))
    jsonschema.validate(content, SCHEMA)
    content["parts"][0]["weights"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, SCHEMA)


def test_the_schema_that_ships_is_the_one_that_is_checked():
    assert manifest.json_schema() == SCHEMA


def test_a_budget_is_kept_and_halved_so_that_the_next_part_fits_beside(tmp_path):
    found = oc.split(_mlp(), tmp_path / "parts", max_memory=60_000, data={"h0": floats(4, 64)[None]})
    peaks = [part.peak_bytes for part in found.manifest.parts]
    assert max(peaks) <= 30_000 == 60_000 // 2
    assert len(peaks) == 6
    assert found.manifest.sizes == {"h0": [4, 64]}
    assert found.manifest.cut_bytes == 5 * 4 * 64 * 4


def test_a_budget_that_holds_the_whole_makes_one_part(tmp_path):
    found = oc.split(_mlp(), tmp_path / "parts", max_memory="10MB")
    assert len(found.manifest.parts) == 1
    assert "one part" in found.notes[0]


def test_a_budget_that_can_not_be_kept_is_told_with_the_one_that_can(tmp_path):
    with pytest.raises(LimitError, match=r"MatMul node 'matmul\d'.*\((\d+) bytes\)") as caught:
        oc.split(_mlp(), tmp_path / "parts", max_memory=10_000)
    assert not (tmp_path / "parts").exists()
    smallest = int(str(caught.value).split("--max-memory ")[1].split(",")[0])
    with pytest.raises(LimitError):
        oc.split(_mlp(), tmp_path / "parts", max_memory=smallest - 1)
    found = oc.split(_mlp(), tmp_path / "parts", max_memory=smallest)
    assert found.manifest.peak_bytes <= smallest


def test_more_parts_than_places_are_told(tmp_path):
    found = oc.split(_mlp(2), tmp_path / "parts", parts=9)
    assert len(found.manifest.parts) == 4
    assert found.notes == ("4 and not 9 parts: there is no further place to cut",)


def test_a_shared_weight_is_stored_once(tmp_path):
    alone = oc.split(_mlp(), tmp_path / "alone", parts=3)
    found = oc.split(_mlp(shared=True), tmp_path / "shared", parts=3)
    sizes = [sum(f.bytes for n, f in x.manifest.files.items() if n.endswith(".data")) for x in (alone, found)]
    assert sizes == [6 * 16384, 16384]
    assert {name for part in found.manifest.parts for name in part.data} == {"shared-000.data"}
    _equal(_mlp(shared=True), tmp_path / "shared", {"h0": floats(2, 64)})


def test_cuts_are_made_at_names(tmp_path):
    found = oc.split(_mlp(), tmp_path / "parts", at=["h4", "m1"])
    assert [part.outputs for part in found.manifest.parts] == [["m1"], ["h4"], ["h6"]]
    _equal(_mlp(), tmp_path / "parts", {"h0": floats(2, 64)})


def test_a_part_before_a_name_holds_what_it_needs_and_no_more(tmp_path):
    model = from_text("g (float[2] x) => (float[2] y) { a = Relu(x) b = Neg(x) c = Exp(a) y = Add(b, c) }")
    found = oc.split(model, tmp_path / "parts", at=["c"])
    assert [part.nodes for part in found.manifest.parts] == [2, 2]
    assert sorted(found.manifest.parts[1].inputs) == ["c", "x"]
    _equal(model, tmp_path / "parts", {"x": floats(2)})


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["h33"], "no value 'h33'.*'h3'"),
        (["h0"], "is an input"),
        (["h6"], "nothing comes after"),
        (["s"], "made anew"),
        (["q"], "inside of an If"),
    ],
)
def test_names_that_are_no_place_to_cut(names, reason, tmp_path):
    model = _mlp()
    model.graph.node.insert(0, helper.make_node("Shape", ["h0"], ["s"]))
    branch = helper.make_graph(
        [helper.make_node("Neg", ["h6"], ["q"]), helper.make_node("Neg", ["q"], ["p"])],
        "b",
        [],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, None)],
    )
    if names == ["q"]:
        model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
        model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
        model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, None))
    with pytest.raises(UsageError, match=reason):
        oc.split(model, tmp_path / "parts", at=names)


def test_places_to_cut_are_suggested_with_what_they_cost():
    model = _mlp()
    narrow = onnx.numpy_helper.from_array(floats(64, 4), "narrow")
    wide = onnx.numpy_helper.from_array(floats(4, 64), "wide")
    model.graph.initializer.extend([narrow, wide])
    model.graph.node[4].input[0] = "back"
    model.graph.node.insert(4, helper.make_node("MatMul", ["h2", "narrow"], ["neck"]))
    model.graph.node.insert(5, helper.make_node("MatMul", ["neck", "wide"], ["back"]))
    found = split_job.suggest(model, data={"h0": floats(8, 64)[None]})
    assert found.input_bytes == 8 * 64 * 4
    assert found.sizes == {"h0": [8, 64]}
    (neck,) = [cut for cut in found.cuts if cut.name == "neck"]
    assert neck.sent == ("neck",)
    assert neck.sent_bytes == 8 * 4 * 4
    assert neck.macs == (8 * (2 * 64 * 64 + 64 * 4), 8 * (4 * 64 * 64 + 64 * 4))
    assert neck.weight_bytes == (2 * 16384 + 1024, 4 * 16384 + 1024)
    assert json.loads(json.dumps(found.as_json()))["cuts"][0]["name"] == found.cuts[0].name
    assert len(split_job.suggest(model, most=2).cuts) == 2


def test_an_if_stays_whole_with_what_it_captures_and_a_sequence_is_not_handed_over(tmp_path):
    model = from_text(
        """
        g (bool c, float[n, 4] x) => (float[m, 4] y)
        {
          a = Neg(x)
          b = If(c)<
            then_branch = t () => (float[k, 4] p) <float[4] w = {1, 2, 3, 4}> { q = Add(a, w) p = Exp(q) },
            else_branch = e () => (float[k, 4] o) { o = Abs(a) }
          >
          s = SplitToSequence<axis=0>(b)
          d = ConcatFromSequence<axis=0>(s)
          y = Relu(d)
        }
        """
    )
    found = oc.split(model, tmp_path / "parts", parts=8)
    assert len(found.manifest.parts) == 4
    for truth in (True, False):
        _equal(model, tmp_path / "parts", {"c": np.array(truth), "x": floats(2, 4)})
    with pytest.raises(UsageError, match=r"^--at: 's' can't be passed from part to part$"):
        oc.split(model, tmp_path / "other", at=["s"])


def test_a_step_that_captures_many_values_is_written_the_same_each_time(tmp_path):
    captured = [f"v{i:02}" for i in range(12)]
    total = f"s = Sum({', '.join(captured)})"
    model = from_text(
        f"""g (bool c, float[24, 4] x) => (float[2, 4] y) {{
          {", ".join(captured)} = Split(x)
          y = If (c) <then_branch = t () => (float[2, 4] s) {{ {total} }},
                      else_branch = e () => (float[2, 4] r) {{ r = Neg(v00) }}> }}"""
    )
    folders = [tmp_path / str(i) for i in range(3)]
    for folder in folders:
        oc.split(model, folder, at=["v11"])
    found = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders]
    assert found[0] == found[1] == found[2]
    assert manifest.read(folders[0]).parts[1].inputs == ["c", *captured]


def test_outputs_that_are_constants_inputs_or_made_early(tmp_path):
    model = from_text(
        """
        g (float[2] x) => (float[2] early, float[2] x, float[2] k, float[2] y)
        <float[2] k = {1, 2}>
        { early = Neg(x) a = Exp(early) b = Abs(a) y = Add(b, k) }
        """
    )
    oc.split(model, tmp_path / "parts", parts=3)
    feed = {"x": floats(2)}
    with oc.PartitionedModel(tmp_path / "parts") as parts:
        early, x, k, y = parts.run(None, feed)
    assert early.tolist() == (-feed["x"]).tolist()
    assert x.tolist() == feed["x"].tolist()
    assert k.tolist() == [1, 2]
    np.testing.assert_allclose(y, np.exp(-feed["x"]) + np.array([1, 2]), rtol=1e-6)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_inputs_with_a_default_keep_it(ir_version, tmp_path):
    model = _mlp(2)
    model.ir_version = ir_version
    model.graph.input.extend(
        helper.make_tensor_value_info(w.name, TensorProto.FLOAT, w.dims) for w in model.graph.initializer
    )
    model.opset_import[0].version = 8 if ir_version == 3 else 17
    oc.split(model, tmp_path / "parts", parts=2)
    _equal(model, tmp_path / "parts", {"h0": floats(2, 64)})
    if ir_version == 8:
        feed = {"h0": floats(2, 64), "w1": floats(64, 64, seed=9)}
        _equal(model, tmp_path / "parts", feed)


def test_operators_that_inference_does_not_know_and_weights_of_four_bits(tmp_path):
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 255, (32, 2, 16), np.uint8)
    int4 = ir.tensor(rng.integers(-8, 8, (32, 64)).astype(np.int8)).numpy()
    weight = helper.make_tensor("q", TensorProto.INT4, [32, 64], int4.reshape(-1))
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", "b", "bs"], ["a"], domain="com.microsoft", K=64, N=32, bits=4, block_size=32
        ),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"]),
        helper.make_node("MatMul", ["r", "w"], ["m"]),
        helper.make_node("Neg", ["m"], ["y"]),
    ]
    arrays = {"b": blocks, "bs": floats(32, 2), "s": np.array(0.1, np.float32)}
    graph = helper.make_graph(
        nodes,
        "low",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [weight, *(onnx.numpy_helper.from_array(array, name) for name, array in arrays.items())],
    )
    imports = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=10)
    found = oc.split(model, tmp_path / "parts", parts=4)
    assert len(found.manifest.parts) == 4
    packed = [part.packs for part in found.manifest.parts]
    assert packed[0]
    assert not packed[-1]
    _equal(model, tmp_path / "parts", {"x": floats(3, 64)})


def test_a_function_is_called_in_the_part_that_needs_it(tmp_path):
    text = """
    <ir_version: 8, opset_import: ["" : 17, "own" : 1]>
    g (float[2] x) => (float[2] y) { a = own.twice(x) b = Exp(a) c = Neg(b) y = own.twice(c) }
    <domain: "own", opset_import: ["" : 17]>
    twice (i) => (o) { o = Add(i, i) }
    """
    model = onnx.parser.parse_model(text)
    oc.split(model, tmp_path / "parts", parts=4)
    _equal(model, tmp_path / "parts", {"x": floats(2)})
    stored = [onnx.load(tmp_path / "parts" / f"part-{i:03d}.onnx") for i in range(4)]
    assert [len(part.functions) for part in stored] == [1, 0, 0, 1]


def test_the_same_model_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        oc.split(_mlp(), tmp_path / name, parts=3)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 7
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in files)


def test_a_folder_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    target = tmp_path / "parts"
    oc.split(_mlp(), target, parts=2)
    before = sorted(path.name for path in target.iterdir())
    with pytest.raises(UsageError, match="--force"):
        oc.split(_mlp(), target, parts=3)

    def broken(*args, **options):
        raise KeyboardInterrupt

    for place, name in ((atomic_files.PendingFolder, "commit"), (check, "proved")):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, broken)
            with pytest.raises(KeyboardInterrupt):
                oc.split(_mlp(), target, parts=3, force=True)
        assert sorted(path.name for path in target.iterdir()) == before
        assert [path.name for path in tmp_path.iterdir()] == ["parts"]
    oc.split(_mlp(), target, parts=3, force=True)
    assert len(list(target.glob("*.onnx"))) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_what_a_crash_left_is_removed(tmp_path):
    left = tmp_path / ".parts.999999999.0123456789ab.tmp"
    left.mkdir()
    (left / "part-000.onnx").write_bytes(b"half")
    oc.split(_mlp(), tmp_path / "parts", parts=2)
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]


def test_folders_that_are_not_replaced(tmp_path):
    (tmp_path / "home" / "sub").mkdir(parents=True)
    with pytest.raises(UsageError, match="has folders in it"):
        oc.split(_mlp(), tmp_path / "home", parts=2, force=True)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="is no folder"):
        oc.split(_mlp(), tmp_path / "file", parts=2, force=True)
    (tmp_path / "models").mkdir()
    onnx.save(_mlp(), tmp_path / "models" / "m.onnx")
    with pytest.raises(UsageError, match="holds the model"):
        oc.split(tmp_path / "models" / "m.onnx", tmp_path / "models", parts=2, force=True)
    assert oc.split(_mlp(), tmp_path / "new" / "parts", parts=2).folder.is_dir()


def test_parts_that_give_something_else_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(check, "_same", lambda *_: False)
    with pytest.raises(ModelError, match="something else than the whole model for output 'h6'"):
        oc.split(_mlp(), tmp_path / "parts", parts=2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options", [{}, {"parts": 2, "max_memory": 9}, {"parts": 0}, {"max_memory": 0}, {"max_memory": "many"}]
)
def test_how_to_split_has_to_be_said_once_and_rightly(options, tmp_path):
    with pytest.raises(UsageError):
        oc.split(_mlp(), tmp_path / "parts", **options)


def test_weights_in_constant_nodes_go_into_data_files(tmp_path):
    model = _mlp()
    for weight in list(model.graph.initializer):
        node = helper.make_node("Constant", [], [weight.name])
        node.attribute.append(helper.make_attribute("value", weight))
        model.graph.node.insert(0, node)
    model.graph.ClearField("initializer")
    found = oc.split(model, tmp_path / "parts", parts=3)
    assert all(found.manifest.files[part.file].bytes < 2000 for part in found.manifest.parts)
    assert all(len(part.data) == 1 for part in found.manifest.parts)
    _equal(model, tmp_path / "parts", {"h0": floats(2, 64)})


def test_the_peak_includes_what_waits_for_later_parts(tmp_path):
    text = "g (float[n, 4096] x) => (float[n, 4096] y) { a = Relu(x) b = Neg(a) c = Exp(b) d = Abs(c) y = Add(d, a) }"
    found = oc.split(from_text(text), tmp_path / "parts", at=["b", "c"], data={"x": floats(1, 4096)[None]})
    peaks = [part.peak_bytes // 16384 for part in found.manifest.parts]
    assert peaks == [5, 4, 4]  # x, a and b and a copy of each; a, b, c and a copy of it; a, c, d, y


def test_a_model_that_the_runtime_refuses_is_told_without_temporary_names(tmp_path):
    model = _mlp(2)
    model.graph.node[1].op_type, model.graph.node[1].domain = "Unheard", "own"
    model.opset_import.append(helper.make_opsetid("own", 1))
    with pytest.raises(ModelError, match=r"^onnxruntime can't load the model: .*Unheard"):
        oc.split(model, tmp_path / "parts", parts=2)
    assert not list(tmp_path.iterdir())
