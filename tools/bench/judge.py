"""The referee, in a killable process: is a file valid, does it compute the same, how many nodes stay.

Outputs of original and candidate are compared in onnxruntime with its optimizations off, by name, on the
recorded inputs (where there are any), on zeros, and on seeded inputs at two sizes of every dynamic dimension.
The tolerance is `absolute[dtype] * max|original| + relative[dtype] * |original| + 1e-6`. Integers, booleans,
strings and floats of 8 bits and less are exact; NaN must meet NaN and infinities the same infinity. Outputs
that differ between two runs of the original itself (random operators) are compared by type and shape.

A file is valid when onnxruntime loads it with and without optimizations, the inputs that must be fed and the
outputs keep names and types, and the ONNX checker accepts it (if it accepted the original). One complaint of
the checker is forgiven to peers, since no runtime minds: an initializer that a file of IR version 3 does not
also declare as an input.
"""

from __future__ import annotations

import ctypes
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from bench.worker import Reply, Request, one_line, serve

Feed = dict[str, Any]

TOLERANCE = {"float32": (1e-4, 1e-3), "float64": (1e-4, 1e-3), "float16": (5e-3, 1e-2)}
TOLERANCE_LOW_BITS = (2e-2, 2e-2)
NUMPY_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
    **{f"tensor({s}int{bits})": np.dtype(f"{s}int{bits}") for s in ("", "u") for bits in (8, 16, 32, 64)},
}
SIZES = (16, 64, 128, 224, 320, 576)
"""Tried in turn for dynamic dimensions beyond the first axis, until the original runs."""
INTEGER_SCALARS = (16000, 8000, 1, 0)
"""Tried in turn for integer inputs of rank 0 (a sampling rate, a length, a flag)."""
FORGIVEN = "in initializer but not in graph input"
LEVELS = {
    "off": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


def nodes_of(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of every If, Loop and Scan body in it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from nodes_of(body)


def count_nodes(graph: onnx.GraphProto) -> int:
    """Count the nodes of a graph and of all bodies in it."""
    return sum(1 for _ in nodes_of(graph))


def domains(graph: onnx.GraphProto) -> set[str]:
    """Return the operator domains that a graph uses."""
    return {node.domain for node in nodes_of(graph)}


def session(path: Path, level: str, optimized_path: Path | None = None) -> ort.InferenceSession:
    """Open a one-thread CPU session; the runtime writes its optimised graph to `optimized_path`."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = LEVELS[level]
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def optimized_nodes(path: Path, level: str, folder: Path) -> int:
    """Count the nodes that onnxruntime runs at this optimization level, bodies included."""
    target = folder / "optimized.onnx"
    try:
        session(path, level, target)
        return count_nodes(onnx.load(target, load_external_data=False).graph)
    finally:
        target.unlink(missing_ok=True)


def passes_checker(path: Path) -> str:
    """Return what the ONNX checker says against a file, as one line; empty where that is nothing."""
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # noqa: BLE001  the checker raises several unrelated types
        return one_line(error)
    return ""


def difference(name: str, original: Any, candidate: Any) -> str:
    """Say where two runtime values differ beyond the tolerance, as one line; empty where they agree."""
    if original is None or candidate is None:
        return "" if original is candidate else f"{name}: one of both is empty"
    if isinstance(original, (list, tuple)):
        if not isinstance(candidate, (list, tuple)) or len(original) != len(candidate):
            return f"{name}: sequences of different length"
        pairs = enumerate(zip(original, candidate, strict=True))
        return next((text for i, (a, b) in pairs if (text := difference(f"{name}[{i}]", a, b))), "")
    if isinstance(original, Mapping):
        return "" if original == candidate else f"{name}: different maps"
    a, b = np.asarray(original), np.asarray(candidate)
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{name}: {a.dtype}{list(a.shape)} became {b.dtype}{list(b.shape)}"
    if a.dtype.kind in "OSUb" or a.dtype.kind in "iu":
        wrong = int((a != b).sum())
        return f"{name}: {wrong} of {a.size} values differ" if wrong else ""
    if a.dtype.kind == "c":
        a, b = np.stack([a.real, a.imag]), np.stack([b.real, b.imag])
    absolute, relative = TOLERANCE.get(a.dtype.name, TOLERANCE_LOW_BITS)
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(b[finite]).all():
        return f"{name}: NaN or infinities differ"
    a, b = a[finite], b[finite]
    if not a.size:
        return ""
    excess = np.abs(a - b) - (absolute * np.abs(a).max() + relative * np.abs(a) + 1e-6)
    if excess.max() <= 0:
        return ""
    return f"{name}: off by {np.abs(a - b).max():.3g} where values reach {np.abs(a).max():.3g}"


@dataclass
class Reference:
    """The original: its interface, and what it computes for each feed that it accepts."""

    inputs: list[tuple[str, str]]
    outputs: list[str]
    checker: str
    domains: set[str]
    feeds: list[Feed] = field(default_factory=list)
    results: list[list[Any]] = field(default_factory=list)
    random: set[str] = field(default_factory=set)


def interface(model: ort.InferenceSession) -> tuple[list[tuple[str, str]], list[str]]:
    """Return sorted names and types of the inputs that must be fed, and sorted output names."""
    return sorted((i.name, i.type) for i in model.get_inputs()), sorted(o.name for o in model.get_outputs())


def resized(feed: Feed, axes: Mapping[str, Sequence[int]], factor: int) -> Feed:
    """Return the feed with the named axes `factor` times as long, its values repeated."""
    out = dict(feed)
    for name, positions in axes.items():
        array = out[name]
        for axis in positions:
            array = np.concatenate([array] * factor, axis=axis)
        out[name] = array
    return out


def dynamic_axes(model: ort.InferenceSession) -> dict[str, dict[str, list[int]]]:
    """Return {symbol: {input: axes}} of the dynamic dimensions; unnamed ones each have their own."""
    found: dict[str, dict[str, list[int]]] = {}
    for value in model.get_inputs():
        for axis, size in enumerate(value.shape or []):
            if not isinstance(size, int):
                symbol = size if isinstance(size, str) and size else f"{value.name}/{axis}"
                found.setdefault(symbol, {}).setdefault(value.name, []).append(axis)
    return found


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def reseeded(feed: Feed, rng: np.random.Generator) -> Feed:
    """Return new values: floats normal with the old mean and spread, everything else shuffled."""
    out: Feed = {}
    for name, value in feed.items():
        if not isinstance(value, np.ndarray) or not value.size:
            out[name] = value
        elif value.dtype.kind == "f" and np.isfinite(value).all():
            wide = value.astype(np.float64)
            wide = wide.mean() + (wide.std() or 1.0) * rng.standard_normal(value.shape)
            out[name] = np.asarray(wide).astype(value.dtype)
        else:
            out[name] = rng.permutation(value.ravel()).reshape(value.shape)
    return out


def synthetic(model: ort.InferenceSession, size: int, scalar: int, rng: np.random.Generator) -> Feed:
    """Make a feed: size 1 for a dynamic first axis, `size` for others; small token ids, masks of ones."""
    feed: Feed = {}
    for value in model.get_inputs():
        shape = [d if isinstance(d, int) else size if axis else 1 for axis, d in enumerate(value.shape)]
        dtype = np.dtype(NUMPY_TYPES[value.type])
        if dtype.kind == "f":
            feed[value.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind == "b" or "mask" in value.name:
            feed[value.name] = np.ones(shape, dtype)
        elif not shape:
            feed[value.name] = np.array(scalar, dtype)
        else:
            feed[value.name] = rng.integers(0, 8, shape).astype(dtype)
    return feed


def variants(model: ort.InferenceSession, base: Feed, rng: np.random.Generator) -> Iterator[Feed]:
    """Yield new values, zeros, every dynamic dimension doubled by itself, and all of them together.

    Zeros find rewrites that drop an epsilon from a divisor.
    """
    yield reseeded(base, rng)
    yield {name: np.zeros_like(v) if _is_float(v) else v for name, v in base.items()}
    dimensions = dynamic_axes(model)
    for axes in dimensions.values():
        yield resized(base, axes, 2)
    if len(dimensions) > 1:
        bigger = base
        for axes in dimensions.values():
            bigger = resized(bigger, axes, 2)
        yield reseeded(bigger, rng)


def first_feed(model: ort.InferenceSession, rng: np.random.Generator) -> Feed | None:
    """Return the first synthetic feed that the model accepts."""
    if any(value.type not in NUMPY_TYPES for value in model.get_inputs()):
        return None
    scalars = [i for i in model.get_inputs() if not i.shape and "int" in i.type]
    free = any(not isinstance(size, int) for i in model.get_inputs() for size in i.shape[1:])
    for size in SIZES if free else SIZES[:1]:
        for scalar in INTEGER_SCALARS if scalars else (1,):
            feed = synthetic(model, size, scalar, rng)
            if attempt(model, feed) is not None:
                return feed
    return None


def narrow_type(runtime_type: str) -> int | None:
    """Return the ONNX number of a tensor type that numpy has no type of its own for, such as bfloat16."""
    name = runtime_type.removeprefix("tensor(").removesuffix(")").upper()
    narrow = name.startswith(("BFLOAT", "FLOAT8", "FLOAT4", "INT4", "UINT4", "INT2", "UINT2"))
    return onnx.TensorProto.DataType.Value(name) if narrow else None


def run(model: ort.InferenceSession, names: Sequence[str], feed: Feed) -> list[Any]:
    """Return the named outputs; those of narrow types as bfloat16 of ml_dtypes or as their bytes."""
    types = {value.name: narrow_type(value.type) for value in (*model.get_inputs(), *model.get_outputs())}
    if not any(types.values()):
        return list(model.run(names, feed))
    values = {}
    for name, value in feed.items():
        if (number := types[name]) is not None:
            bits = value.view(np.uint16 if value.dtype.itemsize == 2 else np.uint8)
            values[name] = ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, number)
        else:
            values[name] = ort.OrtValue.ortvalue_from_numpy(value)
    outputs = model.run_with_ort_values(names, values)
    return [_array(value, types[name]) for name, value in zip(names, outputs, strict=True)]


def _array(value: ort.OrtValue, number: int | None) -> Any:
    if number is None:
        return value.numpy()
    stored = np.frombuffer(ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes()), np.uint8)
    if number == onnx.TensorProto.BFLOAT16:
        return stored.view(ml_dtypes.bfloat16).reshape(value.shape())
    return [str(value.shape()), stored]


def attempt(model: ort.InferenceSession, feed: Feed) -> list[Any] | None:
    """Return all outputs, or None where the model refuses the feed."""
    try:
        return run(model, [o.name for o in model.get_outputs()], feed)
    except Exception:  # noqa: BLE001  a feed that the original refuses is left out
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, (np.generic, float, int)) else value


def build_reference(path: Path, recorded: Path | None, *, with_variants: bool) -> Reference:
    """Run the original on every feed; raises where the runtime cannot load it or accepts no feed."""
    model = session(path, "off")
    inputs, _ = interface(model)
    names = [o.name for o in model.get_outputs()]
    reference = Reference(
        inputs=inputs,
        outputs=sorted(names),
        checker=passes_checker(path),
        domains={"", "ai.onnx"} | domains(onnx.load(path, load_external_data=False).graph),
    )
    rng = np.random.default_rng(0)
    given: list[Feed] = []
    if recorded is not None:
        order = [i.name for i in model.get_inputs()]
        for feed in pickle.loads(recorded.read_bytes()):  # noqa: S301  written by bench.corpus
            by_name = feed if isinstance(feed, dict) else dict(zip(order, feed, strict=False))
            given.append({name: _plain(value) for name, value in by_name.items() if name in order})
    if not given and (made := first_feed(model, rng)) is not None:
        given = [made]
    feeds = given[:2]
    if with_variants and given:
        feeds = [*feeds, *variants(model, given[0], rng)]
    again = session(path, "off")
    for feed in feeds:
        outputs, repeat = attempt(model, feed), attempt(again, feed)
        if outputs is None or repeat is None:
            continue
        reference.random |= {n for n, a, b in zip(names, outputs, repeat, strict=True) if difference(n, a, b)}
        reference.feeds.append(feed)
        reference.results.append([outputs[names.index(n)] for n in reference.outputs])
    if not reference.feeds:
        raise ValueError("no feed that the original accepts")
    return reference


def verdict(reference: Reference, path: Path, *, strict: bool) -> tuple[str, str]:
    """Return `ok`, `wrong` or `invalid` for a candidate, and the reason."""
    complaint = passes_checker(path)
    if complaint and not reference.checker and (strict or FORGIVEN not in complaint):
        return "invalid", f"checker: {complaint}"
    try:
        model = session(path, "off")
    except Exception as error:  # noqa: BLE001  the runtime raises its own types
        return "invalid", one_line(error)
    inputs, outputs = interface(model)
    if inputs != reference.inputs or outputs != reference.outputs:
        changed = {*inputs, *outputs} ^ {*reference.inputs, *reference.outputs}
        return "invalid", f"inputs or outputs changed: {sorted(map(str, changed))[:4]}"
    for feed, expected in zip(reference.feeds, reference.results, strict=True):
        try:
            got = run(model, reference.outputs, feed)
        except Exception as error:  # noqa: BLE001  the runtime raises its own types
            return "wrong", f"fails to run: {one_line(error)}"
        for name, a, b in zip(reference.outputs, expected, got, strict=True):
            if name in reference.random:
                a, b = np.zeros_like(a), np.zeros_like(b)
            if text := difference(name, a, b):
                return "wrong", text
    return "ok", ""


def main() -> None:
    """Serve `reference` (an original) and `judge` (a candidate for the original given last)."""
    current: list[Reference] = []

    def answer(request: Request) -> Reply:
        path, folder, level = Path(request["model"]), Path(request["folder"]), request["level"]
        if request["do"] == "reference":
            current.clear()
            recorded = Path(request["recorded"]) if request["recorded"] else None
            reference = build_reference(path, recorded, with_variants=request["variants"])
            current.append(reference)
            raw = count_nodes(onnx.load(path, load_external_data=False).graph)
            return {
                "feeds": len(reference.feeds),
                "nodes": raw,
                "optimized_nodes": optimized_nodes(path, level, folder),
                "checker": reference.checker,
            }
        outcome, reason = verdict(current[0], path, strict=request["strict"])
        reply: Reply = {"outcome": outcome, "reason": reason}
        if outcome != "invalid":
            proto = onnx.load(path, load_external_data=False)
            reply["nodes"] = count_nodes(proto.graph)
            reply["runtime_only"] = sorted(domains(proto.graph) - current[0].domains)
            try:
                reply["optimized_nodes"] = optimized_nodes(path, level, folder)
            except Exception as error:  # noqa: BLE001  the runtime raises its own types
                reply |= {"outcome": "invalid", "reason": f"with optimizations: {one_line(error)}"}
        return reply

    serve(answer, greeting={"onnxruntime": ort.__version__})


if __name__ == "__main__":
    main()
