"""One fold tool in one killable process: answers JSON requests, one a line, until its input ends.

Runs in the peers' environment too, so it imports the standard library only until a tool is asked for.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Request = dict[str, Any]
Reply = dict[str, Any]
Fold = Callable[[str, str], None]


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A fold tool: the package whose version is reported, and what gives its file-to-file function."""

    package: str
    load: Callable[[], Fold]


def serve(answer: Callable[[Request], Reply], *, greeting: Reply) -> None:
    """Answer each JSON line of standard input; what a tool itself prints goes to standard error.

    The channel is moved to private descriptors first: neither a tool's prints nor its children can touch it.
    """
    with os.fdopen(os.dup(0), "r") as requests, os.fdopen(os.dup(1), "w") as replies:
        os.dup2(2, 1)
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)
        replies.write(json.dumps(greeting) + "\n")
        replies.flush()
        for line in requests:
            try:
                reply = answer(json.loads(line))
            except Exception as error:  # noqa: BLE001  a tool's failure of any kind is a result
                reply = {"error": one_line(error)}
            replies.write(json.dumps(reply) + "\n")
            replies.flush()


def one_line(error: BaseException) -> str:
    """Return the innermost cause of an error as one line of at most 300 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _onnxcompress() -> Fold:
    import onnxcompress

    recipe, compress = onnxcompress.Recipe.load("fold"), onnxcompress.compress

    def fold(source: str, target: str) -> None:
        compress(source, recipe=recipe).save(target)

    return fold


def _onnxslim() -> Fold:
    import onnxslim

    def fold(source: str, target: str) -> None:
        onnxslim.slim(source, target)

    return fold


def _onnxsim() -> Fold:
    import onnx
    import onnxsim

    def fold(source: str, target: str) -> None:
        model, _ = onnxsim.simplify(source)
        onnx.save(model, target)

    return fold


def _onnxscript() -> Fold:
    import onnx_ir
    import onnxscript.optimizer

    def fold(source: str, target: str) -> None:
        onnx_ir.save(onnxscript.optimizer.optimize(onnx_ir.load(source)), target)

    return fold


def _graphsurgeon() -> Fold:
    import onnx
    import onnx_graphsurgeon

    def fold(source: str, target: str) -> None:
        graph = onnx_graphsurgeon.import_onnx(onnx.load(source))
        graph.fold_constants().cleanup().toposort()
        onnx.save(onnx_graphsurgeon.export_onnx(graph), target)

    return fold


def _onnx_ir() -> Fold:
    import onnx_ir
    from onnx_ir.passes import common

    passes = onnx_ir.passes.Sequential(
        common.InlinePass(),
        common.LiftConstantsToInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.DeduplicateInitializersPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
    )

    def fold(source: str, target: str) -> None:
        onnx_ir.save(passes(onnx_ir.load(source)).model, target)

    return fold


def _onnxruntime() -> Fold:
    import onnxruntime

    def fold(source: str, target: str) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = target
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    return fold


def _onnxoptimizer() -> Fold:
    import onnx
    import onnxoptimizer

    def fold(source: str, target: str) -> None:
        onnx.save(onnxoptimizer.optimize(onnx.load(source)), target)

    return fold


OURS = "onnxcompress"
TOOLS = {
    OURS: Tool(package="onnxcompress", load=_onnxcompress),
    "onnxslim": Tool(package="onnxslim", load=_onnxslim),
    "onnxsim": Tool(package="onnxsim", load=_onnxsim),
    "onnxscript": Tool(package="onnxscript", load=_onnxscript),
    "graphsurgeon": Tool(package="onnx-graphsurgeon", load=_graphsurgeon),
    "onnx_ir": Tool(package="onnx-ir", load=_onnx_ir),
    "onnxruntime": Tool(package="onnxruntime", load=_onnxruntime),
    "onnxoptimizer": Tool(package="onnxoptimizer", load=_onnxoptimizer),
}


@contextlib.contextmanager
def _stopwatch() -> Iterator[dict[str, float]]:
    reading: dict[str, float] = {}
    start, start_cpu = time.perf_counter(), time.process_time()
    try:
        yield reading
    finally:
        reading["seconds"] = time.perf_counter() - start
        reading["cpu_seconds"] = time.process_time() - start_cpu


def main(name: str) -> None:
    """Serve `{"input": path, "output": path}` with seconds, `cpu_seconds`, and an `error` where it failed."""
    tool = TOOLS[name]
    with _stopwatch() as loading:
        fold = tool.load()
    try:
        version = importlib.metadata.version(tool.package)
    except importlib.metadata.PackageNotFoundError:
        version = "source tree"

    def answer(request: Request) -> Reply:
        reply: Reply = {}
        with _stopwatch() as running:
            try:
                fold(request["input"], request["output"])
            except Exception as error:  # noqa: BLE001  a tool's failure of any kind is a result
                reply["error"] = one_line(error)
        return reply | running

    serve(answer, greeting={"import_seconds": loading["seconds"], "version": version})


if __name__ == "__main__":
    main(sys.argv[1])
