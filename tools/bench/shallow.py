"""Shallower models and students by the metrics of their own evals: what goes, what is lost, what it takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import run
from bench.process import ROOT, TOOLS_FOLDER
from bench.tables import Table
from bench.weights import evaluate

_THIN = str(Path(__file__).parent / "low-rank.toml")
_CUT = ("criterion=magnitude", "scope=uniform", "keep_macs=0.5", "refit=false", "distill_steps=0")
_INSIDE = ("--only", "/body/*/c1/Conv", "--only", "/body/*/c2/Conv")
"""Where the student of a ResNet is cut: inside its branches."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked of one model.

    Args:
        model: its key in the zoo.
        how: what is done, as it stands in the table.
        options: of our command `compress`; None for `distill`, with the model as the teacher.
        most: metric -> most that may be lost; of `floor`, the least that has to be reached.
        samples: calibration feeds.
        is_wide: the model gets wide layers at its end first.
    """

    model: str
    how: str
    options: Sequence[str] | None
    most: Mapping[str, float]
    samples: int
    is_wide: bool = False
    floor: float | None = None

    @property
    def key(self) -> str:
        """What `--only` is matched with."""
        return f"{self.model}: {self.how}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of it; shares are of the original, or of the teacher."""

    key: str
    before: Mapping[str, float] = field(default_factory=dict)
    given: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)
    latency: float | None = None
    bytes_share: float | None = None
    macs: float | None = None
    note: str = ""
    seconds: float | None = None
    cpu_seconds: float | None = None
    error: str = ""


def targets() -> list[Target]:
    """Return all rows of the table."""

    def shallow(*settings: str) -> list[str]:
        return ["--recipe", "shallow", *(part for each in settings for part in ("--set", each))]

    def thin(*only: str) -> list[str]:
        settings = ("low-rank.keep_parameters=0.5", "low-rank.conv=none", "low-rank.accept=smaller")
        return ["--recipe", _THIN, *only, *(part for each in settings for part in ("--set", each))]

    two = ("drop-blocks.keep_macs=0.1", "drop-blocks.most=2")
    return [
        Target(model="fmnist/vit", how="a quarter of the MACs", options=shallow(), most={"top1": 0.015}, samples=1024),
        Target(model="fmnist/resnet14", how="two branches", options=shallow(*two), most={"top1": 0.01}, samples=1024),
        Target(
            model="minilm/model",
            how="a sixth of the layers",
            options=shallow("drop-blocks.keep_macs=0.85"),
            most={"sent_acc": 0.015, "lee_pearson": 0.02},
            samples=384,
        ),
        Target(
            model="fmnist/resnet14",
            how="wide Gemm layers at half their bytes",
            options=thin("--only", "op:Gemm"),
            most={"top1": 0.005},
            samples=1024,
            is_wide=True,
        ),
        Target(
            model="ppocr_rec/model",
            how="wide product at half its bytes",
            options=thin("--only", "p2o.MatMul.24"),
            most={"char_acc": 0.005},
            samples=256,
        ),
        Target(
            model="fmnist/resnet14",
            how="distill: half the MACs cut by magnitude",
            options=None,
            most={},
            samples=2048,
            floor=0.915,
        ),
    ]


