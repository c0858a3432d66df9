"""Pruned models by the metrics of their own evals: what is kept of MACs, time and bytes, and what is lost."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import int8
from bench.tables import Table

_RECIPE = Path(__file__).parent / "prune-int8.toml"
_ALONE = ("criterion=magnitude", "refit=false", "distill_steps=0")


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is asked of one model.

    Args:
        model: its key in the zoo.
        how: what is done, as it stands in the table.
        settings: of prune-channels.
        most: points of the metric (bits of `bpc`) that may be lost; None where nothing was asked for.
        metric: of the model's eval.
        recipe: name or file.
    """

    model: str
    how: str
    settings: Sequence[str]
    most: float | None = None
    metric: str = "top1"
    recipe: str = "prune"

    @property
    def key(self) -> str:
        """What `--only` is matched with."""
        return f"{self.model}: {self.how}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """What came of it; shares are of the original."""

    key: str
    metric: str
    most: float | None = None
    lost: float | None = None
    macs: float | None = None
    latency: float | None = None
    bytes: int | None = None
    bytes_share: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    error: str = ""


def targets() -> list[Target]:
    """Return all rows of the table."""
    found = []
    asked = {
        ("resnet14", "resnet14_bn", "resnet14_dynamo20"): ((0.5, 0.4), (0.3, 1.0)),
        ("mbv2", "mbv2_bn"): ((0.7, 0.3), (0.5, 0.8), (0.35, 2.0)),
        ("vit", "vit_dynamo20"): ((0.75, 0.2), (0.65, 0.8)),
    }
    for models, budgets in asked.items():
        for model in models:
            found += [_macs(f"fmnist/{model}", keep, most) for keep, most in budgets]
    found.append(_macs("ppocr_rec/model", 0.8, 1.0, metric="char_acc"))
    found.append(_macs("chargpt/model", 0.8, 0.05, metric="bpc"))
    for model in ("resnet14", "mbv2"):
        found.append(Target(model=f"fmnist/{model}", how="0.60 of the time", settings=("keep_latency=0.6",)))
    small = ("keep_macs=0.3",)
    found.append(
        Target(model="fmnist/resnet14", how="0.30 of the MACs, int8", settings=small, most=1.2, recipe=str(_RECIPE))
    )
    for model, keep in (("resnet14", 0.5), ("mbv2", 0.7), ("vit", 0.75)):
        how = f"{keep:.2f} of the MACs, magnitude alone"
        found.append(Target(model=f"fmnist/{model}", how=how, settings=(f"keep_macs={keep}", *_ALONE)))
    return found


def _macs(model: str, keep: float, most: float, *, metric: str = "top1") -> Target:
    how = f"{keep:.2f} of the MACs"
    return Target(model=model, how=how, settings=(f"keep_macs={keep}",), most=most, metric=metric)


def measure(wanted: Sequence[Target], zoo: Path, work: Path, *, samples: int) -> Iterator[Row]:
    """Prune each model as wanted, evaluate it, and race it against the original."""
    for target in wanted:
        report = work / "prune-report.json"
        report.unlink(missing_ok=True)
        settings = [part for each in target.settings for part in ("--set", f"prune-channels.{each}")]
        tool = int8.Tool(name=target.how, options=("--recipe", target.recipe, *settings, "--json", str(report)))
        model = (zoo / target.model).with_suffix(".onnx")
        before, after = int8.measure([model], zoo, work, [tool], peer_python=None, samples=samples)
        if after.error or target.metric not in before.metrics:
            error = after.error or before.error or f"its eval gives no {target.metric}"
            yield Row(key=target.key, metric=target.metric, most=target.most, error=error)
            continue
        told = json.loads(report.read_text())
        fallen = before.metrics[target.metric] - after.metrics[target.metric]
        yield Row(
            key=target.key,
            metric=target.metric,
            most=target.most,
            lost=-fallen if target.metric == "bpc" else 100 * fallen,
            macs=told["output"]["macs"] / told["input"]["macs"],
            latency=after.latency_ratio,
            bytes=after.bytes,
            bytes_share=None if after.bytes is None or before.bytes is None else after.bytes / before.bytes,
            seconds=after.seconds,
            cpu_seconds=after.cpu_seconds,
        )


def table(rows: Sequence[Row]) -> Table:
    """Tabulate the rows in the order of `targets`."""
    columns = ("model", "MACs", "time", "bytes", "share", "metric", "lost", "at most", "wall s", "CPU s", "error")
    found = Table("Pruned", columns)
    place = {target.key: index for index, target in enumerate(targets())}
    for row in sorted(rows, key=lambda each: place.get(each.key, len(place))):
        figures = (row.macs, row.latency, row.bytes, row.bytes_share, row.metric, row.lost, row.most)
        wall = [None if each is None else round(each) for each in (row.seconds, row.cpu_seconds)]
        found.add(row.key, *figures, *wall, row.error)
    return found
