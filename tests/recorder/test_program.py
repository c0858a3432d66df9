"""Programs that know nothing of the recording: several sessions, threads, crashes, child processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxcompress.errors import UsageError
from onnxcompress.recorder import catalogue, program

from .decoders import PROGRAM, decoder, encoder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoder(tmp_path / "encoder.onnx")
    decoder(tmp_path / "decoder.onnx")
    (tmp_path / "app.py").write_text(PROGRAM)
    return tmp_path


def recorded(*command, most=256, keep="reservoir", max_bytes=10**8):
    feeds = Path("feeds")
    code = program.run([sys.executable, *command], feeds, most=most, keep=keep, max_bytes=max_bytes, seed=0)
    return code, {model.folder.name: model for model in catalogue.read(feeds)}


def shapes(model, name):
    return [np.load(path)[name].shape for path in sorted(model.folder.glob("*.npz"))]


@pytest.mark.parametrize(
    ("mode", "code", "sentences"), [("five", 5, 6), ("threads", 0, 6), ("crash", 1, 4), ("kill", 137, 4)]
)
def test_every_run_up_to_the_end_is_there_with_the_states(folder, mode, code, sentences):
    found, models = recorded("app.py", mode)
    assert found == code
    assert {name: model.samples for name, model in models.items()} == {
        "encoder": sentences,
        "decoder": 5 * sentences,
    }
    assert dict(models["decoder"].states) == {"past": "present"}
    assert models["decoder"].caches == ("present",)
    assert dict(models["encoder"].states) == {}
    lengths = [shape[1] for shape in shapes(models["decoder"], "past")]
    assert lengths.count(0) == sentences
    assert set(lengths) == {0, 3, 4, 5, 6, 7}
    assert not list(Path("feeds").glob("*/.*.part"))


def test_the_program_is_told_nothing_and_its_arguments_and_output_are_its_own(folder):
    command = [sys.executable, "-m", "onnxcompress", "record", "-o", "feeds", "--", sys.executable, "app.py", "x"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--force", "-o"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert done.stdout == "said --force -o\n"
    assert "decoder: 30 of 30 runs kept" in done.stderr
    assert "past=present" in done.stderr


@pytest.mark.parametrize("way", ["spawn", "fork"])
def test_child_processes_are_recorded_into_the_same_folder(folder, way):
    Path("pool.py").write_text(
        "import multiprocessing, numpy as np\n"
        "def work(n):\n"
        "    import onnxruntime as ort\n"
        "    session = ort.InferenceSession('encoder.onnx')\n"
        "    for each in range(4): session.run(None, {'sound': np.full((1, n, 16), each, 'f')})\n"
        "if __name__ == '__main__':\n"
        f"    with multiprocessing.get_context('{way}').Pool(2) as pool: pool.map(work, [1, 2, 3, 4])\n"
    )
    code, models = recorded("pool.py")
    assert code == 0
    assert models["encoder"].samples == 16
    assert sorted(shape[1] for shape in shapes(models["encoder"], "sound")) == [1] * 4 + [2] * 4 + [3] * 4 + [4] * 4


def test_a_module_and_a_sitecustomize_of_the_users_own_run_as_before(folder, monkeypatch):
    (folder / "own").mkdir()
    (folder / "own" / "sitecustomize.py").write_text("import builtins\nbuiltins.mine = 3\n")
    (folder / "tool.py").write_text("import app\nassert mine == 3, 'hidden'\n")
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'own'}{os.pathsep}{folder}")
    monkeypatch.setattr(sys, "argv", [])
    code, models = recorded("-m", "app", "one")
    assert code == 0
    assert models["encoder"].samples == 6
    code = program.run(
        [sys.executable, "-c", "assert mine == 3"], Path("more"), most=1, keep="first", max_bytes=9, seed=0
    )
    assert code == 0


def test_a_program_without_the_runtime_loads_nothing_for_the_recording(folder):
    watched = "import sys; sys.exit(any(n.startswith(('numpy', '_onnxcompress')) for n in sys.modules))"
    code, models = recorded("-c", watched)
    assert (code, models) == (0, {})


def test_what_a_draw_keeps_is_bounded_by_number_and_bytes(folder):
    _, models = recorded("app.py", "one", most=7, keep="first")
    assert models["decoder"].samples == 7
    assert models["decoder"].runs == 30
    assert [shape[1] for shape in shapes(models["decoder"], "past")] == [0, 3, 4, 5, 6, 0, 4]


def test_over_the_budget_the_larger_model_gives_up_samples(folder):
    _, models = recorded("app.py", "one", max_bytes=6000)
    assert sum(model.sample_bytes for model in models.values()) <= 6000
    assert models["decoder"].samples > 0
    assert models["encoder"].samples > 0
    kept = {path.name for path in models["decoder"].folder.glob("*.npz")}
    index = json.loads((models["decoder"].folder / "index.json").read_text())
    assert {each["file"] for each in index["samples"]} == kept


@pytest.mark.parametrize(
    ("command", "said"),
    [([], "no program"), (["no-such-program"], "no program that can be run"), (["app.py"], "Write python app.py")],
)
def test_a_program_that_can_not_be_started_is_refused(folder, command, said):
    with pytest.raises(UsageError, match=said):
        program.check(command)


def test_flags_by_which_python_ignores_the_path_are_told(folder):
    assert not program.inherits_python_path(["python3", "-I", "app.py"])
    assert program.inherits_python_path(["python3", "-m", "app"])
    assert program.inherits_python_path(["python3", "app.py", "-E"]) is True
