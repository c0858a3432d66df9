"""A pipeline as a value: models by name, the function that runs them on a sample, and the metric of its predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ModelError, UsageError
from ..io.signatures import open_model
from ..quality.task.metric import TaskMetric
from ..runtime.tensor_spec import TensorSpec
from .sessions import PartSession

RunsSample = Callable[[Mapping[str, PartSession], Any], Any]
"""(sessions by the names of their parts, sample) -> prediction."""


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Several models and how they work together.

    Args:
        parts: name -> path of the model.
        run: (sessions, sample) -> prediction. `sessions[name].run(names, feed)` returns a list of arrays, as sessions
            of onnxruntime do. A sample is what the data holds, without its label.
        metric: the name of a metric of tasks (`quality.task.known`), `module:function`, or a function of all
            predictions and all labels, higher where better; None: `--metric` says it.
        data: samples to work with, where `--data` gives none: see `composite.samples.read`.
        eval_data: labelled samples by which the whole is judged, where `--eval` gives none.
        folder: of whose other files (tokenizers, configurations) a result gets copies; None: of none.
        inputs: of a model, that samples are fitted to; None: samples are passed on as they are.
        notes: what the user should know about how it was recognised.
    """

    parts: Mapping[str, Path]
    run: RunsSample
    metric: str | Callable[..., float] | TaskMetric | None = None
    data: Any = None
    eval_data: Any = None
    folder: Path | None = None
    inputs: tuple[TensorSpec, ...] | None = None
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        """Keep the parts as paths, and look at each.

        Raises:
            UsageError: there is no part, two are one file, or `run` can't be called.
            ModelError: a file can't be a model.
        """
        if not isinstance(self.parts, Mapping) or not self.parts:
            raise UsageError("a pipeline has parts: a dictionary of names and paths of models")
        if not callable(self.run):
            raise UsageError("run of a pipeline is a function of sessions and a sample")
        paths = {str(name): Path(path) for name, path in self.parts.items()}
        for path in paths.values():
            open_model(path)
        seen: dict[Path, str] = {}
        for name, path in paths.items():
            other = seen.setdefault(path.resolve(), name)
            if other != name:
                raise UsageError(f"parts {other!r} and {name!r} are one file", where=str(path))
        object.__setattr__(self, "parts", paths)

    def target(self, name: str) -> Path:
        """Return the place of a part's result within the folder of results: as it lies in its own.

        Raises:
            ModelError: two parts of one name lie in different folders.
        """
        places = {
            each: path.relative_to(self.folder) if self.folder else Path(path.name) for each, path in self.parts.items()
        }
        twin = next((each for each in places if each != name and places[each] == places[name]), None)
        if twin is not None:
            raise ModelError(f"parts {twin!r} and {name!r} have files of one name", where=str(self.parts[name]))
        return places[name]
