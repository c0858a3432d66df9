"""Imports point one way, and each outside library has one door."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "onnxcompress"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = {
    path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__") for path in FILES
}
MODULES = frozenset(NAMES.values())


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports when it runs, whether at once or inside a function; not for types only."""
    package = NAMES[path] if path.name == "__init__.py" else NAMES[path].rpartition(".")[0]
    for node in _at_run_time(_parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) + 1 - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:
                yield f"{module}.{alias.name}" if f"{module}.{alias.name}" in MODULES else module


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes of a tree without what stands under `if TYPE_CHECKING`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield from _at_run_time(child)


IMPORTS = {NAMES[path]: frozenset(_imports(path)) for path in FILES}


def _ours(name: str) -> set[str]:
    return {each for each in IMPORTS[name] if each in MODULES}


def _importers(library: str) -> set[str]:
    return {name for name, found in IMPORTS.items() if any(each.split(".")[0] == library for each in found)}


def test_the_graph_of_imports_is_seen():
    assert _ours("onnxcompress.jobs.compress") >= {
        "onnxcompress.pipeline",
        "onnxcompress.jobs.report",
        "onnxcompress.recipe",
    }
    assert "onnxcompress.io.graphsurgeon" in IMPORTS["onnxcompress.passes.surgery"]


def test_no_module_imports_itself_through_others():
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name not in done:
            for each in sorted(_ours(name)):
                walk(each, (*path, name))
            done.add(name)

    for name in sorted(MODULES - {"onnxcompress"}):
        walk(name, ())


@pytest.mark.parametrize(
    ("library", "door"),
    [
        ("onnxruntime", {"onnxcompress.runtime.session"}),
        ("onnx_graphsurgeon", {"onnxcompress.io.graphsurgeon"}),
        ("subprocess", {"onnxcompress.runtime.processes", "onnxcompress.runtime.remote_objects"}),
        ("pickle", {"onnxcompress.runtime.processes", "onnxcompress.runtime.remote_objects"}),
        ("jinja2", {"onnxcompress.report.html"}),
        ("matplotlib", {"onnxcompress.report.plots"}),
        ("distributed", {"onnxcompress.runtime.executors"}),
        ("onnx_ad", {"onnxcompress.distillation.train"}),
        ("zstandard", {"onnxcompress.pack.archive", "onnxcompress.pack.blocks"}),
    ],
)
def test_a_library_has_one_door(library, door):
    assert _importers(library) == door


def test_typer_and_rich_are_for_the_surface():
    assert all(name.startswith("onnxcompress.cli") for name in _importers("typer"))
    assert all(name.startswith(("onnxcompress.cli", "onnxcompress.jobs.report")) for name in _importers("rich"))


def test_numerics_knows_arrays_only():
    for name in MODULES:
        if name.startswith("onnxcompress.numerics"):
            roots = {each.split(".")[0] for each in IMPORTS[name]}
            assert not roots & {"onnx", "onnx_ir", "onnxruntime"}, name
            assert all(each.startswith("onnxcompress.numerics") for each in _ours(name)), name


LAYERS = (
    ("errors", "isolation"),
    ("core", "sizes", "numerics"),
    (
        "graph",
        "wire",
        "sources",
        "tensors",
        "proto",
        "records",
        "atomic",
        "saving",
        "opset",
        "model_io",
        "surgeon",
        "tensor_ranges",
        "pack_blocks",
        "packing",
    ),
    (
        "ops",
        "channel_flow",
        "channel_links",
        "channel_ids",
        "channels",
        "cutting",
        "float_constants",
        "layers",
        "shapes",
        "stats",
        "runtime",
        "worker",
        "watch",
        "companion",
        "distant",
        "metrics",
        "validate",
        "data",
        "fitting",
        "targets",
        "exposure",
        "observe",
        "units",
        "placement",
        "readback",
        "channel_scales",
        "frontier",
        "goals",
        "refit",
        "layer_rows",
        "sensitivity",
        "consumers",
        "pruning",
        "budgets",
        "divergence",
        "probing",
        "distillation",
        "pruner",
        "range_choice",
    ),
    ("passes",),
    ("recipe", "pipeline", "proof"),
    ("compression", "inspection"),
    ("batch_jobs",),
    ("batch",),
    (
        "report.inspected",
        "report.text",
        "report.listing",
        "report.view",
        "report.page",
        "report.plots",
        "report.write",
        "report.batched",
    ),
    ("cli",),
    ("__main__",),
)


def _layer(name: str) -> int | None:
    """Return the index of a module's layer, None for helpers that belong to no layer in particular."""
    plain = name.removeprefix("onnxcompress").removeprefix(".")
    for index, layer in enumerate(LAYERS):
        if any(plain == each or plain.startswith(f"{each}.") for each in layer):
            return index
    return None


def test_no_layer_imports_a_higher_one():
    assert all(any(_layer(name) == index for name in MODULES) for index in range(len(LAYERS)))
    wrong = [
        f"{name} imports {each}"
        for name in sorted(MODULES)
        for each in sorted(_ours(name))
        if (low := _layer(name)) is not None and (high := _layer(each)) is not None and high > low
    ]
    assert not wrong


def test_the_package_itself_is_only_read_for_its_version():
    assert [name for name in sorted(MODULES) if "onnxcompress" in IMPORTS[name]] == ["onnxcompress.cli"]


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_nothing_prints_swallows_or_reads_the_environment(path):
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "eval", "exec"), f"{path.name}:{node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path.name}:{node.lineno}: a bare except"
        if isinstance(node, ast.Attribute):
            assert node.attr not in ("environ", "getenv"), f"{path.name}:{node.lineno}"


def test_the_oldest_versions_that_are_stated_are_those_that_are_tested():
    with (PACKAGE.parent / "pyproject.toml").open("rb") as file:
        stated = tomllib.load(file)["project"]["dependencies"]
    floors = {re.match(r"[\w-]+", line)[0]: re.search(r">=([\d.]+)", line)[1] for line in stated}
    lines = (PACKAGE.parent / "tools/requirements-lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    for name, floor in floors.items():
        assert tested[name].startswith(floor), (name, floor, tested[name])
