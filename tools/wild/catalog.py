"""The catalog: real models out of packages, pinned in models.toml, with the inputs that programs around them give."""

from __future__ import annotations

import difflib
import gzip
import importlib
import shutil
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from fetch_models import FetchError, HashMismatchError, UnknownNameError, sha256_of

from .archives import Archive, Download, read_members

CATALOG = Path(__file__).with_name("models.toml")
SAMPLES = 64
"""Feeds to work with, and as many others to judge by: the issue's number."""
SEEDS = {"work": 20_261, "judge": 20_262}
"""Of the draws of either half; the halves also draw from different sources."""

Feed = Mapping[str, np.ndarray]
"""Inputs of one run by name, batch axis included."""
Which = Literal["work", "judge"]


@dataclass(frozen=True)
class Member:
    """A file that belongs to a model: its name beside the others, and where in the archive its parts are."""

    file: str
    parts: tuple[str, ...]
    sha256: str


@dataclass(frozen=True)
class WildModel:
    """A model of the trial.

    `files[0]` is the model, others hold weights beside it. `inputs` names a function of `wild.inputs` as
    "module:function", `options` are its arguments. `outputs` gives the kind of an output (a value of
    `--output-kind`, or boxes, scores, classes) where values alone don't tell. `state` maps an input to the
    output that fills it one run later. `samples` is fewer than 64 where a run takes seconds.
    """

    name: str
    kind: str
    archive: Archive
    files: tuple[Member, ...]
    inputs: str
    options: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""
    samples: int = SAMPLES
    data: Mapping[str, Archive] = field(default_factory=dict, repr=False)
    download: Download | None = field(default=None, repr=False)

    @property
    def registry(self) -> str:
        """Return pypi, npm or debian."""
        return self.archive.registry

    @property
    def package(self) -> str:
        """Return the package's name in its registry."""
        return self.archive.package

    @property
    def version(self) -> str:
        """Return the pinned version."""
        return self.archive.version

    @property
    def licence(self) -> str:
        """Return the licence in the package's metadata."""
        return self.archive.licence

    def fetch(self, folder: Path) -> Path:
        """Return the model's path below `folder`; what is there with the right hash is not fetched again.

        The packages stay in folder/archives. The model's files appear whole, or none does.

        Raises:
            FetchError: one line.
        """
        home = folder / self.name
        if all((home / m.file).is_file() and sha256_of(home / m.file) == m.sha256 for m in self.files):
            return home / self.files[0].file
        path = self.archive.fetch(folder / "archives", self.download)
        content = read_members(path, [part for member in self.files for part in member.parts])
        with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch_name:
            scratch = Path(scratch_name) / self.name
            scratch.mkdir()
            for member in self.files:
                (scratch / member.file).write_bytes(_joined(content, member.parts))
                found = sha256_of(scratch / member.file)
                if found != member.sha256:
                    raise HashMismatchError(
                        f"{self.name}: sha256 of {member.parts[0]} in {path.name} is {found}, "
                        f"expected {member.sha256}; nothing was kept"
                    )
            if home.is_dir():
                shutil.rmtree(home)
            scratch.replace(home)
        return home / self.files[0].file

    def write_feeds(self, model_path: Path, folder: Path, which: Which) -> Path:
        """Write the samples to work with or the ones to judge by, and return what `--data` takes.

        That is WHICH.npz, arrays with a leading sample axis, where every feed has the same shapes, else a folder
        WHICH of .npz feeds. What is there already is kept. The packages that the data come from are kept beside
        the models.

        Args:
            model_path: what `fetch` returned.
            folder: of this model's feeds alone.
            which: "work" or "judge"; the two share no content.

        Raises:
            FetchError: a package of the data can't be had.
        """
        for there in (folder / f"{which}.npz", folder / which):
            if there.exists():
                return there
        folder.mkdir(parents=True, exist_ok=True)
        sources = Sources(self.data, model_path.parent.parent / "archives", self.archive.key, which)
        module, _, function = self.inputs.partition(":")
        draw = getattr(importlib.import_module(f"wild.inputs.{module}"), function)
        feeds = [dict(feed) for feed, _ in zip(draw(sources, **self.options), range(self.samples), strict=False)]
        if len(feeds) < self.samples:
            raise FetchError(f"{self.name}: {self.inputs} gave {len(feeds)} of {self.samples} feeds")
        return _save(feeds, folder, which)


