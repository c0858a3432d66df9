"""A small part of the trial: five real models under 5 MB, fetched unless `tools/wild.py fetch --small` has been run."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
sys.path.insert(0, str(TOOLS))
try:
    cli = importlib.import_module("wild.cli")
    catalog = importlib.import_module("wild.catalog")
    claims = importlib.import_module("wild.claims")
    run = importlib.import_module("wild.run")
    steps = importlib.import_module("wild.steps")
    watched = importlib.import_module("wild.watched")
finally:
    sys.path.remove(str(TOOLS))

MODELS = {model.name: model for model in catalog.load_catalog()}


@pytest.mark.parametrize(
    ("name", "chosen", "size"),
    [
        ("mtcnn_pnet", ("fold", "int8-weights"), 0.45),
        ("mtcnn_onet", ("int8",), 0.3),
        ("magika", ("int8-weights",), 0.3),
        ("attacut_thai", ("int8-weights",), 0.35),
        ("chars2vec", ("fold", "float16"), 0.55),
    ],
)
def test_a_real_model(name, chosen, size, tmp_path):
    path = MODELS[name].fetch(cli.CACHE)
    assert path.stat().st_size < 5_000_000
    trial = run.Trial(
        results=tmp_path,
        cache=cli.CACHE,
        limits=watched.Limits(cpu_seconds=60, memory_bytes=2_000_000_000),
        judge_seconds=1,
        pair_seconds=0.3,
    )
    rows = list(trial.run(MODELS[name], [steps.STEPS[each] for each in chosen]))
    assert [row["step"] for row in rows] == list(chosen)
    for row in rows:
        assert row["outcome"] in ("done", "nothing"), row
        assert row["over"] == []
    assert rows[-1]["size_ratio"] < size
    losses = [each["points"] for each in rows[-1]["measured"]["outputs"].values()]
    assert max(losses) < 0.03
