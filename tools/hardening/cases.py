"""Fuzz cases: files that are wrong in some way, and the command that is given them. A case is its seed and number."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx

from hardening import modelfuzz, wirefuzz

Rng = np.random.Generator
SECRET = b"what stands in a file outside of the model's folder"


@dataclass(frozen=True)
class Base:
    """A good model to start from, and what was made of it: an archive, and the files of its parts."""

    key: str
    data: bytes
    archive: bytes = b""
    parts: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A command in a folder of its own; all it may write is `out`, all it may read is there already."""

    kind: str
    base: str
    folder: Path
    arguments: list[str]

    @property
    def out(self) -> Path:
        """The folder for what is written."""
        return self.folder / "out"

    def inputs(self) -> str:
        """Return a hash of everything outside of `out`."""
        digest = hashlib.sha256()
        for path in sorted(self.folder.rglob("*")):
            if path.is_file() and self.out not in path.parents:
                digest.update(os.fsencode(path.relative_to(self.folder)) + path.read_bytes())
        return digest.hexdigest()

    def left(self) -> list[str]:
        """Return the names of what stands in `out`, hidden files included."""
        return sorted(str(path.relative_to(self.out)) for path in self.out.rglob("*"))


def build(bases: list[Base], seed: int, number: int, folder: Path) -> Case:
    """Write the files of a case into an empty folder and return it."""
    rng = np.random.default_rng([seed, number])
    (folder / "in").mkdir(parents=True)
    (folder / "out").mkdir()
    kind = _kind(rng)
    base = bases[int(rng.integers(len(bases)))]
    if kind in ("archive", "manifest", "data"):
        split = [each for each in bases if each.parts]
        base = split[int(rng.integers(len(split)))]
    arguments = KINDS[kind][1](base, bases, folder, rng)
    return Case(kind, base.key, folder, arguments)


def kind_of(seed: int, number: int) -> str:
    """Return the kind of a case."""
    return _kind(np.random.default_rng([seed, number]))


def _kind(rng: Rng) -> str:
    names = list(KINDS)
    weights = np.array([KINDS[name][0] for name in names], float)
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]


def _command(model: Path, folder: Path, rng: Rng) -> list[str]:
    """Return one of the commands that take a model."""
    out = folder / "out"
    at = rng.random()
    if at < 0.75:
        recipe = ("fold", "fold", "fold", "int8-weights", "float16", "auto")[int(rng.integers(6))]
        extra = (["--external-data", "always"], ["--pack"], ["--verify", "regions"], ["--plan"], *[[]] * 12)
        return ["compress", str(model), "-o", str(out / "m.onnx"), "--recipe", recipe, *extra[int(rng.integers(16))]]
    if at < 0.87:
        return ["inspect", str(model), "--json", str(out / "i.json")]
    if at < 0.94:
        return ["split", str(model), "-o", str(out / "parts"), "--parts", "2"]
    return ["compare", str(model), str(model), "--json", str(out / "c.json")]


def _bytes(base: Base, _: list[Base], folder: Path, rng: Rng) -> list[str]:
    path = folder / "in" / "m.onnx"
    path.write_bytes(wirefuzz.any_bytes(base.data, rng))
    return _command(path, folder, rng)


def _splice(base: Base, bases: list[Base], folder: Path, rng: Rng) -> list[str]:
    path = folder / "in" / "m.onnx"
    path.write_bytes(wirefuzz.splice(base.data, bases[int(rng.integers(len(bases)))].data, rng))
    return _command(path, folder, rng)


def _model(base: Base, _: list[Base], folder: Path, rng: Rng) -> list[str]:
    path = folder / "in" / "m.onnx"
    path.write_bytes(modelfuzz.mutate(base.data, rng))
    return _command(path, folder, rng)