def _joined(content: Mapping[str, bytes], parts: Sequence[str]) -> bytes:
    """Return the parts one behind the other; a part whose name ends in .gz is unpacked."""
    return b"".join(gzip.decompress(content[part]) if part.endswith(".gz") else content[part] for part in parts)


@dataclass(frozen=True, eq=False)
class Sources:
    """The packages that inputs are made of, and which half of them is asked for."""

    archives: Mapping[str, Archive]
    folder: Path
    own: str
    which: Which

    @cached_property
    def random(self) -> np.random.Generator:
        """Return the generator of this half."""
        return np.random.default_rng(SEEDS[self.which])

    def read(self, key: str, *patterns: str) -> dict[str, bytes]:
        """Return files of a package by name, fetched if need be; `key` "own" is the model's package."""
        archive = self.archives[self.own if key == "own" else key]
        return read_members(archive.fetch(self.folder), patterns)

    def one(self, key: str, pattern: str) -> bytes:
        """Return the first file that matches."""
        return next(iter(self.read(key, pattern).values()))

    def half(self, items: Sequence[Any]) -> list[Any]:
        """Return this half of a list: every other entry."""
        return list(items[0 if self.which == "work" else 1 :: 2])


def _save(feeds: Sequence[dict[str, np.ndarray]], folder: Path, which: str) -> Path:
    shapes = [{name: array.shape for name, array in feed.items()} for feed in feeds]
    same = all(each == shapes[0] for each in shapes) and () not in shapes[0].values()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as scratch_name:
        if same:
            target, made = folder / f"{which}.npz", Path(scratch_name) / "all.npz"
            np.savez(made, **{name: np.stack([feed[name] for feed in feeds]) for name in feeds[0]})
        else:
            target, made = folder / which, Path(scratch_name) / which
            made.mkdir()
            for index, feed in enumerate(feeds):
                np.savez(made / f"{index:03d}.npz", **feed)
        made.replace(target)
    return target


def load_catalog(path: Path = CATALOG) -> list[WildModel]:
    """Read the models of a catalog file.

    Raises:
        FetchError: it is not what it should be; one line.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        archives = {key: Archive(key=key, **fields) for key, fields in content["archives"].items()}
        return [_model(dict(entry), archives) for entry in content["models"]]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise FetchError(f"{path.name}: {error}") from None


def select(models: Sequence[WildModel], names: Sequence[str]) -> list[WildModel]:
    """Return the models that are named, or of a kind that is named; all where nothing is.

    Raises:
        UnknownNameError: no model or kind is called so.
    """
    known = {model.name for model in models} | {model.kind for model in models}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1) or sorted(known)
            raise UnknownNameError(f"no model or kind is called {name!r}; did you mean {' or '.join(near)}?")
    return [model for model in models if not names or {model.name, model.kind} & set(names)]


def _model(entry: dict[str, Any], archives: Mapping[str, Archive]) -> WildModel:
    archive = archives[entry.pop("archive")]
    return WildModel(archive=archive, data=archives, files=tuple(_files(entry)), **entry)


def _files(entry: dict[str, Any]) -> Iterator[Member]:
    """Take the files out of an entry: `member` (a path, or the paths of parts to join) and `beside`."""
    member, sha256 = entry.pop("member"), entry.pop("sha256")
    yield Member(f"{entry['name']}.onnx", tuple([member] if isinstance(member, str) else member), sha256)
    for extra in entry.pop("beside", []):
        yield Member(extra["file"], (extra["member"],), extra["sha256"])
