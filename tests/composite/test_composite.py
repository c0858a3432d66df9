"""Pipelines as values: layouts, drivers with and without a cache, samples, and how a loss is shared out."""

import json
import shutil
import sys

import numpy as np
import pytest

import onnxcompress as oc
from onnxcompress.composite import caches, layouts, memory
from onnxcompress.composite import samples as pipeline_samples
from onnxcompress.composite.decoding import CausalGeneration, CausalLoss, EncoderDecoder
from onnxcompress.composite.embeddings import SentenceEncoder
from onnxcompress.composite.sessions import PartSession
from onnxcompress.composite.shares import PartOption, choose
from onnxcompress.composite.whole import WholeScale, run_whole
from onnxcompress.data.evaluation_set import DataOptions
from onnxcompress.errors import DataError, ModelError, UsageError
from onnxcompress.quality.task.known import task_metric
from onnxcompress.runtime import session as runtime
from tests.composite import toys


@pytest.fixture
def folder(tmp_path):
    return toys.translation(tmp_path / "model")


def _predictions(pipeline, samples):
    found = pipeline_samples.read(samples, pipeline.inputs, DataOptions())
    return run_whole(pipeline, pipeline.parts, found).predictions


def _by_hand(folder, x):
    """Decode without a cache: all tokens anew at each step, by the first decoder."""
    encoder = PartSession.opened(folder / "encoder_model.onnx")
    decoder = PartSession.opened(folder / "decoder_model.onnx")
    states, tokens = encoder.run(None, {"x": x})[0], [0]
    while len(tokens) <= 12:
        logits = decoder.run(["logits"], {"input_ids": np.array([tokens]), "encoder_hidden_states": states})[0]
        token = int(logits[0, -1].argmax())
        if token == toys.END:
            break
        tokens.append(token)
    return tokens[1:]


def test_encoder_and_decoder_with_a_cache_decode_as_without(folder):
    pipeline = layouts.recognise(folder)
    assert set(pipeline.parts) == {"encoder", "decoder", "decoder_with_past"}
    assert isinstance(pipeline.run, EncoderDecoder)
    samples = toys.sentences(5)
    found = _predictions(pipeline, samples)
    assert [each.tolist() for each in found] == [_by_hand(folder, each["x"]) for each in samples]
    assert max(map(len, found)) > 1


def test_a_decoder_without_a_cache_is_a_layout_too(folder):
    (folder / "decoder_with_past_model.onnx").unlink()
    pipeline = layouts.recognise(folder)
    assert set(pipeline.parts) == {"encoder", "decoder"}
    (sample,) = toys.sentences(1)
    assert _predictions(pipeline, [sample])[0].tolist() == _by_hand(folder, sample["x"])


def test_the_loss_of_a_text_is_the_same_with_a_cache_and_without(tmp_path):
    losses = []
    for past in (True, False):
        place = tmp_path / str(past)
        toys.causal(place / "model.onnx", past=past)
        pipeline = layouts.recognise(place)
        assert isinstance(pipeline.run, CausalLoss)
        assert pipeline.run.has_cache is past
        losses.append(_predictions(pipeline, toys.texts(4)))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)
    assert losses[0][0][1] == 5, "all tokens but the first"


def test_a_causal_decoder_generates_where_texts_are_compared(tmp_path):
    toys.causal(tmp_path / "model.onnx")
    (tmp_path / "config.json").write_text('{"eos_token_id": 1}', encoding="utf-8")
    pipeline = layouts.recognise(tmp_path, metric="wer")
    assert isinstance(pipeline.run, CausalGeneration)
    assert _predictions(pipeline, toys.texts(1))[0].size


def test_a_folder_of_genai_is_known_by_its_configuration(tmp_path):
    toys.causal(tmp_path / "text.onnx")
    toys.encoder(tmp_path / "vision.onnx")
    config = {"model": {"decoder": {"filename": "text.onnx"}, "eos_token_id": [1]}}
    (tmp_path / "genai_config.json").write_text(json.dumps(config), encoding="utf-8")
    pipeline = layouts.recognise(tmp_path)
    assert pipeline.parts == {"decoder": tmp_path / "text.onnx"}
    assert "vision.onnx" in pipeline.notes[0]
    (tmp_path / "text.onnx").rename(tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"names 'text\.onnx', which is not there"):
        layouts.recognise(tmp_path)


def test_a_sentence_encoder_compares_a_query_with_documents(tmp_path):
    toys.encoder(tmp_path / "model.onnx")
    pipeline = layouts.recognise(tmp_path)
    assert isinstance(pipeline.run, SentenceEncoder)
    (vector,) = _predictions(pipeline, toys.sentences(1))
    assert np.linalg.norm(vector) == pytest.approx(1.0)


