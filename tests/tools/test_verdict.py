"""The measuring side of the judge: cases that can be measured, and figures that are right on losses known here."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
try:
    cases = importlib.import_module("bench.cases")
    verdict = importlib.import_module("bench.verdict")
    verdict_bank = importlib.import_module("bench.verdict_bank")
    verdict_cases = importlib.import_module("bench.verdict_cases")
finally:
    sys.path.remove(str(TOOLS))


@pytest.mark.parametrize("name", sorted(verdict_cases.KINDS))
def test_a_case_loses_nothing_by_itself_and_much_by_noise(name: str, tmp_path: Path) -> None:
    kind = verdict_cases.KINDS[name]
    state = {"h": "next"} if kind.options else {}
    feeds = kind.draw(np.random.default_rng(0), 32)
    model = kind.build()
    onnx.save(model, tmp_path / "model.onnx")
    random = np.random.default_rng(1)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) > 100:
            weight = numpy_helper.to_array(tensor)
            noisy = weight * (1 + 0.5 * random.standard_normal(weight.shape))
            tensor.CopyFrom(numpy_helper.from_array(noisy.astype(np.float32), tensor.name))
    onnx.save(model, tmp_path / "noisy.onnx")
    truth = cases.outputs(tmp_path / "model.onnx", feeds, state)
    assert kind.loss(feeds, truth, truth) == pytest.approx(0, abs=1e-6)
    assert kind.loss(feeds, truth, cases.outputs(tmp_path / "noisy.onnx", feeds, state)) > kind.most


@pytest.mark.parametrize(
    ("exit_code", "true_loss", "is_right"),
    [(0, 0.02, True), (0, 0.04, False), (1, None, True), (70, None, False), (-1, None, False)],
)
def test_a_verdict_is_right_when_the_result_is_good_or_refused(
    exit_code: int, true_loss: float | None, is_right: bool
) -> None:
    row = cases.Row(case="a", recipe="auto", exit_code=exit_code, true_loss=true_loss, most=0.03)
    assert row.is_right is is_right


def test_stored_outputs_come_back(tmp_path: Path) -> None:
    samples = [{"y": np.ones((1, size), np.float32), "a/b": np.array(size)} for size in (2, 3, 11)]
    answers = verdict_bank.Answers(samples=samples, seen=np.array([True, False, False]))
    verdict_bank.store(tmp_path / "x", answers, {"metrics": {}})
    got = verdict_bank.read_answers(tmp_path / "x")
    assert got.seen.tolist() == [True, False, False]
    assert [{name: value.shape for name, value in each.items()} for each in got.samples] == [
        {"y": (1, 2), "a/b": ()},
        {"y": (1, 3), "a/b": ()},
        {"y": (1, 11), "a/b": ()},
    ]


def draw(loss: float, told: float, half: float = math.nan, **more: Any) -> Any:
    facts = {"model": "m", "damage": "d", "samples": 64, "error": 0.0} | more
    return verdict.Draw(loss=loss, told=(told, told - half, told + half), **facts)


def test_every_original_and_every_damage_of_it_weighs_the_same() -> None:
    many = [draw(0.01, 0.02, damage=str(k % 2)) for k in range(10)]
    row = verdict.by_count([*many, *(draw(0.01, 0.01, model=name) for name in ("other", "third"))]).rows[0]
    assert row[1:5] == ["4", "0.33", "0.00", "1.00"]


def test_the_interval_and_wrong_passes_are_counted() -> None:
    draws = [draw(0.03, 0.005, 0.01, damage="a"), draw(0.03, 0.035, 0.01, damage="b"), draw(0.9, 0.5, damage="c")]
    row = dict(zip(verdict.by_count(draws).columns, verdict.by_count(draws).rows[0], strict=True))
    assert row["damaged models"] == "2"
    assert row["interval holds"] == "0.50"
    assert row["over 2 told under 1"] == "0.33"
    assert row["under 0.5 told over"] == "-"


def test_the_judge_of_the_report_is_asked() -> None:
    scores = np.array([[0.9, 0.1], [0.6, 0.4]])
    runs = [{"y": row[None]} for row in scores]
    changed = [{"y": row[None]} for row in (scores[0], scores[1][::-1])]
    facts = {"logits": [], "sigmoids": [], "state": {}}
    told = verdict.judge(runs, changed, facts)
    assert told is not None
    assert told[0] > 0
    assert verdict.judge(runs, runs, facts)[0] == pytest.approx(0, abs=1e-9)
