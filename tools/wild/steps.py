"""What is done with each model: the recipes as commands of the project, cheapest first."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ORT = "onnxruntime"
"""The step that asks onnxruntime's own quantizers."""


@dataclass(frozen=True, kw_only=True)
class Files:
    """Where one step reads and writes."""

    model: Path
    work: Path
    judge: Path
    folder: Path
    """For what the commands write."""

    @property
    def result(self) -> Path:
        """The compressed model."""
        return self.folder / "result.onnx"

    @property
    def report(self) -> Path:
        """The command's JSON."""
        return self.folder / "report.json"

    @property
    def parts(self) -> Path:
        """The folder of a split model."""
        return self.folder / "parts"

    @property
    def outputs(self) -> Path:
        """What a split model gives."""
        return self.folder / "outputs.npz"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that is tried.

    Args:
        name: as in the table.
        recipe: of `compress`; empty: another command.
        options: further ones of `compress`.
        lossless: nothing may change, so no loss is expected either.
    """

    name: str
    recipe: str = ""
    options: Sequence[str] = ()
    lossless: bool = False

    def commands(self, files: Files, state: Mapping[str, str]) -> list[list[str]]:
        """Return the commands, to be run one after another while each ends with 0."""
        ours = [sys.executable, "-m", "onnxcompress"]
        carried = [part for each in state.items() for part in ("--state", "=".join(each))]
        data = ["--data", str(files.work), *carried]
        if self.recipe:
            out = ["-o", str(files.result), "--json", str(files.report), "--force"]
            return [[*ours, "compress", str(files.model), "--recipe", self.recipe, *self.options, *data, *out]]
        if self.name == "inspect":
            return [[*ours, "inspect", str(files.model), *data, "--json", str(files.report), "--force"]]
        if self.name == "split":
            cut = ["-o", str(files.parts), "--parts", "4", "--json", str(files.report), "--force"]
            given = ["--data", str(files.judge), *carried, "-o", str(files.outputs), "--force"]
            return [
                [*ours, "split", str(files.model), *data, *cut],
                [*ours, "run", str(files.parts), *given],
            ]
        return []


STEPS = {
    step.name: step
    for step in (
        Step(name="inspect", lossless=True),
        Step(name="fold", recipe="fold", lossless=True),
        Step(name="int8-weights", recipe="int8-weights"),
        Step(name="float16", recipe="float16"),
        Step(name="int8", recipe="int8"),
        Step(name=ORT),
        Step(name="split", lossless=True),
        Step(name="int4-weights", recipe="int4-weights"),
        Step(name="prune", recipe="prune", options=("--set", "prune-channels.keep_macs=0.7")),
        Step(name="auto", recipe="auto"),
    )
}
"""By name, in the order in which they are run."""
