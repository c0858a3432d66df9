"""Compressed models of a pipeline, and how they are written: the folder as a whole, or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx_ir as ir

from ..base import atomic_files
from ..composite.sessions import PartSession
from ..composite.value import Pipeline
from ..io import file_checks, model_io, save_shared
from .pipeline_report import PipelineReport


@dataclass(frozen=True)
class PipelineResult:
    """Compressed models of a pipeline, and the report of how they came about."""

    pipeline: Pipeline
    models: Mapping[str, ir.Model]
    report: PipelineReport
    kept: frozenset[str] = field(default=frozenset())
    """Parts that are as they were given."""

    def save(self, folder: Path | str, *, force: bool = False) -> PipelineReport:
        """Write the models, with what else is in the pipeline's folder, and return the report with the place.

        The folder is written as a whole or not at all, after each model was loaded in the runtime from there.

        Raises:
            UsageError: the folder is not empty and `force` is off.
            ModelError: it can't be written, or a model does not load from it.
        """
        target = Path(folder).absolute()
        atomic_files.check_folder(target, force=force)
        atomic_files.remove_stale(target)
        pending = atomic_files.PendingFolder(target)
        try:
            places = {name: self.pipeline.target(name) for name in self.models}
            self._copy_others(pending.path, set(places.values()))
            if self.report.shared_bytes:
                models = {places[name]: model for name, model in self.models.items()}
                save_shared.write(save_shared.shared(models), pending.path, "shared")
            else:
                for name, model in self.models.items():
                    (pending.path / places[name]).parent.mkdir(parents=True, exist_ok=True)
                    model_io.save(model, pending.path / places[name])
            for place in places.values():
                PartSession.opened(pending.path / place)
            files = tuple(
                sorted(str(path.relative_to(pending.path)) for path in pending.path.rglob("*") if path.is_file())
            )
            pending.commit()
        finally:
            pending.discard()
        return self.report.located(target, files)

    def _copy_others(self, folder: Path, written: set[Path]) -> None:
        """Copy the other files of the pipeline's folder, but for the data files of its parts."""
        source = self.pipeline.folder
        if source is None:
            return
        data = {Path(name) for path in self.pipeline.parts.values() for name in _data_files(path, source)}
        for path in sorted(source.rglob("*")):
            place = path.relative_to(source)
            if path.is_file() and place not in written and place not in data:
                (folder / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / place)


def _data_files(path: Path, folder: Path) -> list[str]:
    """Return the data files that a model refers to, by their path within a folder."""
    return [
        str((path.parent / name).relative_to(folder))
        for name in file_checks.data_files(path)
        if (path.parent / name).is_file()
    ]