def test_what_is_no_layout_is_said(tmp_path, folder):
    with pytest.raises(ModelError, match=r"holds no \.onnx file"):
        layouts.recognise(tmp_path)
    (folder / "generation_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UsageError, match="no configuration says eos_token_id and decoder_start_token_id"):
        layouts.recognise(folder)
    (folder / "generation_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"generation_config\.json: can't be read"):
        layouts.recognise(folder)
    alone = tmp_path / "alone"
    toys.decoder(alone / "decoder_with_past_model.onnx", past=True)
    toys.decoder(alone / "other.onnx", past=False)
    with pytest.raises(ModelError, match="neither encoder and decoder"):
        layouts.recognise(alone)


def test_caches_by_the_names_of_exporters():
    inputs = ["input_ids", "past_key_values.0.key", "past_1", "cache_position", "use_cache_branch"]
    outputs = ["logits", "present.0.key", "present_1"]
    links = {"past_key_values.0.key": "present.0.key", "past_1": "present_1"}
    assert caches.cache_links(inputs, outputs) == links
    assert caches.past_inputs(inputs) == ["past_key_values.0.key", "past_1"]
    assert caches.is_merged(inputs)


def test_samples_of_functions_of_the_user_s_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(
        "def good():\n    yield {'a': 1, 'label': 'x'}\n    yield ({'a': 2}, 'y')\n\n\n"
        "def bad():\n    raise OSError('off')\n",
        encoding="utf-8",
    )
    found = pipeline_samples.read("mine:good", None, DataOptions())
    assert [(each.inputs, each.label) for each in found] == [({"a": 1}, "x"), ({"a": 2}, "y")]
    with pytest.raises(DataError, match="mine:bad: failed: OSError: off"):
        pipeline_samples.read("mine:bad", None, DataOptions())
    np.savez(tmp_path / "rows.npz", x=np.ones((3, 2)), label=np.arange(3))
    rows = pipeline_samples.read(tmp_path / "rows.npz", None, DataOptions())
    assert rows[1].inputs["x"].shape == (1, 2)
    assert rows[1].label == 1
    np.savez(tmp_path / "rows.npz", x=np.ones((3, 2)), label=np.arange(2))
    with pytest.raises(DataError, match="different numbers of samples: x 3, label 2"):
        pipeline_samples.read(tmp_path / "rows.npz", None, DataOptions())


def test_samples_to_judge_by_are_others_where_there_are_enough():
    samples = [pipeline_samples.PipelineSample(index) for index in range(20)]
    working, judged = pipeline_samples.divided(samples)
    assert not {each.inputs for each in working} & {each.inputs for each in judged}
    assert len(working) + len(judged) == 20
    assert pipeline_samples.divided(samples[:5]) == (samples[:5], samples[:5])


def test_without_labels_the_original_is_the_measure(folder):
    pipeline = layouts.recognise(folder)
    samples = pipeline_samples.read(toys.sentences(3), pipeline.inputs, DataOptions())
    original = run_whole(pipeline, pipeline.parts, samples)
    scale = WholeScale(task_metric("wer"), samples, original)
    assert not scale.has_labels
    assert scale.score() == 0.0
    assert scale.loss(original).drop.value == 0.0


def test_costly_runs_are_made_once(folder, monkeypatch):
    monkeypatch.setattr(memory, "_LEAST_SECONDS", 0.0)
    pipeline = layouts.recognise(folder)
    samples = pipeline_samples.read(toys.sentences(4), pipeline.inputs, DataOptions())
    kept = memory.RunMemory()
    runs = []
    plain = runtime.Session.run
    monkeypatch.setattr(runtime.Session, "run", lambda self, *args: runs.append(1) or plain(self, *args))
    first = run_whole(pipeline, pipeline.parts, samples, memory=kept)
    made = len(runs)
    second = run_whole(pipeline, pipeline.parts, samples, memory=kept)
    assert len(runs) - made == 3, "each part's first run: by then it was not known to take long"
    assert [each.tolist() for each in second.predictions] == [each.tolist() for each in first.predictions]
    assert second.times["encoder"].runs == 4
    assert second.times["encoder"].cpu_ms > 0
    swapped = {**pipeline.parts, "decoder": pipeline.parts["decoder"].with_name("other.onnx")}
    shutil.copyfile(pipeline.parts["decoder"], swapped["decoder"])
    before = len(runs)
    run_whole(pipeline, swapped, samples, memory=kept)
    assert len(runs) - before > 3, "another file is run anew"


def test_a_failing_run_names_the_sample(folder):
    def run(sessions, sample):
        return sessions["encoder"].run(None, {"x": sample["x"]})[0][0, 0, sample["place"]]

    pipeline = oc.Pipeline(parts={"encoder": folder / "encoder_model.onnx"}, run=run, metric="spearman")
    good = {**toys.sentences(1)[0], "place": 0}
    samples = pipeline_samples.read([good, {**good, "place": 999}], None, DataOptions())
    with pytest.raises(DataError, match="sample 1: run failed: IndexError"):
        run_whole(pipeline, pipeline.parts, samples)


def test_a_pipeline_is_checked_when_it_is_made(folder):
    with pytest.raises(UsageError, match="are one file"):
        oc.Pipeline(parts=dict.fromkeys("ab", folder / "encoder_model.onnx"), run=print)
    with pytest.raises(UsageError, match="run of a pipeline"):
        oc.Pipeline(parts={"a": folder / "encoder_model.onnx"}, run=None)
    with pytest.raises(ModelError):
        oc.Pipeline(parts={"a": folder / "tokenizer.json"}, run=print)


def _options(*pairs):
    return [PartOption(bytes=size, loss=loss) for size, loss in pairs]


def test_the_budget_goes_where_it_saves_most():
    large, small = _options((10, 0.02), (40, 0.0)), _options((5, 0.02), (10, 0.0))
    assert choose([large, small], 0.05) == (0, 0)
    assert choose([large, small], 0.03) == (0, 1), "the larger part saves more for the same loss"
    assert choose([large, small], 0.01) == (1, 1)
    assert choose([large, small], 0.05, refused=[(0, 0)]) == (0, 1)
    assert choose([_options((10, 0.02)), small], 0.01) is None


def test_what_is_bolder_than_a_refused_choice_is_not_tried():
    three = _options((1, 0.0), (2, 0.0), (9, 0.0))
    assert choose([three], 1.0, refused=[(1,)]) == (2,)
