"""Every module lies in a package, a package imports only those below it, and each outside library has one door."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "onnxcompress"
FILES = sorted(PACKAGE.rglob("*.py"))
COLUMN = (
    "__main__",
    "cli",
    "report",
    "jobs",
    "passes.auto",
    "recipe",
    "passes.quantize passes.prune passes.shallow",
    "partition composite",
    "distillation verify passes.transformers",
    "passes.fold passes.float16 channels quality",
    "passes activations",
    "data",
    "shapes",
    "recorder",
    "runtime search packing pipeline",
    "accounting",
    "io ops core",
    "graph base targets",
    "numerics errors",
)
"""Packages, and the few modules beside them, top first: each imports only what a later line names, and itself."""
FLOOR = {name: floor for floor, names in enumerate(COLUMN) for name in names.split()}


def _module(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {_module(path): path for path in FILES}


def _room(module: str) -> str | None:
    """Return the package of a module: the longest name in the column that it begins with."""
    fitting = [name for name in FLOOR if module == name or module.startswith(f"{name}.")]
    return max(fitting, key=len, default=None)


def _imports(path: Path) -> list[str]:
    """Return every module that a file imports: at once, inside a function, or for types only."""
    inside = ("onnxcompress", *path.relative_to(PACKAGE).parent.parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = inside[: len(inside) + 1 - node.level] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
            found += [name if name.removeprefix("onnxcompress.") in MODULES else module for name in names]
    return found


IMPORTS = {module: frozenset(_imports(path)) for module, path in MODULES.items()}
OURS = {
    module: sorted(
        name.removeprefix("onnxcompress").removeprefix(".") for name in found if name.startswith("onnxcompress")
    )
    for module, found in IMPORTS.items()
}


def test_every_module_belongs_to_a_package():
    assert [module for module in MODULES if module and _room(module) is None] == []


def test_a_package_imports_only_those_below_it():
    wrong = [
        f"{module} imports {other or 'the package itself'}"
        for module in MODULES
        if module
        for other in OURS[module]
        if (module, other) != ("cli", "")  # for its version
        and (room := _room(module)) != (target := _room(other))
        and (target is None or FLOOR[target] <= FLOOR[room])
    ]
    assert wrong == []


def test_no_module_imports_itself_through_others():
    done: set[str] = set()

    def walk(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in OURS[module]:
                if other:
                    walk(other, (*path, module))
            done.add(module)

    for module in sorted(MODULES):
        if module:
            walk(module, ())


def test_folders_and_files_are_of_a_size_that_can_be_read():
    folders = {folder: len(list(folder.glob("*.py"))) for folder in {path.parent for path in FILES}}
    assert {str(folder): count for folder, count in folders.items() if count > 30} == {}
    lines = {module: path.read_text(encoding="utf-8").count("\n") for module, path in MODULES.items()}
    assert {module: count for module, count in lines.items() if count > 400} == {}
    long = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    }
    assert long == {}


def test_a_class_name_stands_for_one_class():
    homes: dict[str, list[str]] = {}
    for module, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                homes.setdefault(node.name.lstrip("_"), []).append(module)
    assert {name: modules for name, modules in homes.items() if len(modules) > 1} == {}


TYPED_WITH_GRAPHS = {
    "io.model_io",
    "partition.split",
    "jobs.compress",
    "jobs.options",
}
"""Modules that name the type of a graph of onnx-graphsurgeon in a signature."""


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("onnxruntime", {"runtime.session"}),
        ("onnx_graphsurgeon", {"io.graphsurgeon"} | TYPED_WITH_GRAPHS),
        ("subprocess", {"runtime.processes", "runtime.programs"}),
        ("pickle", {"runtime.processes"}),
        ("jinja2", {"report.html"}),
        ("matplotlib", {"report.plots"}),
        ("distributed", {"runtime.executors"}),
        ("onnx_ad", {"distillation.gradients.reverse"}),
        ("zstandard", {"packing.blocks", "packing.header"}),
    ],
)
def test_a_library_has_one_door(library, doors):
    assert {module for module, found in IMPORTS.items() if library in {name.split(".")[0] for name in found}} == doors


def test_typer_and_rich_are_for_the_surface():
    for module, found in IMPORTS.items():
        roots = {name.split(".")[0] for name in found}
        assert "typer" not in roots or _room(module) == "cli", module
        assert "rich" not in roots or _room(module) in ("cli", "report"), module


def test_numerics_knows_arrays_only():
    for module, found in IMPORTS.items():
        if _room(module) == "numerics":
            assert not {name.split(".")[0] for name in found} & {"onnx", "onnx_ir", "onnxruntime"}, module


KNOW_THE_ENVIRONMENT = {"runtime.programs", "recorder.injected.sitecustomize"}
"""Modules that hand the environment on to a user's program, or run inside one."""


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_nothing_prints_swallows_or_reads_the_environment(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("print", "eval", "exec"), f"{path.name}:{node.lineno}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{path.name}:{node.lineno}: a bare except"
        if isinstance(node, ast.Attribute):
            reads = node.attr in ("environ", "getenv") and _module(path) not in KNOW_THE_ENVIRONMENT
            assert not reads, f"{path.name}:{node.lineno}"


def test_the_oldest_versions_that_are_stated_are_those_that_are_tested():
    with (PACKAGE.parent / "pyproject.toml").open("rb") as file:
        stated = tomllib.load(file)["project"]["dependencies"]
    floors = {re.match(r"[\w-]+", line)[0]: re.search(r">=([\d.]+)", line)[1] for line in stated}
    lines = (PACKAGE.parent / "tools/requirements-lowest.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    for name, floor in floors.items():
        assert tested[name].startswith(floor), (name, floor, tested[name])