def measure(wanted: Sequence[Target], zoo: Path, work: Path) -> Iterator[Row]:
    """Do what is wanted with each model, evaluate it, and race it against the original."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TOOLS_FOLDER)])}
    for target in wanted:
        folder = Path(tempfile.mkdtemp(prefix="shallow-", dir=work))
        try:
            yield _row(target, (zoo / target.model).with_suffix(".onnx"), folder, environment)
        except subprocess.CalledProcessError as error:
            yield Row(key=target.key, error=(error.stderr.strip().splitlines() or ["failed"])[-1])
        finally:
            shutil.rmtree(folder)


def _row(target: Target, model: Path, folder: Path, environment: dict[str, str]) -> Row:
    home = model.parent
    data, out, report = folder / "samples", folder / "out.onnx", folder / "report.json"
    python = [sys.executable, "-m"]
    _call([*python, "bench.samples", home, model, data, target.samples], environment)
    if target.is_wide:
        _call([*python, "bench.wide", home, model, folder / "wide.onnx", target.samples], environment)
        model = folder / "wide.onnx"
    if target.options is not None:
        command = [*python, "onnxcompress", "compress", model, *target.options]
        given = {}
    else:
        student = folder / "student.onnx"
        settings = [part for each in _CUT for part in ("--set", f"prune-channels.{each}")]
        _call(
            [*python, "onnxcompress", "compress", model, "-o", student, "--recipe", "prune", *settings, *_INSIDE, "-q"],
            environment,
        )
        command = [*python, "onnxcompress", "distill", student, "--teacher", model]
        given, _ = evaluate(home, student, environment)
    command += ["-o", out, "--data", data, "--json", report, "-q"]
    measured = run([str(each) for each in command], environment=environment)
    if measured.exit_code or not out.exists():
        return Row(key=target.key, error=measured.errors or f"exit {measured.exit_code}")
    before, error = evaluate(home, model, environment)
    after, fault = evaluate(home, out, environment)
    told = json.loads(report.read_text())
    facts = told if target.options is not None else told["comparison"]
    sides = ("input", "output") if target.options is not None else ("original", "compressed")
    macs = [facts[side]["macs"] for side in sides]
    ratios = json.loads(_call([*python, "bench.race", data, model, out], environment))
    return Row(
        key=target.key,
        before=before,
        given=given,
        after=after,
        latency=ratios[0],
        bytes_share=out.stat().st_size / model.stat().st_size,
        macs=macs[1] / macs[0] if all(macs) else None,
        note=_said(told),
        seconds=measured.seconds,
        cpu_seconds=measured.cpu_seconds,
        error=error or fault,
    )


def _said(report: Mapping[str, object]) -> str:
    """Return what a report says was done, in short."""
    changes = report.get("changes")
    if isinstance(changes, list):
        names = ("drop-blocks", "low-rank", "merge-layers", "linearize")
        done = [each for each in changes if each["action"] == "applied" and each["pass"] in names]
        return "; ".join(f"{each['pass']}: {each['reason']}" for each in done if each["target"] == "graph")
    return f"{report.get('divergence')}, kept: {report.get('kept')}"


def _call(command: Sequence[object], environment: dict[str, str]) -> str:
    """Run a command and return the last line that it prints."""
    words = [str(each) for each in command]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    return (done.stdout.strip().splitlines() or [""])[-1]


def table(rows: Sequence[Row]) -> Table:
    """Tabulate the rows in the order of `targets`; a star marks what misses what was asked."""
    columns = ("model", "before", "after", "asked", "MACs", "bytes", "time", "wall s", "CPU s", "error")
    found = Table("Shallow", columns)
    of_key = {row.key: row for row in rows}
    for target in targets():
        row = of_key.get(target.key)
        if row is None:
            continue
        names = list(target.most) or ["top1"]
        start = row.given if target.floor is not None else row.before
        missed = [row.before.get(n, 0.0) - row.after.get(n, 0.0) > most for n, most in target.most.items()]
        missed += [row.after.get("top1", 0.0) < target.floor] if target.floor is not None else []
        asked = [f"-{most:g}" for most in target.most.values()] or [f"{target.floor:g}"]
        found.add(
            target.key,
            *(", ".join(f"{n} {each.get(n, float('nan')):.4f}" for n in names) for each in (start, row.after)),
            ", ".join(asked) + ("*" if any(missed) else ""),
            row.macs,
            row.bytes_share,
            row.latency,
            *(None if each is None else round(each) for each in (row.seconds, row.cpu_seconds)),
            row.error,
        )
    return found
