"""Help is there at once: nothing heavy is imported before a command has work for it."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("onnx", "onnxruntime", "onnx_ir", "onnx_graphsurgeon", "numpy", "scipy", "sympy")

CODE = """
import sys
{}
heavy = sorted(set({!r}) & set(sys.modules))
assert not heavy, heavy
"""


def _python(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


CLI = """
sys.argv = {!r}
from onnxcompress.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""


def _cli(*words):
    return CLI.format(["onnxcompress", *words])


@pytest.mark.parametrize(
    "code",
    [
        "import onnxcompress",
        "from onnxcompress import OnnxCompressError, LimitError, __version__",
        _cli("--help"),
        _cli("--version"),
        *(_cli(command, "--help") for command in ("compress", "inspect", "run", "passes", "recipes")),
        _cli("docs"),
        _cli("docs", "int8"),
    ],
)
def test_nothing_heavy_is_imported(code):
    done = _python(CODE.format(code, HEAVY))
    assert done.returncode == 0, done.stderr


FAILING = """
sys.argv = {!r}
from onnxcompress.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == {}, end.code
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["compress", "missing.onnx"], 3, "missing.onnx: no such file"),
        (["compress", "README.md.zip"], 3, "no such file"),
        (["compress", "."], 3, ".: "),
        (["compress", "models/vit.onnx", "--data", "missing.npz"], 3, "missing.npz: no such file or folder"),
        (["compress", "models/vit.onnx", "--eval", "missing"], 3, "missing: no such file or folder"),
        (["compress", "models/vit.onnx", "--unknown"], 2, "--unknown"),
        (["compress", "models/vit.onnx", "--prefer", "nothing"], 2, "nothing"),
        (["compress", "models/vit.onnx", "--recipe", "int88"], 2, "unknown recipe 'int88'. Did you mean 'int8'?"),
        (["compress", "models/vit.onnx", "--recipe", "missing.toml"], 2, "can't read the recipe"),
        (["compress", "models/vit.onnx", "--set", "prune-channel.rounds=2"], 2, "Did you mean 'prune-channels'?"),
        (["compress", "models/vit.onnx", "--set", "rounds=2"], 2, "is not of the form PASS.FIELD=VALUE"),
        (["batch", "models", "-o", "out", "--recipe", "nothing"], 2, "unknown recipe 'nothing'"),
        (["passes", "prune-channel"], 2, "unknown pass 'prune-channel'. Did you mean 'prune-channels'?"),
        (["recipes", "int88"], 2, "unknown recipe 'int88'. Did you mean 'int8'?"),
        (["docs", "pruneing"], 2, "unknown topic 'pruneing'. Did you mean 'pruning'?"),
        (["inspect", "missing.onnx"], 3, "missing.onnx: no such file"),
        (["compare", "models/vit.onnx", "missing.onnx"], 3, "missing.onnx: no such file"),
        (["split", "missing.onnx", "-o", "parts"], 3, "missing.onnx: no such file"),
        (["distill", "models/vit.onnx", "--teacher", "missing.onnx", "-o", "o.onnx"], 3, "missing.onnx: no such file"),
    ],
)
def test_mistakes_are_named_before_anything_heavy_is_imported(words, code, said):
    done = _python(CODE.format(FAILING.format(["onnxcompress", *words], code), HEAVY))
    assert done.returncode == 0, done.stderr
    assert "AssertionError" not in done.stderr, "of the child that does the work"
    assert said in done.stderr


def test_what_is_no_model_is_named_before_anything_heavy_is_imported(tmp_path):
    whole = (ROOT / "models/vit.onnx").read_bytes()
    for start, said in (
        (b"PK\x03\x04", "is a zip archive"),
        (b"ONNXPACK", "is a packed model"),
        (b"", "is empty"),
        (whole[:5000], "malformed at byte"),
        (whole + whole, "holds 2 graphs"),
        (b"\x08\x08", "holds no graph"),
    ):
        path = tmp_path / "model.onnx"
        path.write_bytes(start)
        done = _python(CODE.format(FAILING.format(["onnxcompress", "compress", str(path)], 3), HEAVY))
        assert said in done.stderr
        assert "AssertionError" not in done.stderr


def test_the_check_would_notice():
    assert "numpy" in _python(CODE.format("from onnxcompress import load", HEAVY)).stderr


def test_help_answers_in_half_a_second():
    """The least processor time of several tries: waiting for a busy machine is not ours."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "onnxcompress", "--help"], cwd=ROOT, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5, times
