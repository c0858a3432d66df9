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
    ],
)
def test_nothing_heavy_is_imported(code):
    done = _python(CODE.format(code, HEAVY))
    assert done.returncode == 0, done.stderr


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
