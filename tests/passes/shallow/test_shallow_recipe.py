"""Blocks go, layers become thin and numbers become integers, in one recipe and in any order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import onnxcompress as oc
from onnxcompress.core import Action
from onnxcompress.quality.divergence import Divergence
from tests.helpers import floats, with_constants

WIDTH = 24
SAMPLES = np.stack([floats(WIDTH, seed=seed) for seed in range(160)])
OPTIONS = {
    "drop-blocks": "keep_macs = 0.85\ndistill_steps = 0",
    "low-rank": 'keep_parameters = 0.7\nmultiple = 1\naccept = "smaller"\ndistill_steps = 0',
    "prune-channels": "keep_macs = 0.9\nmultiple = 1\ndistill_steps = 0\nrounds = 1",
    "quantize-weights": "min_elements = 16",
    "linearize": "",
    "merge-layers": "",
}


def _net() -> ir.Model:
    """Return three residual branches, the middle one weak, with hidden layers of low rank."""
    arrays, lines, value = {}, [], "x"
    for number, strength in enumerate([0.4, 0.01, 0.4]):
        thin = floats(WIDTH, 4, seed=number) @ floats(4, 32, seed=20 + number) / 6
        arrays[f"u{number}"] = thin + 0.02 * floats(WIDTH, 32, seed=40 + number)
        arrays[f"v{number}"] = strength * floats(32, WIDTH, seed=60 + number) / 4
        lines.append(f"a{number} = MatMul({value}, u{number})  b{number} = Relu(a{number})")
        lines.append(f"c{number} = MatMul(b{number}, v{number})  s{number} = Add({value}, c{number})")
        value = f"s{number}"
    arrays["w"] = floats(WIDTH, 5, seed=99) / 4
    inputs = ", ".join(f"float[{', '.join(map(str, array.shape))}] {name}" for name, array in arrays.items())
    text = f"g (float[N, {WIDTH}] x, {inputs}) => (float[N, 5] y) {{ {'  '.join(lines)}  y = MatMul({value}, w) }}"
    return with_constants(text, **{name: array.astype(np.float32) for name, array in arrays.items()})


def _recipe(folder: Path, *names: str) -> Path:
    path = folder / "mine.toml"
    passes = "\n".join(f'[[passes]]\nname = "{name}"\n{OPTIONS[name]}\n' for name in names)
    path.write_text(f'description = "several at once"\n{passes}')
    return path


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        (("merge-layers", "linearize", "prune-channels", "drop-blocks", "low-rank", "quantize-weights"), {"a0", "a2"}),
        (("quantize-weights", "drop-blocks"), {"a0", "a2"}),
        (("low-rank", "prune-channels", "drop-blocks"), {"a0"}),
    ],
)
def test_passes_follow_each_other_in_any_order(tmp_path, names, kept):
    result = oc.compress(_net(), recipe=str(_recipe(tmp_path, *names)), data=SAMPLES)
    lossy = [name for name in names if name not in ("merge-layers", "linearize")]
    applied = {change.pass_name for change in result.changes if change.action is Action.APPLIED}
    assert applied >= set(lossy)
    assert not [change for change in result.changes if change.action is Action.ROLLED_BACK]
    unseen = [{"x": floats(1, WIDTH, seed=7000 + seed)} for seed in range(50)]
    assert Divergence(_net(), unseen).of(result.model) < 0.065  # half of the squared error over the variance
    left = {output.name for node in result.model.graph for output in node.outputs} & {"a0", "a1", "a2"}
    assert left == kept
    assert result.report.output.bytes < result.report.input.bytes


def test_integers_that_a_student_has_already_are_kept_and_its_float_layer_learns(tmp_path):
    quantized = oc.compress(_net(), recipe=str(_recipe(tmp_path, "quantize-weights", "drop-blocks")), data=SAMPLES)
    taught = oc.distill(quantized.model, _net(), data=SAMPLES, steps=10)
    before, after = _constants(quantized.model), _constants(taught.model)
    integers = {name for name, array in before.items() if array.dtype == np.int8}
    assert integers == {"u0_int8", "u2_int8", "v0_int8", "v2_int8"}
    assert {name for name in before if not np.array_equal(before[name], after[name])} == {"w"}
    losses = taught.report.divergences
    assert losses[taught.report.kept] < 0.97 * losses["given"]


def _constants(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
