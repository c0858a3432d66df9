"""Time and memory against the size of a model: nodes, initializers, bytes of one tensor, bytes of all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.measure import run
from bench.process import ROOT, TOOLS_FOLDER
from bench.tables import Table

SERIES = {
    "nodes": (12_500, 25_000, 50_000, 100_000),
    "initializers": (2_500, 5_000, 10_000, 20_000),
    "tensor-mb": (300, 600, 1_200, 2_400),
    "external-mb": (1_250, 2_500, 5_000, 10_000),
}
"""What grows, and its four sizes."""

COMMANDS = {
    "inspect": ("inspect", "{model}", "-q"),
    "fold": ("compress", "{model}", "-o", "{out}/m.onnx", "--recipe", "fold", "-q"),
    "int8-weights": ("compress", "{model}", "-o", "{out}/m.onnx", "--recipe", "int8-weights", "-q"),
    "split": ("split", "{model}", "-o", "{out}/parts", "--parts", "4", "-q"),
}


def measure(series: Sequence[str], commands: Sequence[str], work: Path) -> Iterator[tuple[str, int, str, list[object]]]:
    """Yield (series, size, command, [seconds, CPU seconds, largest process in bytes, outcome])."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TOOLS_FOLDER)])}
    for name in series:
        for size in SERIES[name]:
            folder = Path(tempfile.mkdtemp(prefix="scale-", dir=work))
            try:
                model = folder / "model.onnx"
                make = [sys.executable, "-m", "bench.scale", name, str(size), str(model)]
                subprocess.run(make, check=True, env=environment)
                for command in commands:
                    out = folder / "out"
                    out.mkdir()
                    words = [word.format(model=model, out=out) for word in COMMANDS[command]]
                    found = run([sys.executable, "-m", "onnxcompress", *words], environment=environment)
                    shutil.rmtree(out)
                    outcome = "ok" if not found.exit_code else f"exit {found.exit_code}: {found.errors[:80]}"
                    peak = max(found.tree_peak_bytes, found.own_peak_bytes or 0)
                    yield name, size, command, [found.seconds, found.cpu_seconds, peak, outcome]
            finally:
                shutil.rmtree(folder)


def table(rows: Sequence[tuple[str, int, str, list[object]]]) -> Table:
    """Tabulate; the exponent is that of the CPU seconds between the last two sizes: 1 is linear, 2 quadratic."""
    import math

    out = Table(
        "Time and memory against size (each command whole)",
        ["series", "size", "command", "seconds", "CPU s", "exponent", "largest process, MB", "outcome"],
    )
    last: dict[tuple[str, str], tuple[int, float]] = {}
    for name, size, command, (seconds, cpu, peak, outcome) in rows:
        before = last.get((name, command))
        exponent = math.log(float(str(cpu)) / before[1]) / math.log(size / before[0]) if before else None
        last[name, command] = size, float(str(cpu))
        out.add(name, f"{size:,}", command, seconds, cpu, exponent, round(float(str(peak)) / 1e6), outcome)
    return out


def as_json(rows: Sequence[tuple[str, int, str, list[object]]]) -> str:
    """Return all figures as JSON."""
    return json.dumps(rows, indent=1) + "\n"


def _make(name: str, size: int, path: Path) -> None:
    """Write a model of a size; weights in external files are seeded noise, repeated."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights = [], []
    last, width = "x", 64
    if name == "nodes":
        weights.append(numpy_helper.from_array(rng.standard_normal(width).astype(np.float32), "w"))
        kinds = ("Relu", "Mul", "Sigmoid", "Identity", "Add")
        for index in range(size):
            kind = kinds[index % len(kinds)]
            nodes.append(helper.make_node(kind, [last, "w"] if kind in ("Mul", "Add") else [last], [f"v{index}"]))
            last = f"v{index}"
    elif name == "initializers":
        for index in range(size):
            weights.append(numpy_helper.from_array(rng.standard_normal(width).astype(np.float32), f"w{index}"))
            nodes.append(helper.make_node(("Add", "Mul", "Sub")[index % 3], [last, f"w{index}"], [f"v{index}"]))
            last = f"v{index}"
    else:
        width = 4096
        each = size * 1_000_000 if name == "tensor-mb" else width * width * 4
        count = 1 if name == "tensor-mb" else max(1, size * 1_000_000 // each)
        data = path.with_name("model.data")
        block = rng.standard_normal(1 << 20).astype(np.float32).tobytes()
        columns = each // 4 // width
        with data.open("wb") as file:
            for index in range(count):
                entry = TensorProto(name=f"w{index}", dims=[width, columns], data_type=TensorProto.FLOAT)
                entry.data_location = TensorProto.EXTERNAL
                length = width * columns * 4
                for key, value in {"location": data.name, "offset": file.tell(), "length": length}.items():
                    entry.external_data.add(key=key, value=str(value))
                weights.append(entry)
                left = length - file.write(np.float32(index / 1000).tobytes())  # no two tensors are the same
                while left:
                    left -= file.write(block[: min(left, len(block))])
                nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [f"v{index}"]))
                last = f"v{index}"
                if name == "external-mb":
                    nodes.append(helper.make_node("Tanh", [last], [f"t{index}"]))
                    last = f"t{index}"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    shapes = [helper.make_tensor_value_info("x", 1, [1, width]), helper.make_tensor_value_info("y", 1, None)]
    graph = helper.make_graph(nodes, "scale", shapes[:1], shapes[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


if __name__ == "__main__":
    _make(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
