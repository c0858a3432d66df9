"""Planted bugs: does the proof of lossless passes find a small mistake in any layer of a model?

Each bug is one that a rewrite could make: two channels of a bias swapped, an activation lost, an epsilon ten times as
large, a border padded with another value. A bug that moves no output by more than rounding on many inputs (a Relu
whose input is never negative) is no bug: it is listed and not counted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from bench.corpus import load_eval
from bench.tables import Table
from onnxcompress.data import synthetic
from onnxcompress.errors import ModelError
from onnxcompress.io import model_io
from onnxcompress.jobs import setup
from onnxcompress.quality.equality import MOST_TIMES
from onnxcompress.runtime import session as runtime
from onnxcompress.runtime.loaded_model import LoadedModel
from onnxcompress.verify import shadow
from onnxcompress.verify.whole import WholeProof

ACTIVATIONS = frozenset({"Clip", "Erf", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
NORMALIZATIONS = frozenset({"BatchNormalization", "InstanceNormalization", "LayerNormalization"})
BIAS_PORTS = {"BatchNormalization": 2, "Conv": 2, "ConvTranspose": 2, "Gemm": 2, "LayerNormalization": 2}
PAD_VALUE = 0.01
SYNTHETIC_FEEDS, REAL_FEEDS = 8, 8
"""Inputs on which it is found out whether a bug moves an output."""
LEAST_TIMES = MOST_TIMES
"""Multiples of what rounding moves an element by, from which on an output counts as moved."""

Bug = Callable[[onnx.ModelProto], None]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """What became of one bug; `moved` is the largest change of an element by what rounding moves one."""

    model: str
    bug: str
    moved: float
    found: bool
    said: str

    @property
    def counts(self) -> bool:
        """Whether it is a bug at all."""
        return self.moved > LEAST_TIMES


def subjects(zoo: Path) -> list[Path]:
    """Return the models of the zoo that bugs are planted in."""
    folders = ("fmnist", "efficientnet_lite0", "efficientnet_lite1", "ppocr_det", "ppocr_rec", "silero_vad")
    return [path for folder in folders for path in sorted((zoo / folder).glob("*.onnx"))]


def fetched() -> list[Path]:
    """Return those of the models that are not part of the repository, as far as they were fetched."""
    folder = Path(__file__).resolve().parents[2] / "models"
    return [*sorted(folder.glob("*.onnx")), *sorted((folder / "fetched").glob("ppocr_*.onnx"))]


def plant(models: Sequence[Path], count: int, *, seed: int = 0) -> Iterator[Planted]:
    """Plant bugs into models in turns until `count` of them move an output; yield all that were tried."""
    rng = np.random.default_rng(seed)
    subjects = [_Subject(path) for path in models]
    counted = 0
    for turn in range(10 * count):
        planted = subjects[turn % len(subjects)].planted(rng)
        if planted is not None:
            counted += planted.counts
            yield planted
        if counted >= count:
            return


class _Subject:
    """A model, its proof as a run of `compress` makes it, and many inputs."""

    def __init__(self, path: Path) -> None:
        self._name = f"{path.parent.name}/{path.stem}"
        self._message = onnx.load(path)
        model = model_io.load(path)
        base = LoadedModel(model, path)
        given = setup.proof_inputs(model, base.plain, None, seed=0)
        self._proof = WholeProof(model, given.feeds, lossless=True, reference=base, expected=given.expected)
        self._feeds = [
            *(synthetic.runnable_feeds(model, base.plain, seed=1000 + i, count=1)[0] for i in range(SYNTHETIC_FEEDS)),
            *_real_feeds(path, base.plain),
        ]
        self._expected = [base.plain.run(feed) for feed in self._feeds]
        self._noise = _largest(self._expected, [base.fast.run(feed) for feed in self._feeds])
        copy = self._copy()
        shadow.jittered(copy, 1)
        moved = _largest(self._expected, self._run(copy))
        self._noise = {name: max(value, moved[name], _eps(value)) for name, value in self._noise.items()}

    def planted(self, rng: np.random.Generator) -> Planted | None:
        """Plant one bug at a random place; None where it can't be planted or the model doesn't run with it."""
        bugs = list(_bugs(self._message, rng))
        kinds = sorted({name.split(" ")[0] for name, _ in bugs})
        if not kinds:
            return None
        kind = kinds[int(rng.integers(len(kinds)))]
        name, bug = (fitting := [each for each in bugs if each[0].startswith(kind)])[int(rng.integers(len(fitting)))]
        copy = self._copy()
        bug(copy)
        try:
            moved = _largest(self._expected, self._run(copy))
        except ModelError:
            return None
        said = self._proof.problem(model_io.load(copy))
        times = max((value / self._noise[name] for name, value in moved.items()), default=0.0)
        return Planted(model=self._name, bug=name, moved=times, found=said is not None, said=said or "")

    def _run(self, message: onnx.ModelProto) -> list[dict[str, Any]]:
        session = runtime.open_session(message.SerializeToString(), optimize=False)
        return [session.run(feed) for feed in self._feeds]

    def _copy(self) -> onnx.ModelProto:
        copy = onnx.ModelProto()
        copy.CopyFrom(self._message)
        return copy


def table(rows: Sequence[Planted]) -> Table:
    """Tabulate bugs found, by model and kind."""
    out = Table("Planted bugs", ["model", "kind", "planted", "found", "moved no output"])
    for model, kind in sorted({(row.model, row.bug.split(" ")[0]) for row in rows}):
        mine = [row for row in rows if row.model == model and row.bug.startswith(kind)]
        counted = [row for row in mine if row.counts]
        out.add(model, kind, len(counted), sum(row.found for row in counted), len(mine) - len(counted))
    counted = [row for row in rows if row.counts]
    out.add("all", "", len(counted), sum(row.found for row in counted), len(rows) - len(counted))
    return out


def as_json(rows: Sequence[Planted]) -> str:
    """Return all figures as JSON."""
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"


def _real_feeds(path: Path, session: runtime.Session) -> list[dict[str, Any]]:
    """Return feeds of a zoo folder's `eval.py` that the model runs."""
    if not (path.parent / "eval.py").exists():
        return []
    found = []
    for feed in load_eval(path.parent).calib_feeds(REAL_FEEDS):
        try:
            session.run(feed)
        except ModelError:
            return []
        found.append(feed)
    return found


