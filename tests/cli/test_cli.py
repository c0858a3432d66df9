"""The command line as a user meets it: in a process of its own, by exit code, output and what is left in the folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

import onnxcompress as oc
from onnxcompress import cli
from onnxcompress.base.quantities import parse_bytes
from onnxcompress.cli import console
from onnxcompress.errors import UsageError
from onnxcompress.jobs import compress as compress_job
from onnxcompress.jobs import report as report_module
from onnxcompress.recipe import Recipe

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
MBV2 = MODELS / "mbv2.onnx"
SCHEMA = json.loads(Path(report_module.__file__).with_name("report-schema.json").read_text(encoding="utf-8"))
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")},
    "PYTHONPATH": str(ROOT),
    "COLUMNS": "40",
}

USER_CODE = """
import time
from pathlib import Path

def renamed(graph):
    graph.nodes[0].name = "renamed_by_me"
    return graph

def fails(graph):
    raise ValueError("no such layer")

def least(outputs, labels):
    return -float(abs(outputs).max())

def slow(outputs, labels):
    Path("started").touch()
    for _ in range(1200):  # a signal that comes just before a sleep waits for its end
        time.sleep(0.05)

def undefined(outputs, labels):
    return float("nan")

def broken(outputs, labels):
    raise IndexError("nothing there")
"""


def _command(*args):
    return [sys.executable, "-m", "onnxcompress", *map(str, args)]


def _run(*args, cwd):
    return subprocess.run(
        _command(*args), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120
    )


def _started(*args, cwd):
    """Start a command that hears SIGINT, which what runs in the background of a shell ignores."""
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        pipe = subprocess.PIPE
        return subprocess.Popen(_command(*args), cwd=cwd, env=ENVIRONMENT, stdout=pipe, stderr=pipe, text=True)
    finally:
        signal.signal(signal.SIGINT, heard)


def _main(monkeypatch, *args):
    """Run in this process, which is quicker, and return the exit code."""
    monkeypatch.setattr(sys, "argv", ["onnxcompress", *map(str, args)])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process; what it returns looks like what `_run` does."""

    def here(*args, cwd):
        monkeypatch.chdir(cwd)
        code = _main(monkeypatch, *args)
        return subprocess.CompletedProcess(args, code, *capsys.readouterr())

    return here


def _files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)


