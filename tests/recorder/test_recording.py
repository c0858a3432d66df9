"""Recordings made in this process, by every way to run a session, and what other commands make of them."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto as T
from onnx import helper

import onnxcompress as oc
from onnxcompress.data import evaluation_set
from onnxcompress.data.evaluation_set import DataOptions
from onnxcompress.errors import DataError, UsageError
from onnxcompress.recorder import catalogue, identity
from onnxcompress.recorder.recording import Recorder, recording
from onnxcompress.runtime.session import open_session

from .decoders import WIDTH, decoder, encoder


def steps(session, count, *, seed=0):
    """Feed a decoder a prompt and then its own cache."""
    random = np.random.default_rng(seed)
    past, length = np.zeros((1, 0, WIDTH), np.float32), 3
    for _ in range(count):
        mask = np.ones((1, past.shape[1] + length), np.float32)
        feed = {"ids": random.integers(0, 32, (1, length)), "past": past, "mask": mask}
        past = session.run(["present"], feed)[0]
        length = 1


def read(feeds, model):
    specs = open_session(Path(model), optimize=False).feedable
    return evaluation_set.read(feeds, specs, DataOptions(), model=model)


def test_a_block_is_recorded_and_the_runtime_is_as_before_after_it(tmp_path):
    model = decoder(tmp_path / "m.onnx")
    before = vars(ort.InferenceSession).copy()
    opened_before = ort.InferenceSession(model)
    with oc.recording(tmp_path / "feeds"):
        steps(opened_before, 4)
        steps(ort.InferenceSession(model.read_bytes()), 3)
    assert vars(ort.InferenceSession) == before
    steps(opened_before, 2)
    [found] = catalogue.read(tmp_path / "feeds")
    assert (found.samples, found.runs) == (7, 7)


def test_every_way_to_run_is_recorded_or_named(tmp_path):
    model = decoder(tmp_path / "m.onnx")
    feed = {"ids": np.zeros((1, 2), np.int64), "past": np.ones((1, 1, WIDTH), "f"), "mask": np.ones((1, 3), "f")}
    with recording(tmp_path / "feeds"):
        session = ort.InferenceSession(model)
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feed.items()}
        session.run_with_ort_values(None, values)
        binding = session.io_binding()
        binding.bind_cpu_input("ids", feed["ids"])
        binding.bind_ortvalue_input("past", values["past"])
        mask = feed["mask"]
        binding.bind_input("mask", "cpu", 0, np.float32, mask.shape, mask.ctypes.data)
        binding.bind_output("present")
        session.run_with_iobinding(binding)
        present = binding.get_outputs()[0]
        binding.bind_ortvalue_input("past", present)
        longer = np.ones((1, 5), "f")
        binding.bind_cpu_input("mask", longer)
        binding.bind_output("present")
        binding.bind_output("logits")
        session.run_with_iobinding(binding)
        done = []
        session.run_async(None, feed, lambda results, data, error: done.append((results, data, error)), "x")
        while not done:
            pass
        assert done[0][1:] == ("x", "")
    [found] = catalogue.read(tmp_path / "feeds")
    assert found.samples == 4
    assert dict(found.states) == {"past": "present"}
    kept = [np.load(path) for path in sorted(found.folder.glob("*.npz"))]
    for sample in (kept[0], kept[1], kept[3]):
        assert {name: sample[name].tolist() for name in feed} == {name: array.tolist() for name, array in feed.items()}


def test_a_run_that_the_runtime_refuses_is_not_kept(tmp_path):
    with recording(tmp_path / "feeds"):
        session = ort.InferenceSession(encoder(tmp_path / "m.onnx"))
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            session.run(None, {"sound": np.zeros((1, 2, 3), "f")})
    [found] = catalogue.read(tmp_path / "feeds")
    assert found.samples == 0
    assert [path.name for path in found.folder.iterdir()] == ["index.json"]
    with pytest.raises(DataError, match="no sample of this model"):
        read(tmp_path / "feeds", tmp_path / "m.onnx")


def test_what_can_not_be_stored_is_named_once(tmp_path):
    values = helper.make_tensor_sequence_value_info("parts", T.FLOAT, None)
    out = helper.make_tensor_value_info("all", T.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("ConcatFromSequence", ["parts"], ["all"], axis=0)], "g", [values], [out]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    with recording(tmp_path / "feeds"):
        session = ort.InferenceSession(tmp_path / "m.onnx")
        for _ in range(3):
            session.run(None, {"parts": [np.ones(2, "f"), np.ones(3, "f")]})
    [found] = catalogue.read(tmp_path / "feeds")
    assert len(found.notes) == 1
    assert "'parts' is seq(tensor(float))" in found.notes[0]


def test_texts_and_numbers_are_stored(tmp_path):
    specs = [("words", T.STRING, ["n"]), ("k", T.INT64, [])]
    inputs = [helper.make_tensor_value_info(*spec) for spec in specs]
    outputs = [helper.make_tensor_value_info(f"{name}_out", *rest) for name, *rest in specs]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name, *_ in specs]
    model = helper.make_model(
        helper.make_graph(nodes, "g", inputs, outputs), opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    onnx.save(model, tmp_path / "m.onnx")
    with recording(tmp_path / "feeds"):
        ort.InferenceSession(tmp_path / "m.onnx").run(
            None, {"words": np.array(["a", "längeres"], object), "k": np.array(3)}
        )
    [feed] = list(read(tmp_path / "feeds", tmp_path / "m.onnx").feeds)
    assert feed["words"].tolist() == ["a", "längeres"]
    assert feed["k"] == 3


def test_models_of_one_name_are_kept_apart_and_told_by_content(tmp_path):
    (tmp_path / "other").mkdir()
    first, second = encoder(tmp_path / "m.onnx"), encoder(tmp_path / "other" / "m.onnx", seed=1)
    third = encoder(tmp_path / "third.onnx", seed=2)
    with recording(tmp_path / "feeds"):
        for length, path in ((1, first), (2, second)):
            ort.InferenceSession(path).run(None, {"sound": np.ones((1, length, WIDTH), "f")})
    assert len(catalogue.read(tmp_path / "feeds")) == 2
    for length, path in ((1, first), (2, second)):
        assert read(tmp_path / "feeds", path).feeds[0]["sound"].shape[1] == length
    with pytest.raises(DataError, match=r"none of which is this model.*--data .*m"):
        read(tmp_path / "feeds", third)
    assert len(read(tmp_path / "feeds" / "m", third).feeds) == 1


def test_weights_beside_the_file_are_part_of_what_a_model_is(tmp_path):
    model = onnx.load(encoder(tmp_path / "m.onnx"))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    before = identity.of_file(tmp_path / "m.onnx")
    raw = bytearray((tmp_path / "weights.bin").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "weights.bin").write_bytes(raw)
    after = identity.of_file(tmp_path / "m.onnx")
    assert before.sha256 == after.sha256
    assert not before.matches(after)
    assert identity.of_bytes((tmp_path / "m.onnx").read_bytes(), str(tmp_path)).matches(after)
    assert identity.of_bytes((tmp_path / "m.onnx").read_bytes(), "nowhere").matches(after)


def test_states_are_known_and_do_not_decide_the_loss(tmp_path):
    model = decoder(tmp_path / "m.onnx")
    with recording(tmp_path / "feeds"):
        session = ort.InferenceSession(model)
        for seed in range(4):
            steps(session, 6, seed=seed)
    judged = read(tmp_path / "feeds", model)
    assert judged.caches == ("present",)
    assert judged.state == {}
    assert {feed["past"].shape[1] for feed in judged.feeds} == {0, 3, 4, 5, 6, 7}
    found = oc.compare(model, decoder(tmp_path / "n.onnx", seed=3), data=str(tmp_path / "feeds"))
    assert found.quality.outputs["present"].kind == "state"
    assert found.quality.output == "logits"
    small = oc.compress(model, recipe="int8-weights", data=str(tmp_path / "feeds"))
    assert small.report.quality.outputs["present"].kind == "state"


def test_an_output_handed_to_another_models_cache_is_no_result_there(tmp_path):
    prompt, step = decoder(tmp_path / "prompt.onnx"), decoder(tmp_path / "step.onnx")
    model = onnx.load(step)
    model.doc_string = "another file"
    onnx.save(model, step)
    with recording(tmp_path / "feeds"):
        first, second = ort.InferenceSession(prompt), ort.InferenceSession(step)
        feed = {"ids": np.ones((1, 2), int), "past": np.zeros((1, 0, WIDTH), "f"), "mask": np.ones((1, 2), "f")}
        logits, past = first.run(None, feed)
        for length in range(3, 6):
            feed = {"ids": logits[:, -1:].argmax(-1), "past": past, "mask": np.ones((1, length), "f")}
            logits, past = second.run(None, feed)
    models = {each.folder.name: each for each in catalogue.read(tmp_path / "feeds")}
    assert dict(models["step"].sources) == {"past": ("prompt", "present")}
    assert models["prompt"].caches == ("present",)


def test_equal_constants_are_no_state(tmp_path):
    with recording(tmp_path / "feeds"):
        session = ort.InferenceSession(encoder(tmp_path / "m.onnx"))
        for _ in range(4):
            session.run(None, {"sound": np.zeros((1, 2, WIDTH), "f")})
    assert dict(catalogue.read(tmp_path / "feeds")[0].states) == {}


def test_shapes_are_spread_and_the_prompt_is_kept(tmp_path):
    with recording(tmp_path / "feeds", keep="shapes", most=6):
        session = ort.InferenceSession(decoder(tmp_path / "m.onnx"))
        for seed in range(3):
            steps(session, 30, seed=seed)
    lengths = [np.load(path)["past"].shape[1] for path in (tmp_path / "feeds" / "m").glob("*.npz")]
    assert len(set(lengths)) == 6
    assert 0 in lengths


def test_a_wrapped_session_is_recorded_without_touching_the_runtime(tmp_path):
    model = decoder(tmp_path / "m.onnx")
    recorder = Recorder(tmp_path / "feeds")
    wrapped = recorder.wrap(ort.InferenceSession(model), model)
    steps(wrapped, 3)
    recorder.close()
    assert [spec.name for spec in wrapped.get_inputs()] == ["ids", "past", "mask"]
    [found] = catalogue.read(tmp_path / "feeds")
    assert (found.samples, dict(found.states)) == (3, {"past": "present"})


def test_a_folder_that_is_not_empty_is_replaced_only_with_force_and_only_a_recording(tmp_path):
    Recorder(tmp_path / "feeds").close()
    with pytest.raises(UsageError, match="not empty"):
        Recorder(tmp_path / "feeds")
    Recorder(tmp_path / "feeds", force=True).close()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("all of it")
    with pytest.raises(UsageError, match="holds no recording"):
        Recorder(tmp_path / "other", force=True)
    (tmp_path / "feeds" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is of no recording"):
        Recorder(tmp_path / "feeds", force=True)
    assert (tmp_path / "feeds" / "notes.txt").read_text() == "mine"


def test_a_damaged_index_is_named(tmp_path):
    with recording(tmp_path / "feeds"):
        ort.InferenceSession(encoder(tmp_path / "m.onnx")).run(None, {"sound": np.ones((1, 1, WIDTH), "f")})
    index = tmp_path / "feeds" / "m" / "index.json"
    content = json.loads(index.read_text())
    del content["links"]
    index.write_text(json.dumps(content))
    with pytest.raises(DataError, match="damaged"):
        read(tmp_path / "feeds", tmp_path / "m.onnx")
    index.write_text("{")
    with pytest.raises(DataError, match="can't be read"):
        read(tmp_path / "feeds", tmp_path / "m.onnx")


def test_a_fault_of_recording_does_not_reach_the_program(tmp_path, monkeypatch):
    from onnxcompress.recorder import store

    def full(*_):
        raise OSError(28, "No space left on device")

    with recording(tmp_path / "feeds"):
        session = ort.InferenceSession(encoder(tmp_path / "m.onnx"))
        monkeypatch.setattr(store, "_write_npz", full)
        assert session.run(None, {"sound": np.ones((1, 1, WIDTH), "f")})[0].shape == (1, 1, WIDTH)
    assert "No space left" in catalogue.faults(tmp_path / "feeds")[0]
    assert catalogue.read(tmp_path / "feeds")[0].samples == 0
