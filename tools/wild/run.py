"""One step on one model: its commands within limits, what they wrote, and what is true of it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnxruntime
from bench.process import ROOT, TOOLS_FOLDER

from wild import claims, feeds, runtime_best, shift, watched
from wild.steps import ORT, Files, Step

_JUDGE_LIMITS = watched.Limits(cpu_seconds=600, memory_bytes=12_000_000_000)
_FEW_SAMPLES = 16
"""Samples by which results are judged that are to be equal to the original."""
_MOST_REASONS = 30
"""Reasons that a row keeps."""
_RAW_STREAMS = ("stdout", "stderr")


class Model(Protocol):
    """What the trial needs of a model; `wild.catalog.WildModel` is one."""

    name: str
    kind: str
    state: Mapping[str, str]
    """Name of an input -> name of the output that it gets one feed later."""
    outputs: Mapping[str, str]
    """Kinds of outputs that rules would mistake."""

    def fetch(self, folder: Path) -> Path:
        """Return the path of the model below a folder, fetched unless it is there."""
        ...

    def write_feeds(self, model_path: Path, folder: Path, which: str) -> Path:
        """Return the path of the samples to "work" with or to "judge" by."""
        ...


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Where and how models are tried.

    Args:
        results: folder of the rows: MODEL/STEP.json, and what the commands wrote in MODEL/STEP/.
        cache: folder of models and samples.
        limits: of each command.
        keep: results are not deleted.
        judge_seconds: CPU time for the outputs of both models in one comparison.
        pair_seconds: CPU time for timing both models in one comparison.
        settings: of onnxruntime's quantizers.
    """

    results: Path
    cache: Path
    limits: watched.Limits
    keep: bool = False
    judge_seconds: float = 60.0
    pair_seconds: float = 6.0
    settings: Sequence[str] = runtime_best.SETTINGS

    def run(self, model: Model, steps: Sequence[Step], *, again: bool = False) -> Iterator[dict[str, Any]]:
        """Yield a row for each step that has no current one yet.

        Raises:
            OSError: the results can't be written.
        """
        path = model.fetch(self.cache)
        sha256 = _sha256(path)
        data: dict[str, Path] = {}
        for step in steps:
            target = self.results / model.name / f"{step.name}.json"
            if not again and is_current(target, sha256, step):
                continue
            folder = target.with_suffix("")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            for which in () if data else ("work", "judge"):
                data[which] = model.write_feeds(path, self.cache / "feeds" / model.name, which)
            files = Files(model=path, work=data["work"], judge=data["judge"], folder=folder)
            row = {
                "model": model.name,
                "kind": model.kind,
                "step": step.name,
                "model_sha256": sha256,
                "version": version_of(step),
                "model_bytes": bytes_of(path),
            }
            row |= self._ort(model, files) if step.name == ORT else self._ours(model, step, files, sha256)
            write_row(target, row)
            if not self.keep:
                _delete_results(files)
            yield row

    def _ours(self, model: Model, step: Step, files: Files, sha256: str) -> dict[str, Any]:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        went = [
            watched.run(
                command,
                limits=self.limits,
                stdout=files.folder / f"{number}.stdout",
                stderr=files.folder / f"{number}.stderr",
                environment=environment,
            )
            for number, command in _while_well(step.commands(files, model.state), files.folder)
        ]
        last = went[-1]
        row: dict[str, Any] = {
            "recipe": step.recipe,
            "exit_code": last.exit_code,
            "limit": last.limit,
            "seconds": sum(each.seconds for each in went),
            "cpu_seconds": sum(each.cpu_seconds for each in went),
            "peak_bytes": max(each.peak_bytes for each in went),
            **_logs(files.folder, len(went)),
            **read_report(files.report),
        }
        made = next((path for path in (files.result, files.outputs) if path.exists()), None)
        row["size_ratio"] = bytes_of(files.result, "result*") / bytes_of(files.model) if files.result.exists() else None
        row["measured"] = None
        if made and last.exit_code == 0:
            few = {"samples": _FEW_SAMPLES} if step.lossless else {}
            row["measured"] = self._judge(model, files, made, row["told"], few)
        row["runs"] = self._runs(model, files) if last.exit_code == 3 else None
        is_lossy = bool(row["measured"] and not row["measured"]["error"] and row["told"] and not step.lossless)
        row["shifts"] = self._shifts(model, files, sha256) if is_lossy else {}
        row["claims"] = claims.wrong_claims(row["told"], row["measured"], row["shifts"])
        row["over"] = claims.broken_limits(row | {"model_bytes": bytes_of(files.model)})
        row["outcome"] = claims.outcome(row)
        return row

    def _ort(self, model: Model, files: Files) -> dict[str, Any]:
        samples = files.folder / "samples"
        try:
            feeds.write_single(files.work, files.model, model.state, samples)
            found = runtime_best.measure(
                files,
                samples,
                functools.partial(self._judge, model, files, told=None),
                self.limits,
                settings=self.settings,
            )
        except Exception as error:  # noqa: BLE001 - a model that onnxruntime does not run is a row, too
            return {"outcome": "refused", "message": " ".join(str(error).split())[:300], "settings": []}
        finally:
            shutil.rmtree(samples, ignore_errors=True)
        return {"outcome": "done" if any(not each["error"] for each in found) else "refused", "settings": found}

    def _shifts(self, model: Model, files: Files, sha256: str) -> dict[str, float]:
        """Return `shift.factors` of a model, measured once."""
        target = self.results / model.name / "samples" / "shift.json"
        if target.exists():
            known = json.loads(target.read_text())
            if known["model_sha256"] == sha256:
                return dict(known["factors"])
        target.parent.mkdir(exist_ok=True)
        copy = files.folder / "copy.onnx"
        command = [sys.executable, "-P", "-m", "wild.shift", str(files.model), str(copy)]
        logs = [target.with_suffix(f".{stream}") for stream in _RAW_STREAMS]
        watched.run(command, limits=_JUDGE_LIMITS, stdout=logs[0], stderr=logs[1], environment=_tools_environment())
        found = {}
        if copy.exists():
            more = {"as_numbers": True, "pair_seconds": 0}
            answers = [
                self._judge(model, files, copy, None, more | {"judge": str(p)}) for p in (files.judge, files.work)
            ]
            found = shift.factors(*answers)
            copy.unlink()
        write_row(target, {"model_sha256": sha256, "factors": found})
        return found

    def _runs(self, model: Model, files: Files) -> bool:
        """Say whether onnxruntime runs the original on samples that were refused."""
        answer = self._judge(model, files, files.model, None)
        return not answer["error"]

    def _judge(
        self,
        model: Model,
        files: Files,
        result: Path,
        told: Mapping[str, Any] | None,
        more: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Ask the judge, in a process of its own; `more` are further entries of its request."""
        request = {
            "original": str(files.model),
            "result": str(result),
            "judge": str(files.judge),
            "work": str(files.work),
            "state": dict(model.state),
            "kinds": dict(model.outputs),
            "told": {name: each["kind"] for name, each in told["outputs"].items()} if told else {},
            "seconds": self.judge_seconds,
            "pair_seconds": self.pair_seconds,
            **(more or {}),
        }
        stem = files.folder / f"judge-{result.stem}"
        stem.with_suffix(".json").write_text(json.dumps(request))
        out, err = (stem.with_suffix(f".{stream}") for stream in _RAW_STREAMS)
        command = [sys.executable, "-P", "-m", "wild.judge", str(stem.with_suffix(".json"))]
        went = watched.run(command, limits=_JUDGE_LIMITS, stdout=out, stderr=err, environment=_tools_environment())
        if went.exit_code == 0:
            answer: dict[str, Any] = json.loads(out.read_text())
            return answer
        lines = err.read_text(errors="replace").strip().splitlines()
        why = went.limit or (lines[-1][:300] if lines else f"exit {went.exit_code}")
        side = "result" if went.exit_code and went.exit_code < 0 else "judge"
        return {"error": f"{side}: {why}", "outputs": {}, "latency": None}


def _tools_environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(TOOLS_FOLDER)}


def _while_well(commands: Sequence[Sequence[str]], folder: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield commands while all before them wrote what they were to write; each is kept as text beside its logs."""
    for number, command in enumerate(commands):
        if number and not (folder / "parts").exists():
            return
        (folder / f"{number}.command").write_text(" ".join(command) + "\n")
        yield number, command


def read_report(path: Path) -> dict[str, Any]:
    """Return what a report says, as far as a row keeps it; of a report that is missing or of another kind: nothing."""
    report: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    changes = report.get("changes", [])
    idle = [each for each in changes if each["action"] != "applied"]
    reasons = Counter((each["pass"], each["action"], each["reason"]) for each in idle)
    macs = [report.get(side, {}).get("macs") for side in ("input", "output")] if "changes" in report else [None, None]
    options = [each.get("keep_macs") for each in report.get("recipe", {}).get("passes", [])]
    return {
        "internal_errors": report.get("internal_errors", []),
        "notes": report.get("notes", []),
        "applied": len(changes) - len(idle),
        "left_alone": [[count, *why] for why, count in reasons.most_common(_MOST_REASONS)],
        "macs_ratio": macs[1] / macs[0] if macs[0] else None,
        "keep_macs": next((value for value in options if value), 1.0),
        "told": told_by(report) if "changes" in report else None,
    }


def told_by(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the loss and time that a report tells: of every output its kind, drop, interval and changed answers."""
    quality = report["quality"] or {}
    latency = report["latency"]
    return {
        "metric": quality.get("metric"),
        "samples": quality.get("samples"),
        "drop": quality.get("drop"),
        "interval": quality.get("drop_interval"),
        "outputs": {
            name: {
                "kind": each.get("kind", ""),
                "drop": each.get("drop"),
                "interval": each.get("drop_interval"),
                "disagreement": each.get("disagreement"),
            }
            for name, each in quality.get("outputs", {}).items()
        },
        "latency": latency and {key: latency.get(key) for key in ("ratio", "ratio_interval", "trusted")},
    }


def _logs(folder: Path, count: int) -> dict[str, Any]:
    texts = [(folder / f"{number}.stderr").read_text(errors="replace") for number in range(count)]
    lines = [line for text in texts for line in text.strip().splitlines() if line.strip()]
    return {
        "stderr_lines": len(lines),
        "message": lines[-1][:500] if lines else "",
        "traceback": any("Traceback (most recent call last)" in text for text in texts),
    }


def write_row(target: Path, row: Mapping[str, Any]) -> None:
    """Write a row so that an interruption leaves the old one or none."""
    part = target.with_suffix(".part")
    part.write_text(json.dumps(row, indent=1) + "\n")
    part.replace(target)


def is_current(target: Path, sha256: str, step: Step) -> bool:
    """Say whether there is a row of this model by this version."""
    if not target.exists():
        return False
    row = json.loads(target.read_text())
    return (row["model_sha256"], row["version"]) == (sha256, version_of(step))


def version_of(step: Step) -> str:
    """Return what a row depends on beside the model: the project's code, or onnxruntime's version."""
    return onnxruntime.__version__ if step.name == ORT else code_version()


@functools.cache
def code_version() -> str:
    """Return a hash of all files of the project that decide what its commands do."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "onnxcompress").rglob("*")):
        if path.suffix in (".py", ".toml"):
            digest.update(str(path.relative_to(ROOT)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def bytes_of(model: Path, pattern: str = "*") -> int:
    """Return the bytes of a model and of files beside it that hold its weights: nothing else is in its folder."""
    return sum(path.stat().st_size for path in model.parent.glob(pattern) if path.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _delete_results(files: Files) -> None:
    """Delete models and outputs; logs and the report stay."""
    for path in files.folder.glob("result.onnx*"):
        path.unlink()
    files.outputs.unlink(missing_ok=True)
    shutil.rmtree(files.parts, ignore_errors=True)
