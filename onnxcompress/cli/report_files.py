"""The files beside a result that a user asked for: JSON and a page."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    from ..jobs.report import Report


@dataclass(frozen=True, kw_only=True)
class Files:
    """Files of a report.

    Args:
        option: what `--json` was given.
        json: the file that it names, None for standard output.
        page: what `--report` names.
    """

    option: str | None
    json: Path | None
    page: Path | None

    def check(self, model: Path, target: Path | None, *, force: bool) -> None:
        """Find out before the work starts that a file can't be written after it.

        Raises:
            UsageError: two of them are the same, one exists and `force` is off, or a package is missing.
        """
        from ..base import atomic_files

        if not force and target is not None and target.exists() and model.exists() and target.samefile(model):
            raise UsageError("is the input itself", where=str(target), hint="Give another -o, or --force to replace it")
        taken = [path.absolute() for path in (target, model) if path]
        for name, path in (("--json", self.json), ("--report", self.page)):
            if path is not None:
                if path.absolute() in taken:
                    raise UsageError(
                        f"{name} names the same file as the model or another report",
                        where=str(path),
                        hint="Give it another name",
                    )
                taken.append(path.absolute())
        if self.page is not None:
            from ..report.files import check_format

            check_format(self.page)
        for path in (target, self.json, self.page):
            if path is not None:
                atomic_files.check_target(path, force=force)

    def publish(self, report: Report, *, verbose: bool, quiet: bool) -> None:
        """Write the report where it was asked for, and print it unless standard output is to be quiet or JSON."""
        from . import console

        report = dataclasses.replace(report, command=shlex.join(["onnxcompress", *sys.argv[1:]]))
        if self.json is not None:
            console.write_json(self.json, report.as_json())
        if self.page is not None:
            from ..report.files import write_report

            write_report(report, self.page)
        if self.option == "-":
            console.show_json(report.as_json())
        elif not quiet:
            from ..report import tables as report_tables

            console.show(report_tables.report_tables(report, every_change=verbose))
