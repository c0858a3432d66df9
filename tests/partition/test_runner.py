"""The runner: what it keeps, frees and loads ahead, and how it tells what is wrong."""

import json
import threading
import zlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxcompress as oc
from onnxcompress.errors import DataError, LimitError, ModelError, UsageError
from onnxcompress.partition import manifest
from onnxcompress.runtime import processes
from onnxcompress.runtime import session as runtime
from tests.helpers import floats

WEIGHT_BYTES = 64 * 64 * 4
FEED = {"x": floats(2, 64)}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return four parts of a MatMul with 16 KB each; the second one also gives the output `side`."""
    nodes, weights = [], []
    for i in range(4):
        nodes.append(helper.make_node("MatMul", ["x" if i == 0 else f"h{i}", f"w{i}"], [f"h{i + 1}"], name=f"n{i}"))
        weights.append(onnx.numpy_helper.from_array(floats(64, 64, seed=i) / 8, f"w{i}"))
    nodes.insert(2, helper.make_node("Neg", ["h2"], ["side"]))
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", 64])],
        [value("h4", TensorProto.FLOAT, ["n", 64]), value("side", TensorProto.FLOAT, ["n", 64])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    folder = tmp_path_factory.mktemp("split") / "parts"
    oc.split(model, folder, at=["h1", "side", "h3"])
    return model, folder


@pytest.fixture
def folder(made, tmp_path):
    """Return a copy of the parts that a test may damage."""
    copy = tmp_path / "parts"
    copy.mkdir()
    for path in made[1].iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def _expected(made):
    return runtime.open_session(made[0].SerializeToString(), optimize=False).run(FEED)


def _edit(folder, change):
    path = folder / manifest.FILE_NAME
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def _budget(parts_beside):
    return int(WEIGHT_BYTES * (1.25 + parts_beside))


@pytest.mark.parametrize("prefetch", [True, False])
@pytest.mark.parametrize("budget", [None, _budget(0), _budget(1), _budget(2)])
def test_outputs_are_the_same_under_every_budget(made, prefetch, budget):
    expected = _expected(made)
    with oc.PartitionedModel(made[1], max_memory=budget, optimize=False, prefetch=prefetch) as parts:
        for _ in range(3):
            h4, side = parts.run(None, FEED)
            assert h4.tobytes() == expected["h4"].tobytes()
            assert side.tobytes() == expected["side"].tobytes()
        if budget is None:
            assert parts.loaded == (0, 1, 2, 3)
            assert parts.loads == 4
    assert parts.loaded == ()


def test_without_room_each_part_is_loaded_for_each_run(made):
    with oc.PartitionedModel(made[1], max_memory=_budget(0)) as parts:
        for _ in range(2):
            parts.run(None, FEED)
        assert len(parts.loaded) == 1
        assert parts.loads == 8
        assert parts.prefetches == 0


def test_what_fits_is_kept_and_the_part_whose_turn_is_farthest_goes(made):
    with oc.PartitionedModel(made[1], max_memory=_budget(2), prefetch=False) as parts:
        parts.run(None, FEED)
        assert parts.loaded == (0, 1, 3)  # least recently used would have kept 1, 2, 3 and load all the next time
        for loads in (5, 6):
            parts.run(None, FEED)
            assert parts.loads == loads


def test_the_next_part_is_loaded_while_one_runs_where_both_fit(made):
    with oc.PartitionedModel(made[1], max_memory=_budget(1)) as parts:
        parts.run(None, FEED)
        assert parts.prefetches == 3
        assert len(parts.loaded) == 2
    with oc.PartitionedModel(made[1], max_memory=_budget(1), prefetch=False) as parts:
        parts.run(None, FEED)
        assert parts.prefetches == 0


def test_a_budget_may_be_text_and_has_to_hold_the_largest_part(made):
    with oc.PartitionedModel(made[1], max_memory="1MB") as parts:
        parts.run(None, FEED)
        assert parts.loaded == (0, 1, 2, 3)
    with pytest.raises(LimitError, match=r"part-001.onnx alone needs 1\d\.\d KB") as caught:
        oc.PartitionedModel(made[1], max_memory="9KB")
    assert caught.value.exit_code == 1
    for wrong in (0, "much"):
        with pytest.raises(UsageError, match="max_memory"):
            oc.PartitionedModel(made[1], max_memory=wrong)


def test_only_parts_that_an_output_needs_are_run(made):
    with oc.PartitionedModel(made[1], optimize=False) as parts:
        (side,) = parts.run(["side"], FEED)
        assert parts.loaded == (0, 1)
        assert side.tobytes() == _expected(made)["side"].tobytes()
        assert [array.shape for array in parts.run(["side", "h4"], FEED)] == [(2, 64), (2, 64)]
        with pytest.raises(UsageError, match=r"no output 'h1'\. There are h4, side"):
            parts.run(["h1"], FEED)


def test_inputs_and_outputs_are_told_as_a_session_tells_them(made):
    with oc.PartitionedModel(made[1]) as parts:
        session = runtime.open_session(made[0].SerializeToString(), optimize=False)
        assert parts.get_inputs() == list(session.inputs)
        assert parts.get_outputs() == list(session.outputs)


@pytest.mark.parametrize(
    ("feed", "reason"),
    [
        ({}, "input 'x' float32 .* is not fed"),
        ({"x": floats(2, 64), "z": floats(2)}, "no input 'z'"),
        ({"x": floats(2, 64).astype(np.float64)}, r"is fed float64 \[2, 64\]"),
        ({"x": floats(2, 65)}, r"is fed \[2, 65\]"),
        ({"x": floats(64)}, r"is fed \[64\]"),
    ],
)
def test_feeds_that_do_not_fit(made, feed, reason):
    with oc.PartitionedModel(made[1]) as parts, pytest.raises(DataError, match=reason):
        parts.run(None, feed)


def test_a_missing_part_is_told(folder):
    (folder / "part-002.onnx").unlink()
    with oc.PartitionedModel(folder) as parts, pytest.raises(ModelError, match=r"part-002\.onnx: is missing"):
        parts.run(None, FEED)


@pytest.mark.parametrize("name", ["part-001.data", "part-001.onnx"])
@pytest.mark.parametrize("prefetch", [True, False])
def test_a_damaged_part_is_told_and_one_cut_short(folder, name, prefetch):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with oc.PartitionedModel(folder, prefetch=prefetch) as parts:
        for _ in range(2):
            with pytest.raises(ModelError, match=rf"{name}: is damaged"):
                parts.run(None, FEED)
        (folder / name).write_bytes(content[:-1])
        with pytest.raises(ModelError, match=rf"{name}: has \d+ bytes and should have"):
            parts.run(None, FEED)


def test_a_file_is_checked_again_when_it_has_changed(folder):
    with oc.PartitionedModel(folder, max_memory=_budget(0)) as parts:
        parts.run(None, FEED)
        content = bytearray((folder / "part-000.data").read_bytes())
        content[5] ^= 1
        (folder / "part-000.data").write_bytes(content)
        with pytest.raises(ModelError, match="is damaged"):
            parts.run(None, FEED)


def test_links_do_not_lead_out_of_the_folder(folder, tmp_path):
    (folder / "part-000.data").rename(tmp_path / "elsewhere")
    (folder / "part-000.data").symlink_to(tmp_path / "elsewhere")
    with oc.PartitionedModel(folder) as parts, pytest.raises(ModelError, match="is a link"):
        parts.run(None, FEED)


@pytest.mark.parametrize("name", ["../part-000.onnx", "/etc/passwd", "..", "sub/part.onnx", "a\\b", ".hidden", ""])
def test_names_in_the_manifest_do_not_lead_out_of_the_folder(folder, name):
    for place in ("file", "data"):

        def change(document, place=place):
            document["parts"][0][place] = name if place == "file" else [name]
            document["files"][name] = document["files"]["part-000.onnx"]

        saved = (folder / manifest.FILE_NAME).read_bytes()
        _edit(folder, change)
        with pytest.raises(ModelError, match="is damaged, or of another version"):
            oc.PartitionedModel(folder)
        (folder / manifest.FILE_NAME).write_bytes(saved)


def test_a_part_does_not_refer_to_files_outside(folder, tmp_path):
    (tmp_path / "secret").write_bytes((folder / "part-000.data").read_bytes())
    path = folder / "part-000.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.initializer[0].external_data[0].value = "../secret"
    content = model.SerializeToString()
    path.write_bytes(content)

    def change(document):
        document["files"]["part-000.onnx"] |= {"bytes": len(content), "crc32": f"{zlib.crc32(content):08x}"}

    _edit(folder, change)
    with oc.PartitionedModel(folder) as parts, pytest.raises(ModelError, match=r"'\.\./secret', which the manifest"):
        parts.run(None, FEED)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda d: d.update(schema=2), "schema"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["parts"].clear(), "parts"),
        (lambda d: d["parts"].reverse(), "nothing before it makes its input"),
        (lambda d: d["files"].pop("part-001.data"), "'part-001.data' is not listed"),
        (lambda d: d["parts"].pop(), "no part makes output 'h4'"),
        (lambda d: d["values"].clear(), "type and shape of its output 'h1'"),
        (lambda d: d["parts"][1]["outputs"].append("h1"), "'h1' is made before"),
    ],
)
def test_a_manifest_that_does_not_hold_together(folder, change, reason):
    _edit(folder, change)
    with pytest.raises(ModelError, match=reason):
        oc.PartitionedModel(folder)


def test_a_folder_without_a_manifest_or_with_another_file(tmp_path):
    with pytest.raises(ModelError, match="not a split model"):
        oc.PartitionedModel(tmp_path)
    (tmp_path / manifest.FILE_NAME).write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="is damaged"):
        oc.PartitionedModel(tmp_path)


@pytest.mark.parametrize("change", [{"type": "tensor(double)"}, {"shape": ["n", 65]}, {"shape": [64]}])
def test_type_and_shape_of_what_flows_are_checked(folder, change):
    def edit(document):
        next(value for value in document["values"] if value["name"] == "h1").update(change)

    _edit(folder, edit)
    with oc.PartitionedModel(folder) as parts, pytest.raises(ModelError, match=r"gives float32 \[2, 64\] for 'h1'"):
        parts.run(None, FEED)


def test_threads_take_turns(made):
    expected = _expected(made)["h4"].tobytes()
    found = []
    with oc.PartitionedModel(made[1], max_memory=_budget(1), optimize=False, threads=2) as parts:
        workers = [
            threading.Thread(target=lambda: found.append(parts.run(["h4"], FEED)[0].tobytes())) for _ in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert found == [expected] * 4


def test_closing_frees_and_a_later_run_loads_again(made):
    parts = oc.PartitionedModel(made[1])
    parts.run(None, FEED)
    parts.close()
    assert parts.loaded == ()
    parts.run(None, FEED)
    assert parts.loads == 8
    parts.close()


def _run_in_budget(folder, budget):
    with oc.PartitionedModel(folder, max_memory=budget, optimize=False) as parts:
        for _ in range(2):
            (out,) = parts.run(None, {"x": np.ones((1, 2048), np.float32)})
        return float(out.sum()), parts.loads


def test_the_process_stays_within_the_budget(tmp_path):
    count, size = 11, 2048 * 2048 * 4
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("MatMul", ["x" if i == 0 else f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(count)]
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [1, 2048])], [value(f"h{count}", TensorProto.FLOAT, [1, 2048])]
    )
    for i in range(count):
        tensor = graph.initializer.add(name=f"w{i}", dims=[2048, 2048], data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", "m.data"), ("offset", i * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(text))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "m.onnx")
    with (tmp_path / "m.data").open("wb") as file:
        file.truncate(count * size)  # zeros that take no room
    budget = count * size // 8  # below two parts
    split = processes.call_isolated(_split, tmp_path / "m.onnx", tmp_path / "parts", budget, timeout_seconds=100)
    assert split.value == count
    assert split.peak_memory_bytes < 350e6
    done = processes.call_isolated(_run_in_budget, tmp_path / "parts", budget, timeout_seconds=100)
    assert done.value == (0.0, 2 * count)
    assert done.peak_memory_bytes < budget + 150e6  # 173 MB; all parts at once take 185 MB and what Python takes


def _split(path, folder, budget):
    return len(oc.split(path, folder, max_memory=budget).manifest.parts)
