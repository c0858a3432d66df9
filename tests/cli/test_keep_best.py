"""Ctrl-C in a terminal while `auto` searches: with --keep-best the best so far is written, whole or not at all."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest

from onnxcompress.io import model_io
from tests.cli.test_cli import ENVIRONMENT
from tests.helpers import floats, with_constants

USER_CODE = """
import time
from pathlib import Path

def slow_search(graph):
    from onnxcompress.passes.auto.reductions import Reducer

    def never_ends(self, *_):
        with self._budget.step("prune-channels", "prune-channels 0.500"):
            Path("started").touch()
            while True:
                time.sleep(0.01)

    Reducer.ever_further = never_ends
"""


TEXT = """g (float[n, 64] x, float[64, 256] w, float[256, 8] v) => (float[n, 8] y) {
    m = MatMul(x, w) r = Relu(m) y = MatMul(r, v) }"""
COMMAND = ["compress", "m.onnx", "-o", "small.onnx", "--data", "data.npz", "--set", "surgery.function=mine:slow_search"]


@pytest.fixture
def folder(tmp_path):
    model = with_constants(TEXT, w=floats(64, 256), v=floats(256, 8))
    (tmp_path / "m.onnx").write_bytes(model_io.to_bytes(model))
    np.savez(tmp_path / "data.npz", x=floats(64, 64))
    (tmp_path / "mine.py").write_text(USER_CODE)
    return tmp_path


def interrupted(folder, *options, in_terminal=True):
    """Run the command, interrupt it in its search, and return exit code, standard output, and what the terminal got."""
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
    master, terminal = pty.openpty()
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "onnxcompress", *COMMAND, *options],
            cwd=folder, env=ENVIRONMENT | {"COLUMNS": "200", "TERM": "xterm"}, stdout=pipe,
            stderr=terminal if in_terminal else pipe, text=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, heard)
        os.close(terminal)
    shown = []
    reader = threading.Thread(target=_read, args=(master, shown), daemon=True)
    reader.start()
    deadline = time.monotonic() + 120
    while not (folder / "started").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    reader.join(10)
    os.close(master)
    return process.returncode, out, err or b"".join(shown).decode()


def _read(master, shown):
    """Take what is written to a terminal, until nobody has it open any more."""
    with contextlib.suppress(OSError):
        while data := os.read(master, 4096):
            shown.append(data)


def files(folder):
    return sorted(each.name for each in folder.iterdir() if each.name not in ("__pycache__", "started"))


@pytest.mark.parametrize("in_terminal", [True, False])
def test_the_best_so_far_is_written_and_the_report_says_why(folder, in_terminal):
    code, out, err = interrupted(folder, "--keep-best", "--json", "report.json", in_terminal=in_terminal)
    assert code == 0, err
    report = json.loads((folder / "report.json").read_text())
    assert report["interrupted"] is True
    note = "the user interrupted the run: search-best, fuse-transformers, shorten-names cut short"
    assert note in report["notes"]
    assert f"onnxcompress: {note}" in err
    onnx.checker.check_model(str(folder / "small.onnx"))
    assert (folder / "small.onnx").stat().st_size == report["output"]["bytes"] < 0.4 * report["input"]["bytes"]
    assert report["quality"]["drop"] is not None
    assert "small.onnx" in out
    if in_terminal:
        line = r"best so far: 0\.\d+ of the size, [^|]*drop [^|]*\| prune-channels 0\.500 \| \d+ of 300 CPU s left"
        assert re.search(line, err)
    else:
        assert "best so far" not in err
    assert files(folder) == ["data.npz", "m.onnx", "mine.py", "report.json", "small.onnx"]


def test_without_keep_best_nothing_is_written(folder):
    code, out, err = interrupted(folder, "--json", "report.json")
    assert (code, out) == (130, "")
    assert err.endswith("onnxcompress: error: interrupted\r\n")
    assert files(folder) == ["data.npz", "m.onnx", "mine.py"]
