"""`python -m bench.verdict_damage ZOO KEY NAME TARGET`: damage a model, evaluate it and store what it answers."""

from __future__ import annotations

import inspect
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

import onnxcompress
from bench.corpus import load_eval
from bench.verdict_bank import MOST_JUDGED, ORIGINAL, SEARCH_SECONDS, SUBJECTS, Answers, Damage, damages, store
from onnxcompress.quality.output_sources import Ending, sources

Feed = dict[str, Any]
_COUNTS = ("n", "chars", "frames", "sent_n")
"""The names under which an `eval.py` tells how many labels it has."""
_WINDOW = 64
"""Successive steps of a recurrent model, which begin with no state."""


def main(zoo: Path, key: str, name: str, target: Path) -> None:
    """Make one entry of the bank."""
    started, subject, path = time.monotonic(), SUBJECTS[key], (zoo / key).with_suffix(".onnx")
    module = load_eval(path.parent)
    feeds, state = unlabelled(module, subject.fit + MOST_JUDGED)
    damage = Damage() if name == ORIGINAL else damages(subject)[name]
    seen = np.zeros(len(feeds), bool)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "model.onnx"
        told = None
        if name == ORIGINAL:
            made = path
        else:
            onnx.save(with_noise(onnx.load(path), damage.noise), made)
        if damage.recipe:
            seen[: subject.fit] = damage.with_data
            told = _compressed(made, damage, feeds[: subject.fit] if damage.with_data else None, state)
        made_seconds = time.monotonic() - started
        limit = subject.labelled if damage.noise else None
        facts = {
            "model": key,
            "name": name,
            "recipe": damage.recipe,
            "settings": damage.settings,
            "noise": damage.noise,
            "bytes": made.stat().st_size,
            "told_quality": None if damage.noise else told,
            **evaluated(module, made, limit),
        }
        if name == ORIGINAL:
            endings = {output: source.ending for output, source in sources(onnxcompress.load(path)).items()}
            facts["logits"] = sorted(output for output, ending in endings.items() if ending is Ending.PRODUCT)
            facts["sigmoids"] = sorted(output for output, ending in endings.items() if ending is Ending.SIGMOID)
            facts["state"] = state
            if subject.labelled:
                facts["limited"] = evaluated(module, made, subject.labelled)["metrics"]
        facts["seconds"] = {"made": made_seconds, "all": time.monotonic() - started}
        store(target, Answers(samples=answers(made, feeds, state), seen=seen), facts)


def _compressed(path: Path, damage: Damage, feeds: Sequence[Feed] | None, state: dict[str, str]) -> Any:
    """Run the recipe with the judge out of the way, and return what it tells of the quality."""
    if feeds is not None and state:
        feeds = [{name: value for name, value in feed.items() if name not in state} for feed in feeds]
    result = onnxcompress.compress(
        path,
        recipe=damage.recipe,
        settings=damage.settings,
        data=feeds,
        data_options=onnxcompress.DataOptions(state=state if feeds is not None else {}),
        max_drop=1.0 if damage.recipe == "int8" else None,
        time_limit=SEARCH_SECONDS,
    )
    result.save(path, force=True)
    return result.report.as_json()["quality"]


def unlabelled(module: Any, count: int) -> tuple[list[Feed], dict[str, str]]:
    """Return samples that have no part in the evaluation by labels, and which input carries which output's state.

    Steps of a recurrent model are windows of successive steps; those of the voice detector are taken from the labelled
    recordings, since there are no others.
    """
    if hasattr(module, "frames"):
        return _speech(module, count), {"state": "stateN"}
    return list((module.calib_feeds if hasattr(module, "calib_feeds") else module.feeds)(count))[:count], {}


def _speech(module: Any, count: int) -> list[Feed]:
    recordings = [sound for _, sound, _ in module.frames()]
    feeds: list[Feed] = []
    for window in range(count // _WINDOW):
        sound = recordings[window % len(recordings)]
        steps = (len(sound) - 64) // 512
        first = (window + 1) * (steps - _WINDOW) // (count // _WINDOW + 1)
        for step in range(first, first + _WINDOW):
            feed = {"input": sound[step * 512 : step * 512 + 576][None], "sr": np.array(16000, np.int64)}
            feeds.append(feed | ({"state": np.zeros((2, 1, 128), np.float32)} if step == first else {}))
    return feeds


def answers(path: Path, feeds: Sequence[Feed], state: dict[str, str]) -> list[dict[str, np.ndarray]]:
    """Run a model on each sample; a state that a feed lacks comes from the run before."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found: list[dict[str, np.ndarray]] = []
    for feed in feeds:
        carried = {to: found[-1][source] for to, source in state.items() if to not in feed}
        found.append(dict(zip(names, session.run(names, feed | carried), strict=True)))
    return found


def evaluated(module: Any, path: Path, limit: int | None) -> dict[str, Any]:
    """Return the metrics by labels and the number of labels."""
    limited = {"limit": limit} if limit and "limit" in inspect.signature(module.evaluate).parameters else {}
    metrics = module.evaluate(str(path), **limited)
    numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, (int, float))}
    return {"metrics": numbers, "labelled": next(int(metrics[name]) for name in _COUNTS if name in metrics)}


def with_noise(model: onnx.ModelProto, spread: float) -> onnx.ModelProto:
    """Multiply every large float weight by 1 + spread x normal noise."""
    generator = np.random.default_rng(int(spread * 1000))
    constants = (
        a.t for node in model.graph.node if node.op_type == "Constant" for a in node.attribute if a.name == "value"
    )
    for tensor in (*model.graph.initializer, *constants) if spread else ():
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1 and np.prod(tensor.dims) >= 256:
            weight = numpy_helper.to_array(tensor)
            noisy = weight * (1 + spread * generator.standard_normal(weight.shape))
            tensor.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