def _external(base: Base, _: list[Base], folder: Path, rng: Rng) -> list[str]:
    """Write a model whose external data lie about where they are, or how long."""
    model = onnx.ModelProto.FromString(base.data)
    weight = onnx.numpy_helper.from_array(rng.standard_normal((16, 32)).astype(np.float32), "outside")
    data = weight.raw_data
    model.graph.initializer.append(weight)
    model.graph.node.append(onnx.helper.make_node("Abs", ["outside"], ["outside_abs"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("outside_abs", 1, [16, 32]))
    secret = folder / "secret.bin"
    secret.write_bytes((SECRET * 100)[: len(data)])
    path = folder / "in" / "m.onnx"
    (folder / "in" / "w.bin").write_bytes(wirefuzz.any_bytes(data, rng) if rng.random() < 0.2 else data)
    (folder / "in" / "link.bin").symlink_to(secret)
    (folder / "in" / "sub").symlink_to(folder)
    os.mkfifo(folder / "in" / "pipe.bin")
    locations = ("w.bin", "w.bin", "../secret.bin", str(secret), "link.bin", "sub/secret.bin", "pipe.bin", "", ".")
    locations += ("/dev/zero", "/etc/passwd", "in/../../secret.bin", "..\\secret.bin", "#raw_data", "m.onnx", "no.bin")
    numbers = (
        "0",
        "4",
        "-4",
        "2048",
        "4096",
        "1e3",
        "x",
        "",
        str(1 << 40),
        str((1 << 63) - 1),
        str(1 << 70),
        " 0",
        "0x10",
    )
    tensor = model.graph.initializer[-1]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": locations[int(rng.integers(len(locations)))]}
    for key, usual in (("offset", "0"), ("length", str(len(data)))):
        if rng.random() < 0.8:
            entries[key] = usual if rng.random() < 0.6 else numbers[int(rng.integers(len(numbers)))]
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    if rng.random() < 0.2:
        tensor.external_data.add(key="location", value="../secret.bin")
    path.write_bytes(model.SerializeToString())
    return _command(path, folder, rng)


def _archive(base: Base, _: list[Base], folder: Path, rng: Rng) -> list[str]:
    """Damage an archive: its bytes, or what its header says of names, sizes and kinds."""
    import zstandard

    path, data = folder / "in" / "m.onnxpack", base.archive
    if rng.random() < 0.5:
        data = wirefuzz.any_bytes(data, rng)
    else:
        length = int.from_bytes(data[12:16], "little")
        header = json.loads(zstandard.ZstdDecompressor().decompress(data[20 : 20 + length]))
        _corrupt_json(header, rng)
        text = json.dumps(header).encode()
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(text)
        sizes = len(packed).to_bytes(4, "little") + len(text).to_bytes(4, "little")
        data = data[:12] + sizes + packed + data[20 + length :]
    path.write_bytes(data)
    return ["unpack", str(path), "-o", str(folder / "out" / "m.onnx")]


_JSON_VALUES = (
    None,
    -1,
    0,
    1 << 40,
    1 << 70,
    "",
    "../x",
    "/x/y",
    "a/../../x",
    "x\0y",
    [],
    {},
    1.5,
    True,
    "f4",
    "\ud800",
)


def _corrupt_json(document: object, rng: Rng) -> None:
    """Change some value in a JSON document, in place."""
    for _ in range(int(rng.integers(1, 3))):
        at = document
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))  # type: ignore[arg-type, call-overload]
            if not keys:
                break
            key = keys[int(rng.integers(len(keys)))]
            inner = at[key]  # type: ignore[index]
            if isinstance(inner, dict | list) and inner and rng.random() < 0.9:
                at = inner
                continue
            if rng.random() < 0.2:
                del at[key]  # type: ignore[attr-defined]
            elif isinstance(inner, int) and rng.random() < 0.5:
                at[key] = inner + int(rng.integers(-4, 5))  # type: ignore[index]
            else:
                at[key] = _JSON_VALUES[int(rng.integers(len(_JSON_VALUES)))]  # type: ignore[index]
            break


def _manifest(base: Base, _: list[Base], folder: Path, rng: Rng) -> list[str]:
    """Damage the folder of a split model, and run it."""
    parts = folder / "in" / "parts"
    parts.mkdir()
    for name, data in base.parts.items():
        (parts / name).write_bytes(data)
    victim = parts / sorted(base.parts)[int(rng.integers(len(base.parts)))]
    if rng.random() < 0.6:
        manifest = json.loads(base.parts["manifest.json"])
        _corrupt_json(manifest, rng)
        (parts / "manifest.json").write_text(json.dumps(manifest))
    elif rng.random() < 0.7:
        victim.write_bytes(wirefuzz.any_bytes(victim.read_bytes(), rng))
    else:
        victim.unlink()
        if rng.random() < 0.5:
            victim.symlink_to("/etc/passwd")
    _good_data(base, folder / "in" / "d.npz")
    return ["run", str(parts), "--data", str(folder / "in" / "d.npz"), "-o", str(folder / "out" / "o.npz")]


