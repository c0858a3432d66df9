"""The command line as a user meets it: in a process of its own, by exit code and output."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODELS = ROOT / "models"


def _run(*args, cwd):
    return subprocess.run(
        [sys.executable, "-m", "onnxcompress", *map(str, args)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "40"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_compress_writes_a_smaller_model_and_a_report(tmp_path):
    done = _run(
        "compress", MODELS / "resnet14.onnx", "-o", "small.onnx", "--recipe", "int8-weights",
        "--eval", MODELS / "fmnist_test.npz", "--json", "report.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["schema"] == 1
    assert report["output"]["bytes"] == (tmp_path / "small.onnx").stat().st_size
    assert report["output"]["bytes"] <= 0.28 * report["input"]["bytes"]
    assert report["quality"]["metric"] == "top1"
    assert abs(report["quality"]["original"] - 0.9265) < 0.002
    assert report["quality"]["drop"] <= 0.003
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json", "small.onnx"]


def test_json_to_standard_output_is_nothing_but_json(tmp_path):
    done = _run("compress", MODELS / "mbv2.onnx", "-o", "m.onnx", "--recipe", "fold", "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["recipe"]["name"] == "fold"


def test_a_limit_that_is_not_met_is_exit_1_and_writes_nothing(tmp_path):
    done = _run("compress", MODELS / "mbv2.onnx", "-o", "m.onnx", "--max-bytes", "1000", cwd=tmp_path)
    assert done.returncode == 1
    assert "1,000" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["compress", "missing.onnx"], 3, "missing.onnx"),
        (["compress", "text.onnx"], 3, "text.onnx"),
        (["compress", "empty.onnx"], 3, "empty.onnx"),
        (["compress", "cut.onnx"], 3, "cut.onnx"),
        (["compress", MODELS / "mbv2.onnx", "-o", "m.onnx", "--recipe", "fodl"], 2, "fold"),
        (["compress", MODELS / "mbv2.onnx", "-o", "text.onnx"], 2, "--force"),
        (["compress", MODELS / "mbv2.onnx", "-o", "nowhere/m.onnx"], 2, "nowhere"),
        (["compress", MODELS / "mbv2.onnx", "-o", "m.onnx", "--eval", "text.onnx"], 3, "text.onnx"),
        (["compress", MODELS / "mbv2.onnx", "-o", "m.onnx", "--external-data", "maybe"], 2, "maybe"),
        (["passes", "fold-constant"], 2, "fold-constants"),
        (["recipes", "nope"], 2, "nope"),
        (["nonsense"], 2, "nonsense"),
    ],
)
def test_mistakes_end_in_one_line_and_the_promised_code(tmp_path, args, code, words):
    (tmp_path / "text.onnx").write_text("this is no model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "cut.onnx").write_bytes((MODELS / "mbv2.onnx").read_bytes()[:5000])
    before = sorted(p.name for p in tmp_path.iterdir())
    done = _run(*args, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("args", [["passes"], ["passes", "fold-constants"], ["recipes"], ["recipes", "fold"]])
def test_lists_name_what_there_is(tmp_path, args):
    done = _run(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fold" in done.stdout


def test_user_surgery_runs_and_its_failure_is_a_usage_error(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def edit(graph):\n    return graph\ndef bad(graph):\n    raise ValueError('no')\n"
    )
    base = ["compress", MODELS / "mbv2.onnx", "-o", "m.onnx", "--recipe", "fold", "--json", "-"]
    done = _run(*base, "--set", "surgery.function=mine:edit", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert any(c["pass"] == "surgery" and c["action"] == "applied" for c in json.loads(done.stdout)["changes"])
