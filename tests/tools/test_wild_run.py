"""The trial: limits are kept over all processes, what is there is not run again, what is wrong is called so."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
from onnx import TensorProto, helper, numpy_helper

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
try:
    claims = importlib.import_module("wild.claims")
    feeds = importlib.import_module("wild.feeds")
    judge = importlib.import_module("wild.judge")
    run = importlib.import_module("wild.run")
    shift = importlib.import_module("wild.shift")
    steps = importlib.import_module("wild.steps")
    tables = importlib.import_module("wild.table")
    watched = importlib.import_module("wild.watched")
finally:
    sys.path.remove(str(TOOLS))

ROOMY = watched.Limits(cpu_seconds=60, memory_bytes=4_000_000_000)


def watch(tmp_path, code, *, seconds=20.0, memory=1_000_000_000):
    limits = watched.Limits(cpu_seconds=seconds, memory_bytes=memory)
    return watched.run([sys.executable, "-c", code], limits=limits, stdout=tmp_path / "out", stderr=tmp_path / "err")


def test_a_command_that_ends_is_measured(tmp_path):
    went = watch(tmp_path, "import sys, time; print('x'); b = b'1' * 300_000_000; time.sleep(.3); sys.exit(3)")
    assert (went.exit_code, went.limit) == (3, "")
    assert went.peak_bytes > 300_000_000
    assert (tmp_path / "out").read_text() == "x\n"


def test_cpu_time_of_children_counts_and_all_are_ended(tmp_path):
    code = (
        "import subprocess, sys\n"
        "p = [subprocess.Popen([sys.executable, '-c', 'while True: pass'], start_new_session=k) for k in (0, 1)]\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(' '.join(str(q.pid) for q in p))\n"
        "for q in p: q.wait()"
    )
    went = watch(tmp_path, code, seconds=1)
    assert (went.exit_code, went.limit) == (None, "time")
    assert 1 < went.cpu_seconds < 4
    gone = [int(word) for word in (tmp_path / "pids").read_text().split()]
    assert not any(map(psutil.pid_exists, gone))


def test_a_hang_is_ended(tmp_path):
    went = watch(tmp_path, "import time; time.sleep(60)", seconds=0.25)
    assert went.limit == "time"
    assert went.seconds < 10


def test_memory_is_summed_over_processes(tmp_path):
    code = "import os, time\nos.fork()\nb = bytearray(b'1') * 150_000_000\ntime.sleep(20)"
    assert watch(tmp_path, code, memory=250_000_000).limit == "memory"


def model_of(weight, path, *, noise=0.0):
    weight = (weight + noise * np.random.default_rng(1).standard_normal(weight.shape)).astype(np.float32)
    shapes = {"x": ["n", weight.shape[0]], "y": ["n", weight.shape[1]]}
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["z"]), helper.make_node("Softmax", ["z"], ["y"])],
        "g",
        values[:1],
        values[1:],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Small:
    """A classifier of one layer, and noise to give it."""

    name, kind, state, outputs = "small", "classification", {}, {}

    def __init__(self):
        self.fetched = 0

    def fetch(self, folder):
        self.fetched += 1
        path = folder / self.name / "small.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        return model_of(np.random.default_rng(0).standard_normal((64, 50)), path)

    def write_feeds(self, _, folder, which):
        folder.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(len(which))
        np.savez(folder / f"{which}.npz", x=random.standard_normal((64, 64)).astype(np.float32))
        return folder / f"{which}.npz"


def test_a_step_gives_a_row_and_is_not_run_again(tmp_path):
    model = Small()
    trial = run.Trial(
        results=tmp_path / "r", cache=tmp_path / "c", limits=ROOMY, pair_seconds=0.2, settings=["dynamic"]
    )
    chosen = [steps.STEPS[name] for name in ("int8-weights", steps.ORT, "split")]
    rows = {row["step"]: row for row in trial.run(model, chosen)}
    assert [row["outcome"] for row in rows.values()] == ["done"] * 3
    ours = rows["int8-weights"]
    assert ours["size_ratio"] < 0.5
    assert ours["measured"]["outputs"]["y"]["figure"] == "disagreement"
    assert ours["told"]["outputs"]["y"]["kind"] == "class-scores"
    assert ours["measured"]["latency"]["pairs"] >= 7
    assert rows["split"]["measured"]["outputs"]["y"]["value"] == 0
    assert rows[steps.ORT]["settings"][0]["size_ratio"] < 0.5
    assert not (tmp_path / "r" / "small" / "int8-weights" / "result.onnx").exists()
    assert json.loads((tmp_path / "r" / "small" / "int8-weights" / "report.json").read_text())["changes"]
    assert list(trial.run(model, chosen)) == []
    assert [row["step"] for row in trial.run(model, chosen[:1], again=True)] == ["int8-weights"]
    shown = tables.by_row(tables.read_rows(tmp_path / "r"))
    assert [row[1] for row in shown.rows] == ["int8-weights", steps.ORT, "split"]


def test_a_row_of_other_code_is_not_current(tmp_path, monkeypatch):
    step = steps.STEPS["fold"]
    run.write_row(tmp_path / "fold.json", {"model_sha256": "a", "version": run.version_of(step)})
    assert run.is_current(tmp_path / "fold.json", "a", step)
    assert not run.is_current(tmp_path / "fold.json", "b", step)
    monkeypatch.setattr(run, "code_version", lambda: "other")
    assert not run.is_current(tmp_path / "fold.json", "a", step)


def test_a_refusal_of_a_model_that_runs_is_told(tmp_path, monkeypatch):
    command = [sys.executable, "-c", "import sys; sys.stderr.write('error: no\\n'); sys.exit(3)"]
    monkeypatch.setattr(steps.Step, "commands", lambda *_: [command])
    trial = run.Trial(results=tmp_path / "r", cache=tmp_path / "c", limits=ROOMY, pair_seconds=0.1)
    [row] = trial.run(Small(), [steps.STEPS["fold"]])
    assert (row["outcome"], row["runs"], row["message"]) == ("refused", True, "error: no")
    found = {each[0]: each[1] for each in tables.sums([row]).rows}
    assert found["refused (exit 3) where onnxruntime runs"] == "1"
    assert found["internal errors"] == "0"


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    weight = np.random.default_rng(0).standard_normal((64, 50))
    model_of(weight, folder / "a.onnx")
    model_of(weight, folder / "b.onnx", noise=1.0)
    for name in ("work", "judge"):
        np.savez(folder / f"{name}.npz", x=np.random.default_rng(len(name)).standard_normal((64, 64)).astype("f"))
    return folder


def ask(folder, result, **more):
    paths = {"original": "a.onnx", "result": result, "judge": "judge.npz", "work": "work.npz"}
    request = {key: str(folder / name) for key, name in paths.items()}
    return judge.main(request | {"pair_seconds": 0.05} | more)


def test_the_judge_sees_damage_and_tells_it_in_the_told_unit_too(damaged):
    same, other = (ask(damaged, name, told={"y": "embedding"}) for name in ("a.onnx", "b.onnx"))
    assert same["outputs"]["y"]["points"] == 0
    assert other["outputs"]["y"]["points"] > 0.1
    assert other["outputs"]["y"]["as_told"]["figure"] == "cosine_distance"
    assert same["latency"]["ratio"] == pytest.approx(1, rel=0.5)


def test_the_judge_says_which_side_does_not_run(damaged):
    (damaged / "c.onnx").write_bytes(b"no model")
    assert ask(damaged, "c.onnx")["error"].startswith("result: ")
    assert ask(damaged, "b.onnx", original=str(damaged / "c.onnx"))["error"].startswith("original: ")


def test_state_is_carried(tmp_path):
    shape = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in ("x", "h", "next", "y")]
    nodes = [helper.make_node("Add", ["x", "h"], ["next"]), helper.make_node("Neg", ["next"], ["y"])]
    graph = helper.make_graph(nodes, "g", shape[:2], shape[2:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=np.ones((3, 1, 2), np.float32))
    runner = feeds.Run(tmp_path / "m.onnx", {"h": "next"})
    found = [runner.step(feed)["y"][0, 0] for feed in feeds.read(tmp_path / "d.npz", runner.inputs, {"h": "next"})]
    assert found == [-1, -2, -3]
    assert feeds.write_single(tmp_path / "d.npz", tmp_path / "m.onnx", {"h": "next"}, tmp_path / "s") == 3
    assert np.load(tmp_path / "s" / "00003.npz")["h"].tolist() == [[2, 2]]


def told_of(drop, interval, kind="class-scores", ratio=None):
    latency = None if ratio is None else {"ratio": ratio, "ratio_interval": None, "trusted": True}
    return {"outputs": {"y": {"kind": kind, "drop": drop, "interval": interval}}, "latency": latency}


def measured_of(low, high, kind="class-scores", *, same_unit=True, latency=None):
    points = (low + high) / 2
    entry = {"kind": kind, "figure": "f", "value": points, "points": points, "points_interval": [low, high]}
    return {"error": "", "outputs": {"y": entry | {"same_unit": same_unit}}, "latency": latency}


@pytest.mark.parametrize(
    ("told", "measured", "word"),
    [
        (told_of(0.01, (0.005, 0.02)), measured_of(0.01, 0.04), None),
        (told_of(0.01, (0.005, 0.02)), measured_of(0.024, 0.04), None),
        (told_of(0.01, (0.005, 0.02)), measured_of(0.026, 0.04), "understated"),
        (told_of(0.1, (0.08, 0.12)), measured_of(0.0, 0.02), "overstated"),
        (told_of(0.0, (0.0, 0.005), "numbers"), measured_of(0.5, 0.6, "embedding"), "harmless"),
        (told_of(0.0, (0.0, 0.005), "detection-rows"), measured_of(0.05, 0.2, "detection-rows", same_unit=False), None),
        (
            told_of(0.0, (0.0, 0.005), "detection-rows"),
            measured_of(0.3, 0.4, "detection-rows", same_unit=False),
            "harmless",
        ),
        (told_of(None, None), measured_of(0.3, 0.4), None),
    ],
)
def test_wrong_claims_of_loss(told, measured, word):
    found = claims.wrong_claims(told, measured)
    assert len(found) == (word is not None)
    assert word is None or word in found[0]


def test_where_any_error_costs_more_by_the_samples_told_losses_are_scaled():
    told, measured = told_of(0.01, (0.009, 0.011), "numbers"), measured_of(0.025, 0.035, "numbers")
    measured["outputs"]["y"]["figure"] = "relative_rms"
    assert len(claims.wrong_claims(told, measured, {})) == 1
    assert len(claims.wrong_claims(told, measured, {"y": 1.2})) == 1
    assert claims.wrong_claims(told, measured, {"y": 2.5}) == []
    assert claims.wrong_claims(told_of(0.03, (0.02, 0.04), "numbers"), measured, {"y": 0.5}) == []


def test_the_factor_between_samples_is_measured_on_a_copy_that_none_were_used_for(tmp_path):
    model_of(np.random.default_rng(0).standard_normal((64, 50)), tmp_path / "a.onnx")
    shift.main(tmp_path / "a.onnx", tmp_path / "b.onnx")
    for name, scale in (("work", 0.1), ("judge", 0.3)):
        values = scale * np.random.default_rng(1).standard_normal((64, 64))
        np.savez(tmp_path / f"{name}.npz", x=values.astype(np.float32))
    more = {"as_numbers": True, "pair_seconds": 0}
    answers = [ask(tmp_path, "b.onnx", judge=str(tmp_path / f"{n}.npz"), **more) for n in ("judge", "work")]
    assert 0 < answers[1]["outputs"]["y"]["points"] < 0.001
    assert answers[0]["latency"] is None
    judged, worked = (answer["outputs"]["y"]["points"] for answer in answers)
    assert judged > 1.2 * worked  # inputs of three times the size come to where a softmax is steeper
    assert shift.factors(*answers)["y"] == pytest.approx(judged / worked)
    answers[0]["outputs"]["y"]["points"] *= 1000
    assert shift.factors(*answers)["y"] == 5


@pytest.mark.parametrize(("ratio", "count"), [(0.5, 0), (0.57, 0), (0.7, 1), (0.35, 1)])
def test_wrong_claims_of_latency(ratio, count):
    told = told_of(0.0, (0.0, 0.0), ratio=ratio)
    measured = measured_of(0.0, 0.0, latency={"ratio": 0.5, "ratio_interval": [0.48, 0.52]})
    assert len(claims.wrong_claims(told, measured)) == count
    told["latency"]["trusted"] = False
    assert claims.wrong_claims(told, measured) == []


def row_of(**more):
    row = {"model": "m", "step": "int8", "recipe": "int8", "exit_code": 0, "limit": "", "internal_errors": []}
    row |= {"traceback": False, "measured": None, "claims": [], "size_ratio": 1.0, "macs_ratio": 1.0, "keep_macs": 1.0}
    row |= {"left_alone": [], "notes": [], "stderr_lines": 0, "applied": 0, "told": None, "runs": None, "over": []}
    return row | {"cpu_seconds": 1.0, "peak_bytes": 1, "model_bytes": 1, "message": ""} | more


@pytest.mark.parametrize(
    ("more", "outcome"),
    [
        ({}, "silent nothing"),
        ({"left_alone": [[1, "p", "skipped", "why"]]}, "nothing"),
        ({"stderr_lines": 1}, "nothing"),
        ({"recipe": "fold", "applied": 3}, "nothing"),
        ({"recipe": "prune", "keep_macs": 0.7, "macs_ratio": 0.8, "size_ratio": 0.8}, "silent nothing"),
        ({"recipe": "prune", "keep_macs": 0.7, "macs_ratio": 0.71, "size_ratio": 0.8}, "done"),
        ({"size_ratio": 0.3}, "done"),
        ({"size_ratio": 0.3, "claims": ["y"]}, "wrong claim"),
        ({"size_ratio": 0.3, "internal_errors": ["e"]}, "internal error"),
        ({"size_ratio": 0.3, "measured": {"error": "result: no"}}, "broken result"),
        ({"exit_code": 70}, "internal error"),
        ({"exit_code": 3}, "refused"),
        ({"exit_code": -11}, "killed"),
        ({"exit_code": None, "limit": "memory"}, "over memory"),
    ],
)
def test_outcomes(more, outcome):
    assert claims.outcome(row_of(**more)) == outcome


def made(size, ratio, low, high):
    return {"size_ratio": size, "measured": measured_of(low, high, latency={"ratio": ratio})}


@pytest.mark.parametrize(
    ("ours", "theirs", "well"),
    [
        (made(0.3, 0.5, 0, 0.002), made(0.3, 0.6, 0, 0.002), True),
        (made(0.3, 0.5, 0, 0.002), made(0.3, 0.4, 0, 0.002), False),
        (made(0.3, 0.5, 0, 0.002), made(0.3, 0.4, 0.03, 0.05), True),
        (made(0.3, 0.5, 0.03, 0.05), made(0.3, 0.6, 0.03, 0.05), False),
    ],
)
def test_int8_beside_the_best_of_equal_quality(ours, theirs, well):
    other = {"model": "m", "step": steps.ORT, "settings": [theirs | {"setting": "static", "error": ""}]}
    row = row_of(**ours)
    assert tables.is_not_worse(row, [row, other]) is well
