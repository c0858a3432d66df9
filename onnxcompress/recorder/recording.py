"""Record what sessions of this process are fed: `with onnxcompress.recording("FEEDS"): ...`."""

from __future__ import annotations

import contextlib
import importlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ..base import atomic_files
from ..base.quantities import parse_bytes
from ..errors import ModelError, UsageError
from . import hook, identity
from .store import INDEX, KEEPS, SETTINGS, FeedStore

Keep = Literal["first", "reservoir", "shapes"]

DEFAULT_MOST = 256
"""Samples of each model. Chosen by judgement: the most that are held out, and four times what classifiers need."""

DEFAULT_BYTES = 500_000_000
"""Of all samples. Chosen by judgement."""


class Recorder:
    """Keeps samples in a folder, by model; made by `recording`, or by itself for sessions that are wrapped one by one.

    Args:
        folder: a new or empty folder.
        most: samples kept of each model.
        keep: which: "reservoir" is a fair draw of all runs, "first" the first ones, "shapes" is spread over shapes.
        max_bytes: of all samples: a number of bytes, or a text like "500MB".
        seed: of the draw.
        force: replace an earlier recording.

    Raises:
        UsageError: the folder is not empty, or a value is out of range.
        ModelError: the folder can't be written to.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        most: int = DEFAULT_MOST,
        keep: Keep = "reservoir",
        max_bytes: int | str = DEFAULT_BYTES,
        seed: int = 0,
        force: bool = False,
    ) -> None:
        self.folder = Path(folder).absolute()
        budget = parse_bytes(max_bytes, where="max_bytes") if isinstance(max_bytes, str) else max_bytes
        prepare(self.folder, most=most, keep=keep, max_bytes=budget, force=force)
        try:
            self._store = FeedStore(self.folder, most=most, keep=keep, max_bytes=budget, seed=seed)
        except OSError as error:
            raise ModelError(f"can't be written ({error.strerror or error})", where=str(folder)) from error

    def wrap(self, session: Any, model: str | Path | bytes) -> RecordedSession:
        """Return a session that runs `session` and keeps what it is fed.

        Args:
            session: anything with `get_inputs`, `get_outputs` and `run(names, feed)`, as onnxruntime's sessions have.
            model: the file or the bytes that it was made of.

        Raises:
            ModelError: the file can't be read.
        """
        try:
            known = identity.of_bytes(model) if isinstance(model, bytes) else identity.of_file(model)
        except OSError as error:
            raise ModelError(f"can't be read ({error.strerror or error})", where=str(model)) from error
        path = "" if isinstance(model, bytes) else str(Path(model).absolute())
        return RecordedSession(session, hook.WatchedSession(self._store, session, known, path))

    def close(self) -> None:
        """Write what was counted; no more is recorded."""
        self._store.close()

    def watch(self) -> hook.Watch:
        """Record every session of onnxruntime in this process until the watch is stopped.

        Raises:
            ModelError: onnxruntime can't be imported.
        """
        try:
            module = importlib.import_module(hook.MODULE)
        except ImportError as error:
            raise ModelError(f"onnxruntime can't be imported: {error}") from error
        return hook.Watch(module, self._store)


class RecordedSession:
    """A session whose runs are recorded; every other attribute is that of the session itself."""

    def __init__(self, session: Any, watched: hook.WatchedSession) -> None:
        self._session, self._watched = session, watched

    def __getattr__(self, name: str) -> Any:
        """Return what the session has."""
        return getattr(self._session, name)

    def run(self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None) -> Any:
        """Run the session and return its outputs; the feed is kept where the run succeeds."""
        sample = self._watched.before(input_feed)
        try:
            outputs = self._session.run(output_names, input_feed, run_options)
        except BaseException:
            if sample is not None:
                sample.discard()
            raise
        self._watched.after(sample, output_names, outputs)
        return outputs


@contextlib.contextmanager
def recording(
    folder: str | Path,
    *,
    most: int = DEFAULT_MOST,
    keep: Keep = "reservoir",
    max_bytes: int | str = DEFAULT_BYTES,
    seed: int = 0,
    force: bool = False,
) -> Iterator[Recorder]:
    """Record what every `onnxruntime.InferenceSession` of this process is fed while the block runs.

    `--data FOLDER` and `data=FOLDER` take the recording for a model that was run; `FOLDER/MODEL` for any with its
    inputs. Sessions opened before the block are recorded too. Arguments and errors are those of `Recorder`.
    """
    recorder = Recorder(folder, most=most, keep=keep, max_bytes=max_bytes, seed=seed, force=force)
    watch = recorder.watch()
    try:
        yield recorder
    finally:
        watch.stop()
        recorder.close()


def prepare(folder: Path, *, most: int, keep: str, max_bytes: int, force: bool) -> None:
    """Make an empty folder for a recording, in place of an earlier one with `force`.

    Raises:
        UsageError: it is there and not empty, or holds other things than a recording; a value is out of range.
        ModelError: it can't be made.
    """
    if most < 1 or max_bytes < 1:
        raise UsageError("at least one sample and one byte have to be kept", where=str(folder))
    if keep not in KEEPS:
        raise UsageError(f"{keep!r} is none of {', '.join(KEEPS)}", where="keep")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UsageError("is there and is no folder", where=str(folder), hint="Give the name of a new folder")
    atomic_files.check_parents(folder)
    content = sorted(folder.iterdir()) if folder.is_dir() else []
    if content and not force:
        raise UsageError("is not empty", where=str(folder), hint="Give --force to replace an earlier recording")
    if content and not (folder / SETTINGS).is_file():
        raise UsageError("holds no recording and is not replaced", where=str(folder), hint="Give a new folder")
    foreign = [path for path in content if path.name != SETTINGS and not (path / INDEX).is_file()]
    if foreign:
        raise UsageError(f"{foreign[0].name!r} in it is of no recording", where=str(folder), hint="Give a new folder")
    try:
        for path in content:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"can't be written ({error.strerror or error})", where=str(folder)) from error