def _good_data(base: Base, path: Path, count: int = 3) -> dict[str, np.ndarray]:
    model = onnx.ModelProto.FromString(base.data)
    held = {tensor.name for tensor in model.graph.initializer}
    arrays = {}
    for value in model.graph.input:
        if value.name not in held:
            dims = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            arrays[value.name] = np.ones((count, *dims), dtype)
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return arrays


def _data(base: Base, _: list[Base], folder: Path, rng: Rng) -> list[str]:
    """Damage data: the file's bytes, an array's header, or what the arrays are."""
    model, path = folder / "in" / "m.onnx", folder / "in" / "d.npz"
    model.write_bytes(base.data)
    arrays = _good_data(base, path)
    at = rng.random()
    if at < 0.4:
        path.write_bytes(wirefuzz.any_bytes(path.read_bytes(), rng))
    elif at < 0.6:
        with zipfile.ZipFile(path, "w", (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[int(rng.integers(2))]) as archive:
            for name, array in arrays.items():
                buffer = io.BytesIO()
                np.save(buffer, array)
                archive.writestr(f"{name}.npy", wirefuzz.any_bytes(buffer.getvalue(), rng))
    else:
        odd: list[Callable[[np.ndarray], object]] = [
            lambda a: a[:0],
            lambda a: a.astype(object),
            lambda a: a.astype("U5"),
            lambda a: a.astype(np.complex64),
            lambda a: np.full(a.shape, np.nan),
            lambda a: a.reshape(-1),
            lambda a: a[..., None],
            lambda _: np.float32(3),
            lambda a: a.astype(np.float64) * 1e300,
            lambda a: np.zeros(a.shape, [("a", "f4")]),
            lambda a: a.astype("M8[s]") if a.dtype.kind in "iu" else a.astype(">f8"),
        ]
        name = list(arrays)[int(rng.integers(len(arrays)))] if arrays else "x"
        arrays[name] = odd[int(rng.integers(len(odd)))](arrays.get(name, np.ones(3)))  # type: ignore[assignment]
        if rng.random() < 0.3:
            arrays["label"] = np.array([["a"], [1.5], ["b"]], object) if rng.random() < 0.5 else np.arange(2) - 9
        np.savez(path, **arrays)  # type: ignore[arg-type]
    if rng.random() < 0.3:
        return ["run", str(model), "--data", str(path), "-o", str(folder / "out" / "o.npz")]
    which = "--data" if rng.random() < 0.5 else "--eval"
    return ["compress", str(model), which, str(path), "-o", str(folder / "out" / "m.onnx"), "--recipe", "int8-weights"]


_RECIPES = (
    'description = "x"\n[[passes]]\nname = "normalize"\n[[passes]]\nname = "quantize-weights"\nmin_elements = 100\n',
    '[[passes]]\r\nname = "fold-constants"\r\n[[passes]]\r\nname = "convert-float16"\r\nstorage = "bfloat16"\r\n',
    'max_drop = 0.1\n[[passes]]\nname = "surgery"\nfunction = "os:abort"\n',
)


def _recipe(base: Base, _: list[Base], folder: Path, rng: Rng) -> list[str]:
    """Damage a recipe."""
    model, path = folder / "in" / "m.onnx", folder / "in" / "r.toml"
    model.write_bytes(base.data)
    text = _RECIPES[int(rng.integers(len(_RECIPES)))].encode()
    at = rng.random()
    if at < 0.5:
        text = wirefuzz.any_bytes(text, rng)
    elif at < 0.75:
        values = (
            b"1e999",
            b"nan",
            b"[[]]",
            b"{a=1}",
            b"-1",
            b"99999999999999999999",
            b'"\\u0000"',
            b"1979-05-27",
            b"''",
        )
        words = text.split(b" = ")
        words[int(rng.integers(1, len(words)))] = values[int(rng.integers(len(values)))] + b"\nx"
        text = b" = ".join(words)
    else:
        text = text + b"a = " + b"[" * int(rng.integers(1, 5000))
    path.write_bytes(text)
    return ["compress", str(model), "-o", str(folder / "out" / "m.onnx"), "--recipe", str(path)]


KINDS: dict[str, tuple[float, Callable[[Base, list[Base], Path, Rng], list[str]]]] = {
    "bytes": (18, _bytes),
    "splice": (22, _splice),
    "model": (36, _model),
    "external": (6, _external),
    "archive": (6, _archive),
    "manifest": (4, _manifest),
    "data": (5, _data),
    "recipe": (3, _recipe),
}


def discard(case: Case) -> None:
    """Remove the files of a case."""
    shutil.rmtree(case.folder, ignore_errors=True)