@pytest.fixture
def folder(tmp_path):
    """A folder with the files that mistakes are made with."""
    (tmp_path / "text.onnx").write_text("this is no model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "cut.onnx").write_bytes(MBV2.read_bytes()[:5000])
    (tmp_path / "mine.py").write_text(USER_CODE)
    x = np.zeros((4, 1, 28, 28), np.float32)
    np.savez(tmp_path / "images.npz", x=x)
    np.savez(tmp_path / "labelled.npz", x=x, label=np.zeros(4, np.int64))
    np.savez(tmp_path / "wrong_name.npz", pixels=x, more=x)
    np.savez(tmp_path / "wrong_shape.npz", x=np.zeros((4, 3, 32, 32), np.float32))
    model = onnx.load(MBV2)
    onnx.save(model, tmp_path / "ext.onnx", save_as_external_data=True, location="ext.data", size_threshold=1024)
    escaping = onnx.load(tmp_path / "ext.onnx", load_external_data=False)
    for tensor in escaping.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../outside.data"
    (tmp_path / "escape.onnx").write_bytes(escaping.SerializeToString())
    (tmp_path / "ext.data").unlink()
    (tmp_path / "recipe.toml").write_text('[[passes]]\nname = "surgery"\nfunction = "mine:fails"\n')
    return tmp_path


def test_compress_writes_a_smaller_model_and_a_report(tmp_path):
    done = _run(
        "compress", MODELS / "resnet14.onnx", "-o", "small.onnx", "--recipe", "int8-weights",
        "--eval", MODELS / "fmnist_test.npz", "--json", "report.json", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    assert report["output"]["path"] == str(tmp_path / "small.onnx")
    assert report["output"]["bytes"] == (tmp_path / "small.onnx").stat().st_size
    assert report["output"]["bytes"] <= 0.28 * report["input"]["bytes"]
    assert (report["quality"]["metric"], report["quality"]["samples"]) == ("top1", 2000)
    assert abs(report["quality"]["original"] - 0.9265) < 0.002
    assert report["quality"]["drop"] <= 0.003
    assert _files(tmp_path) == ["report.json", "small.onnx"]


def test_in_a_pipe_names_are_whole_and_lines_are_not_wrapped(tmp_path):
    done = _run("compress", MBV2, "-o", "m.onnx", "--recipe", "int8-weights", "-v", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("quantize-weights")]
    assert any("int8 with a scale for each" in row and "applied" in row for row in rows)
    assert str(MBV2) in done.stdout
    assert "\x1b" not in done.stdout


def test_verbose_lists_every_change_and_quiet_prints_nothing(tmp_path):
    lines = {}
    for flag in ("-q", "--seed=0", "-v"):
        done = _run("compress", MBV2, "-o", "m.onnx", "--recipe", "fold", "--force", flag, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines[flag] = len(done.stdout.splitlines())
        assert ("running" in done.stderr) == (flag == "-v")
    assert lines["-q"] == 0
    assert lines["-v"] > 28 + 26 > lines["--seed=0"] > 5


def test_without_o_the_result_stands_beside_the_input(run, tmp_path):
    (tmp_path / "deep folder").mkdir()
    source = tmp_path / "deep folder" / "mödel.onnx"
    source.write_bytes(MBV2.read_bytes())
    done = run("compress", source, "--recipe", "fold", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert _files(tmp_path) == ["deep folder", "deep folder/mödel-compressed.onnx", "deep folder/mödel.onnx"]


@pytest.mark.parametrize(
    "args",
    [
        ["compress", MBV2, "-o", "m.onnx", "--recipe", "fold"],
        ["inspect", MBV2],
        ["compare", MBV2, MODELS / "mbv2.onnx"],
    ],
)
def test_json_on_standard_output_is_nothing_but_json(run, tmp_path, args):
    done = run(*args, "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    done = run(*args, "--json", "new.json", "--force", cwd=tmp_path)
    assert json.loads((tmp_path / "new.json").read_text()).keys() == document.keys()
    assert "MACs" in done.stdout


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (["--max-bytes", "1KB"], "more than 1,000"),
        (["--max-latency", "0.001x"], "more than 0.001x"),
        (["--max-latency", "0.00001ms"], "more than 1e-05 ms"),
        (
            ["--eval", "labelled.npz", "--metric", "cosine", "--recipe", "int8-weights", "--max-drop", "0"],
            "--max-drop 0",
        ),
    ],
)
def test_a_limit_that_is_not_met_is_exit_1_with_a_report_and_nothing_else(run, folder, limit, words):
    before = _files(folder)
    done = run("compress", MBV2, "-o", "m.onnx", *limit, "--json", "why.json", cwd=folder)
    assert done.returncode == 1, done.stderr
    assert words in done.stderr.splitlines()[-1]
    assert "file, bytes" in done.stdout
    jsonschema.validate(json.loads((folder / "why.json").read_text()), SCHEMA)
    assert _files(folder) == sorted([*before, "why.json"])


@pytest.mark.parametrize(
    ("option", "value", "reported"),
    [
        ("--max-bytes", "1MB", {"max_bytes": 1_000_000}),
        ("--max-latency", "1000x", {"max_latency": "1000x"}),
        ("--max-latency", "9000ms", {"max_latency": "9000ms"}),
    ],
)
def test_a_limit_that_is_met_stands_in_the_report(run, tmp_path, option, value, reported):
    done = run("compress", MBV2, "-o", "m.onnx", "--recipe", "fold", option, value, "--json", "-", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    none = {"max_drop": None, "max_bytes": None, "max_latency": None}
    assert json.loads(done.stdout)["limits"] == none | reported


COMPRESS = ["compress", MBV2, "-o", "m.onnx", "--recipe", "int8-weights"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["compress", "missing.onnx"], 3, ["missing.onnx", "no such file"]),
        (["compress", "text.onnx"], 3, ["text.onnx"]),
        (["compress", "empty.onnx"], 3, ["empty.onnx"]),
        (["compress", "cut.onnx"], 3, ["cut.onnx"]),
        (["compress", "ext.onnx"], 3, ["ext.data"]),
        (["compress", "escape.onnx"], 3, ["outside.data"]),
        (["inspect", "escape.onnx"], 3, ["outside.data"]),
        (["compare", MBV2, "escape.onnx"], 3, ["outside.data"]),
        (["run", "escape.onnx", "--data", "images.npz"], 3, ["outside.data"]),
        (["inspect", "."], 3, ["is a folder"]),
        ([*COMPRESS, "--recipe", "fodl"], 2, ["'fodl'", "'fold'"]),
        ([*COMPRESS, "--recipe", "recipe.toml"], 2, ["recipe.toml", "surgery.function"]),
        ([*COMPRESS, "--set", "quantize-weight.clip=mse"], 2, ["'quantize-weights'"]),
        ([*COMPRESS, "--set", "quantize-weights.clp=mse"], 2, ["'clp'", "'clip'"]),
        ([*COMPRESS, "--set", "quantize-weights.min_elements=0"], 2, ["min_elements", "greater than or equal to 1"]),
        ([*COMPRESS, "--set", "clip"], 2, ["PASS.FIELD=VALUE"]),
        ([*COMPRESS, "--only", "op:Conb"], 2, ["'op:Conb'", "'op:Conv'"]),
        ([*COMPRESS, "--skip", "/f/f.0/Conw"], 2, ["--skip", "'/f/f.0/Conv'"]),
        ([*COMPRESS, "--data", "wrong_name.npz"], 3, ["'pixels'", "'x'", "wrong_name.npz"]),
        ([*COMPRESS, "--eval", "wrong_shape.npz"], 3, ["[1, 3, 32, 32]", "1, 28, 28", "wrong_shape.npz"]),
        ([*COMPRESS, "--data", "text.onnx"], 3, ["text.onnx"]),
        ([*COMPRESS, "--data", "nowhere.npz"], 3, ["nowhere.npz"]),
        ([*COMPRESS, "--eval", "images.npz", "--metric", "top1"], 2, ["needs labels"]),
        ([*COMPRESS, "--eval", "labelled.npz", "--metric", "topp1"], 2, ["'topp1'", "top1"]),
        ([*COMPRESS, "--eval", "labelled.npz", "--metric", "mine:absent"], 2, ["'absent'"]),
        ([*COMPRESS, "--eval", "labelled.npz", "--metric", "mine:broken"], 3, ["IndexError", "nothing there"]),
        ([*COMPRESS, "--eval", "labelled.npz", "--metric", "mine:undefined"], 3, ["mine:undefined", "is nan"]),
        ([*COMPRESS, "--data", "images.npz", "--state", "x"], 2, ["INPUT=OUTPUT"]),
        ([*COMPRESS, "--data", "images.npz", "--scale", "a"], 2, ["'a'"]),
        ([*COMPRESS, "--set", "surgery.function=mine:fails"], 2, ["mine:fails", "ValueError", "line 10"]),
        (["compress", MBV2, "-o", "text.onnx"], 2, ["text.onnx", "--force"]),
        (["compress", MBV2, "-o", MBV2], 2, ["is the input itself"]),
        (["compress", MBV2, "-o", "text.onnx/m.onnx"], 2, ["text.onnx", "is no folder"]),
        (["compress", MBV2, "-o", "."], 2, ["is a folder"]),
        ([*COMPRESS, "--json", "text.onnx/r.json"], 2, ["text.onnx/r.json"]),
        ([*COMPRESS, "--json", "text.onnx"], 2, ["text.onnx", "--force"]),
        ([*COMPRESS, "--json", "m.onnx"], 2, ["same file"]),
        ([*COMPRESS, "--external-data", "maybe"], 2, ["--external-data", "'maybe'"]),
        ([*COMPRESS, "--max-bytes", "5 parsecs"], 2, ["'5 parsecs'", "5MB"]),
        ([*COMPRESS, "--max-latency", "3"], 2, ["'3'", "0.5x or 3ms"]),
        ([*COMPRESS, "--max-drop", "-1"], 2, ["--max-drop"]),
        ([*COMPRESS, "--seed", "x"], 2, ["--seed"]),
        ([*COMPRESS, "--fast"], 2, ["--fast", "`onnxcompress compress --help`"]),
        (["compress"], 2, ["model"]),
        (["run", MBV2], 2, ["--data"]),
        (["run", MBV2, "--data", "images.npz", "--state", "x=z"], 2, ["'z'", "logits"]),
        (["run", MBV2, "--data", "images.npz", "-o", "text.onnx"], 2, ["--force"]),
        (["compare", MBV2], 2, ["other"]),
        (["passes", "fold-constant"], 2, ["'fold-constants'"]),
        (["recipes", "int8-weight"], 2, ["'int8-weights'"]),
        (["nonsense"], 2, ["nonsense"]),
    ],
)
def test_mistakes_end_in_one_line_and_the_promised_code(folder, monkeypatch, capsys, args, code, words):
    before = _files(folder)
    monkeypatch.chdir(folder)
    assert _main(monkeypatch, *args) == code
    out, err = capsys.readouterr()
    assert out == ""
    [line] = err.splitlines()
    assert line.startswith("onnxcompress: error: ")
    for word in words:
        assert word in line
    assert _files(folder) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_not_writable_is_found_before_the_work(run, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    done = run("compress", "missing.onnx", "-o", "locked/m.onnx", cwd=tmp_path)
    assert done.returncode == 3
    assert "no permission" in done.stderr


@pytest.mark.parametrize("name", ["m.onnx", "r.json"])
def test_force_replaces_what_is_there(run, tmp_path, name):
    (tmp_path / name).write_text("old")
    args = ["compress", MBV2, "-o", "m.onnx", "--recipe", "fold", "--json", "r.json"]
    assert run(*args, cwd=tmp_path).returncode == 2
    assert (tmp_path / name).read_text() == "old"
    assert run(*args, "--force", cwd=tmp_path).returncode == 0
    assert len((tmp_path / name).read_bytes()) > 1000


def test_external_data_goes_where_it_is_wanted(run, tmp_path):
    args = ["compress", MBV2, "-o", "m.onnx", "--recipe", "fold", "--force", "-q", "--external-data"]
    assert run(*args, "always", cwd=tmp_path).returncode == 0
    assert len(_files(tmp_path)) == 2
    assert run(*args, "never", cwd=tmp_path).returncode == 0
    assert _files(tmp_path) == ["m.onnx"]


def test_selection_reaches_the_passes(run, tmp_path):
    def changed(*args):
        done = run(
            "compress", MBV2, "-o", "m.onnx", "--recipe", "int8-weights", "--plan", "--json", "-", *args, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        found = [c for c in json.loads(done.stdout)["changes"] if c["pass"] == "quantize-weights"]
        return {c["target"] for c in found if c["action"] == "applied"}

    assert changed("--only", "op:Gemm") == {"fc.weight"}
    assert changed() - changed("--skip", "op:Gemm") == {"fc.weight"}


def test_a_plan_writes_and_measures_nothing(run, tmp_path):
    done = run(
        "compress", MBV2, "--recipe", "int8-weights", "-o", "nowhere/m.onnx", "--plan", "--max-bytes", "1", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "quantize-weights" in done.stdout
    assert "note: a plan" in done.stdout
    assert "latency" not in done.stdout
    assert _files(tmp_path) == []


def test_keep_node_metadata_keeps_what_the_exporter_wrote(run, tmp_path):
    model = onnx.load(MBV2)
    model.graph.node[-1].doc_string = "written by the exporter"
    onnx.save(model, tmp_path / "in.onnx")
    args = ["compress", "in.onnx", "-o", "out.onnx", "--recipe", "fold", "-q", "--force"]
    for flags, kept in (([], False), (["--keep-node-metadata"], True)):
        assert run(*args, *flags, cwd=tmp_path).returncode == 0
        assert (b"written by the exporter" in (tmp_path / "out.onnx").read_bytes()) is kept


def test_a_function_of_the_users_scores(run, folder):
    done = run(*COMPRESS, "--eval", "labelled.npz", "--metric", "mine:least", "--json", "-", cwd=folder)
    assert done.returncode == 0, done.stderr
    quality = json.loads(done.stdout)["quality"]
    assert quality["metric"] == "mine:least"
    assert quality["original"] < 0


def test_surgery_runs_a_function_of_the_users(run, folder):
    done = run(*COMPRESS, "--set", "surgery.function=mine:renamed", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert any(node.name == "renamed_by_me" for node in onnx.load(folder / "m.onnx").graph.node)


def test_compare_is_0_within_the_limit_and_1_beyond(run, tmp_path):
    oc.compress(MBV2, recipe="int8-weights").save(tmp_path / "m.onnx")
    args = ["compare", MBV2, "m.onnx", "--eval", MODELS / "fmnist_test.npz", "--json", "c.json", "--force"]
    done = run(*args, "--max-drop", "0.05", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "not equal: output 'logits'" in done.stdout
    done = run(*args, "--metric", "cosine", "--max-drop", "0", cwd=tmp_path)
    assert done.returncode == 1
    assert "--max-drop 0" in done.stderr
    found = json.loads((tmp_path / "c.json").read_text())
    assert found["equal"] is False
    assert found["limits"] == {"max_drop": 0.0}


def test_run_writes_what_the_model_says(run, tmp_path):
    done = run("run", MBV2, "--data", MODELS / "fmnist_calib.npz", "-o", "out.npz", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "logits" in done.stdout
    with np.load(tmp_path / "out.npz") as file:
        assert file.files == ["logits"]
        assert file["logits"].shape == (512, 10)


@pytest.mark.parametrize("args", [["passes"], ["passes", "fold-constants"], ["recipes"], ["recipes", "fold"]])
def test_lists_name_what_there_is(run, tmp_path, args):
    done = run(*args, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fold" in done.stdout


def test_one_pass_is_explained_with_its_options(run, tmp_path):
    done = run("passes", "quantize-weights", cwd=tmp_path)
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["min_elements", "int,", ">=", "1"] in [row[:4] for row in rows]
    assert ["clip", "none", "or", "mse", "none"] in rows


@pytest.mark.parametrize("command", ["compress", "inspect", "compare", "run", "passes", "recipes"])
def test_every_help_has_an_example(tmp_path, command):
    done = _run(command, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert f"Example: onnxcompress {command}" in " ".join(done.stdout.split())
    assert "\x1b" not in done.stdout


def test_version(tmp_path):
    done = _run("--version", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, f"onnxcompress {oc.__version__}\n")


def test_no_words_at_all_show_the_help(tmp_path):
    done = _run(cwd=tmp_path)
    assert done.returncode == 2
    assert "Usage" in done.stdout + done.stderr


def test_ctrl_c_is_130_without_a_traceback_or_a_partial_file(folder):
    before = _files(folder)
    args = [*COMPRESS, "--eval", "labelled.npz", "--metric", "mine:slow"]
    with _started(*args, cwd=folder) as process:
        deadline = time.monotonic() + 60
        while not (folder / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert (out, err) == ("", "onnxcompress: error: interrupted\n")
    assert _files(folder) == sorted([*before, "started"])


@pytest.mark.parametrize("args", [["passes"], ["inspect", MBV2], ["compress", MBV2, "-o", "m.onnx", "--json", "-"]])
def test_a_reader_that_goes_away_is_no_error(tmp_path, args):
    with _started(*args, cwd=tmp_path) as process:
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(timeout=60) == 0, err
    assert err == ""


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 3, "out of memory"),
        (OSError(28, "No space left on device", "/tmp/x"), 3, "/tmp/x: No space left on device"),
        (UsageError("two\nlines \x1b[31m"), 2, "two lines \\x1b[31m"),
    ],
)
def test_errors_from_anywhere_are_one_line(monkeypatch, capsys, tmp_path, error, code, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(compress_job, "compress", fail)
    assert _main(monkeypatch, "compress", MBV2, "-o", tmp_path / "m.onnx") == code
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"onnxcompress: error: {words}" or line.startswith(f"onnxcompress: error: {words}.")


def test_json_has_no_numbers_that_are_none(tmp_path):
    console.write_json(tmp_path / "r.json", {"a": [float("inf"), 1.5, {"b": float("nan")}], "c": (1, None)})
    assert json.loads((tmp_path / "r.json").read_text()) == {"a": [None, 1.5, {"b": None}], "c": [1, None]}


@pytest.mark.parametrize(("recipe", "code"), [("int8-weights", 70), ("fold", 0)])
def test_a_bug_in_a_pass_is_told_last_and_is_70_where_nothing_was_done(monkeypatch, capsys, tmp_path, recipe, code):
    def fail(*_):
        raise KeyError("ours")

    chosen = Recipe.load(recipe).active
    guilty = next((each for each in chosen if not each.lossless), chosen[0])
    monkeypatch.setattr(type(guilty), "run", fail)
    assert _main(monkeypatch, "compress", MBV2, "-o", tmp_path / "m.onnx", "--recipe", recipe) == code
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{guilty.name}: internal error: KeyError: 'ours': please report" in last


def test_a_bug_of_ours_is_70_with_a_traceback_and_a_request(monkeypatch, capsys, tmp_path):
    def fail(*_, **__):
        raise KeyError("ours")

    monkeypatch.setattr(compress_job, "compress", fail)
    assert _main(monkeypatch, "compress", MBV2, "-o", tmp_path / "m.onnx") == 70
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "KeyError: 'ours'" in err
    assert "please report it" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("given", "count"),
    [("5MB", 5_000_000), ("500KB", 500_000), ("1.5MiB", 1_572_864), (" 2 kib ", 2048), ("70000", 70_000), ("7b", 7)],
)
def test_sizes(given, count):
    assert parse_bytes(given) == count


@pytest.mark.parametrize("given", ["", "MB", "-5MB", "5TB", "0", "0.1b", "1e3", "0.3x"])
def test_what_is_no_size(given):
    with pytest.raises(UsageError, match="--max-bytes"):
        parse_bytes(given)


@pytest.mark.parametrize("closed", [(1,), (2,), (1, 2)])
def test_output_that_the_caller_closed_is_no_bug_and_no_file_gets_it(closed, tmp_path):
    def close():
        for number in closed:
            os.close(number)

    process = subprocess.run(
        _command("compress", MBV2, "-o", "small.onnx", "--recipe", "fold"),
        cwd=tmp_path,
        env=ENVIRONMENT,
        check=False,
        timeout=120,
        preexec_fn=close,
    )
    assert process.returncode == 0
    onnx.checker.check_model(onnx.load(tmp_path / "small.onnx"))


@pytest.mark.parametrize("option", ["-o", "--json"])
def test_devices_and_pipes_are_not_replaced(option, tmp_path, monkeypatch, capsys):
    os.mkfifo(tmp_path / "pipe")
    code = _main(monkeypatch, "compress", MBV2, option, tmp_path / "pipe", "--force", "-q")
    assert code == 2
    assert "is a device or a pipe" in capsys.readouterr().err
    assert (tmp_path / "pipe").is_fifo()


def test_int8_for_another_processor_is_not_timed_but_proved(run, tmp_path):
    np.savez(tmp_path / "few.npz", x=np.load(MODELS / "fmnist_calib.npz")["x"][:20])
    args = ["compress", MBV2, "-o", "a.onnx", "--recipe", "int8", "--data", "few.npz", "--target", "arm"]
    done = run(*args, "--json", "first.json", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "first.json").read_text())
    assert set(report["timings"]) == {"result"}
    assert any(c["pass"] == "quantize-static" and c["action"] == "applied" for c in report["changes"])
    done = run(*args, "--timings", "first.json", "--prefer", "size", "--json", "-", "--force", cwd=tmp_path)
    smallest = json.loads(done.stdout)
    assert smallest["latency"] == report["latency"]
    assert smallest["output"]["bytes"] < report["output"]["bytes"]
    done = run(*args, "--timings", "few.npz", "--force", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
