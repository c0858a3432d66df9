"""`onnxcompress compress` of a folder or of several models: one pipeline, judged by what it gives as a whole."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..composite.folders import model_files
from ..errors import LimitError, ModelError, UsageError

if TYPE_CHECKING:
    from ..composite.value import Pipeline
    from ..jobs.pipeline_report import PipelineReport
    from .shared_options import SharedOptions


@dataclass(frozen=True)
class Several:
    """The models of a pipeline as a user typed them.

    Args:
        models: a folder, or the models that `function` takes; one model is none.
        function: `module:function` that returns the pipeline.
        output: the folder for the results.
        share_weights: see `PipelineOptions`.
        json_file: what `--json` names.
    """

    models: Sequence[Path]
    function: str | None
    output: Path | None
    share_weights: str
    json_file: str | None

    @property
    def is_meant(self) -> bool:
        """False where one model is to be compressed."""
        return self.function is not None or len(self.models) > 1 or any(path.is_dir() for path in self.models)

    @property
    def only(self) -> Path:
        """The one model.

        Raises:
            UsageError: there is none.
        """
        if not self.models:
            raise UsageError("no model was given", where="MODEL", hint="Give an .onnx file, a folder, or --pipeline")
        return self.models[0]

    @staticmethod
    def check(given: Mapping[str, Any]) -> None:
        """Refuse options that hold for one model only.

        Args:
            given: option -> value, None, False or empty where it was not typed.

        Raises:
            UsageError: one was typed.
        """
        wrong = next((name for name, value in given.items() if value), None)
        if wrong is not None:
            raise UsageError("is for one model, and this is a pipeline of several", where=wrong, hint="Leave it out")

    def _check_folders(self) -> None:
        """Refuse a folder without models before anything heavy is imported."""
        for path in self.models:
            if self.function is None and path.is_dir() and not model_files(path):
                raise ModelError(
                    "holds no .onnx file", where=str(path), hint="Give a folder with the models of a pipeline"
                )

    def compress(self, shared: SharedOptions, *, force: bool, verbose: bool, quiet: bool) -> None:
        """Compress the models, write them into a folder, and report.

        Args:
            shared: options of one compression.
            force: replace existing files.
            verbose: log what is being done.
            quiet: print no tables.

        Raises:
            UsageError: models and function don't fit each other, or the folder is not empty.
            ModelError: a folder holds no model.
        """
        self._check_folders()
        from . import console

        keywords = shared.within_limit(shared.keywords())
        console.start_log(verbose=verbose, quiet=quiet)
        target = self.output or _default_target(self.models)
        from ..base import atomic_files
        from . import options

        atomic_files.check_folder(target, force=force)
        options.check_file(console.json_path(self.json_file), force=force)
        if any(path.is_dir() and path.resolve() == target.resolve() for path in self.models):
            raise UsageError("is the input itself", where=str(target), hint="Give another -o")
        from ..jobs import compress_pipeline as job

        pipeline = _pipeline(self.models, self.function, keywords)
        given = job.PipelineOptions(**keywords, share_weights=self.share_weights)  # type: ignore[arg-type]
        try:
            with console.display(quiet=quiet) as display:
                found = job.compress_pipeline(
                    pipeline, dataclasses.replace(given, progress=display.progress, show=display.show)
                )
        except LimitError as error:
            _publish(error.report, json_file=self.json_file, quiet=quiet)
            raise
        report = found.save(target, force=force)
        _publish(report, json_file=self.json_file, quiet=quiet)
        console.end_with_bugs(report.internal_errors, is_lost=False)


def _default_target(models: Sequence[Path]) -> Path:
    if len(models) == 1 and models[0].is_dir():
        return models[0].absolute().with_name(f"{models[0].absolute().name}-compressed")
    raise UsageError("a pipeline of several models is written to a folder", where="--output", hint="Give -o FOLDER")


def _pipeline(models: Sequence[Path], function: str | None, keywords: Mapping[str, Any]) -> Pipeline:
    from ..composite import layouts
    from ..jobs.compress_pipeline import pipeline_of

    if function is not None:
        return pipeline_of(function, models)
    folders = [path for path in models if path.is_dir()]
    if len(models) > 1 and folders:
        raise UsageError("give one folder, or several models", where=", ".join(map(str, models)))
    if folders:
        return layouts.recognise(folders[0], metric=keywords["metric"])
    parents = {path.absolute().parent for path in models}
    if len(parents) > 1:
        hint = "Give --pipeline module:function, or their folder"
        raise UsageError("models of several folders are no layout that is known", hint=hint)
    return layouts.recognise(parents.pop(), metric=keywords["metric"], models=models)


def _publish(report: PipelineReport, *, json_file: str | None, quiet: bool) -> None:
    from ..report.tables_pipeline import pipeline_tables
    from . import console

    report = dataclasses.replace(report, command=shlex.join(["onnxcompress", *sys.argv[1:]]))
    console.publish(report.as_json(), lambda: pipeline_tables(report), json_option=json_file, quiet=quiet)