def _largest(expected: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the largest change of an element of each output, as part of its largest element."""
    found: dict[str, float] = {}
    for a, b in zip(expected, got, strict=True):
        for name, value in a.items():
            if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.size:
                same = value.shape == b[name].shape
                change = float(np.nanmax(np.abs(b[name] - value))) if same else np.inf
                found[name] = max(found.get(name, 0), change / max(float(np.nanmax(np.abs(value))), 1e-30))
    return found


def _eps(value: float) -> float:
    return max(value, float(np.finfo(np.float32).eps))


def _bugs(model: onnx.ModelProto, rng: np.random.Generator) -> Iterator[tuple[str, Bug]]:
    """Yield all bugs that can be planted, the kind first in the name; channels are drawn."""
    for place, graph in enumerate(shadow._graphs(model)):  # noqa: SLF001
        constants = _constants(graph)
        for index, node in enumerate(graph.node):
            at = f"at {node.op_type} {node.name or node.output[0]!r}"
            bias = _bias(node, constants)
            if bias is not None:
                array = numpy_helper.to_array(bias).ravel()
                pair = rng.choice(array.size, 2, replace=False)
                if array[pair[0]] != array[pair[1]]:
                    yield f"swap of channels {pair.tolist()} {at}", _swap(place, index, pair)
            if node.op_type in ACTIVATIONS:
                yield f"lost activation {at}", _lose(place, index)
            if node.op_type in NORMALIZATIONS:
                yield f"epsilon x10 {at}", _epsilon(place, index)
            if node.op_type == "Conv" and any(a.name == "pads" and any(a.ints) for a in node.attribute):
                yield f"pad value {PAD_VALUE} {at}", _pad(place, index)


def _constants(graph: Any) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in getattr(graph, "initializer", ())}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def _bias(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> onnx.TensorProto | None:
    """Return the vector that a node adds to its channels, None where it adds none."""
    port = BIAS_PORTS.get(node.op_type)
    names = node.input if node.op_type == "Add" else [] if port is None else node.input[port : port + 1]
    for name in names:
        tensor = constants.get(name)
        is_float = tensor is not None and tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        if tensor is not None and is_float and max(tensor.dims, default=0) == np.prod(tensor.dims) > 1:
            return tensor
    return None


def _graph(model: onnx.ModelProto, place: int) -> Any:
    return list(shadow._graphs(model))[place]  # noqa: SLF001


def _swap(place: int, index: int, pair: np.ndarray) -> Bug:
    def plant(model: onnx.ModelProto) -> None:
        graph = _graph(model, place)
        tensor = _bias(graph.node[index], _constants(graph))
        array = numpy_helper.to_array(tensor).copy()
        flat = array.reshape(-1)
        flat[pair] = flat[pair[::-1]]
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))

    return plant


def _lose(place: int, index: int) -> Bug:
    def plant(model: onnx.ModelProto) -> None:
        node = _graph(model, place).node[index]
        node.CopyFrom(onnx.helper.make_node("Identity", node.input[:1], node.output, name=node.name))

    return plant


def _epsilon(place: int, index: int) -> Bug:
    def plant(model: onnx.ModelProto) -> None:
        node = _graph(model, place).node[index]
        old = next((attr.f for attr in node.attribute if attr.name == "epsilon"), 1e-5)
        kept = [attr for attr in node.attribute if attr.name != "epsilon"]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute("epsilon", 10 * old)])

    return plant


def _pad(place: int, index: int) -> Bug:
    def plant(model: onnx.ModelProto) -> None:
        graph = _graph(model, place)
        node = graph.node[index]
        pads = next(attr for attr in node.attribute if attr.name == "pads")
        sizes, half = list(pads.ints), len(pads.ints) // 2
        pads.ints[:] = [0] * len(sizes)
        opset = next((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), 0)
        around = [0, 0, *sizes[:half], 0, 0, *sizes[half:]]
        made = f"{node.output[0]}_padded"
        if opset < 11:
            pad = onnx.helper.make_node("Pad", [node.input[0]], [made], pads=around, value=PAD_VALUE)
            graph.node.insert(index, pad)
        else:
            weight = _constants(graph).get(node.input[1])
            dtype = onnx.TensorProto.FLOAT if weight is None else weight.data_type
            value = onnx.helper.make_tensor("value", dtype, [], [PAD_VALUE])
            sizes_tensor = numpy_helper.from_array(np.array(around, np.int64))
            constants = [
                onnx.helper.make_node("Constant", [], [f"{made}_pads"], value=sizes_tensor),
                onnx.helper.make_node("Constant", [], [f"{made}_value"], value=value),
            ]
            pad = onnx.helper.make_node("Pad", [node.input[0], f"{made}_pads", f"{made}_value"], [made])
            for offset, each in enumerate([*constants, pad]):
                graph.node.insert(index + offset, each)
            node = graph.node[index + len(constants) + 1]
        node = next(each for each in graph.node if made.removesuffix("_padded") in each.output)
        node.input[0] = made

    return plant
