"""Feeds for a model from what users have: arrays, folders of files, images, ONNX test data, a function.

Every form becomes a list of samples (a name and a way to load it), and every sample is fitted to the model's
inputs. Samples are loaded again each time they are read, so that memory holds one at a time.

**Sample axis.** In an `.npz` (and a dict of arrays) an array with one axis more than the model's input is a stack:
each `x[i]` is one feed. With as many axes, axis 0 is cut: into `x[i:i+1]` where the model's first dimension is
dynamic or 1, and into `x[i*N:(i+1)*N]` where it is fixed at N. An array that holds one sample beside others that
hold more is used for every sample (a sampling rate, an initial state).
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..base.user_code import load_function
from ..core import Feed
from ..errors import DataError, UsageError
from .feeds import Lazy
from .fit import Scaling, fit, non_finite, zeros

if TYPE_CHECKING:
    from ..runtime.session import TensorSpec

Layout = Literal["nchw", "nhwc"]
Raw = Mapping[str, Any]

LABEL_NAMES = ("label", "labels", "y")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
_ANY = "*"
"""Stands for the only input's name in a sample that has one array without a name."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Samples that fit a model.

    `feeds` loads a sample each time it is read; every feed is complete (a state input that the data doesn't
    hold is zero). `labels` has one entry per feed, None where the data has none. `skipped` names the samples
    that were left out, with the reason. `state` maps input -> output of the run before.
    """

    feeds: Sequence[Feed]
    labels: list[Any] | None = None
    names: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    source: str = ""
    state: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Sample:
    name: str
    load: Callable[[], Raw]


def load_data(
    spec: str | Path | np.ndarray | Mapping[str, Any] | Sequence[Feed] | Dataset,
    specs: Sequence[TensorSpec],
    *,
    layout: Layout | None = None,
    size: int | None = None,
    scale: Sequence[float] | None = None,
    mean: Sequence[float] | None = None,
    state: Mapping[str, str] | None = None,
) -> Dataset:
    """Read data and fit it to a model's inputs.

    Args:
        spec: a path to a `.npz` or `.npy` or to a folder of `.npz`, `.npy`, `test_data_set_*` or images;
            "module:function"; an array for the only input; a dict of arrays; a sequence of feeds.
        specs: the model's required inputs.
        layout: of images: "nchw" or "nhwc"; by default read from the model's input.
        size: pixels; of images where the model leaves it open.
        scale: float inputs become x*scale - mean: one value, or one per channel. Of several float inputs those
            with the most axes are scaled.
        mean: see `scale`.
        state: input -> output whose value it gets from the run before; first the data's, or zero.

    Raises:
        DataError: missing, unreadable, empty, or not fitting the model.
        UsageError: a state or function that does not exist.

    """
    if isinstance(spec, Dataset):
        return spec
    state = dict(state or {})
    unknown = [name for name in state if name not in {s.name for s in specs}]
    if unknown:
        raise UsageError(f"the model has no input {unknown[0]!r} to carry state into", hint=_inputs_hint(specs))
    source = str(spec) if isinstance(spec, str | Path) else "data"
    samples = _samples(spec, specs, layout=layout, size=size, optional=frozenset(state))
    reader = _DataReader(specs=specs, scaling=_scaling(specs, layout, scale, mean), state=state)
    return _checked(samples, reader, source=source)


def parse_numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of "0.01" or "0.01,0.02,0.03".

    Raises:
        UsageError: something else stands there.

    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{text!r} is not a number, or numbers with commas between them") from error


def parse_state(pairs: Iterable[str]) -> dict[str, str]:
    """Return input -> output of "IN=OUT" options.

    Raises:
        UsageError: one of them has another form.

    """
    state = {}
    for pair in pairs:
        name, equals, output = pair.partition("=")
        if not (name and equals and output):
            raise UsageError(f"{pair!r} is not of the form INPUT=OUTPUT")
        state[name] = output
    return state


@dataclass(frozen=True, kw_only=True)
class _DataReader:
    """Makes a fitted feed and its label of what a sample holds."""

    specs: Sequence[TensorSpec]
    scaling: Mapping[str, Scaling]
    state: Mapping[str, str]

    def read(self, sample: _Sample) -> tuple[Feed, Any]:
        raw = dict(sample.load())
        names = {spec.name for spec in self.specs}
        label = next((raw.pop(name) for name in LABEL_NAMES if name in raw and name not in names), None)
        raw = _named(raw, self.specs, sample.name, optional=frozenset(self.state))
        feed: Feed = {}
        for spec in self.specs:
            if spec.name in raw:
                feed[spec.name] = self._fitted(raw[spec.name], spec, sample.name)
        for spec in self.specs:
            if spec.name not in feed:
                feed[spec.name] = zeros(spec, feed, self.specs)
        return feed, label

    def feed(self, samples: Sequence[_Sample], index: int) -> Feed:
        """Return the feed of one of these samples, without its label."""
        return self.read(samples[index])[0]

    def _fitted(self, array: Any, spec: TensorSpec, where: str) -> Any:
        fitted = fit(array, spec, where=where)
        scaling = self.scaling.get(spec.name)
        return fitted if scaling is None else scaling.apply(fitted).astype(spec.dtype)


def _checked(samples: Sequence[_Sample], reader: _DataReader, *, source: str) -> Dataset:
    """Read every sample once: what doesn't fit is an error, what isn't finite is skipped."""
    kept: list[_Sample] = []
    labels: list[Any] = []
    skipped: list[tuple[str, str]] = []
    for sample in samples:
        feed, label = reader.read(sample)
        if fault := non_finite(feed):
            skipped.append((sample.name, fault))
            continue
        kept.append(sample)
        labels.append(label)
    if not kept:
        why = f"all {len(skipped)} samples were skipped: {': '.join(skipped[0])}" if skipped else "no samples in it"
        raise DataError(why, where=source)
    missing = sum(label is None for label in labels)
    if 0 < missing < len(labels):
        raise DataError(f"{missing} of {len(labels)} samples have no label", where=source)
    return Dataset(
        feeds=Lazy(range(len(kept)), partial(reader.feed, kept)),
        labels=None if missing else labels,
        names=[sample.name for sample in kept],
        skipped=skipped,
        source=source,
        state=reader.state,
    )


def _scaling(
    specs: Sequence[TensorSpec],
    layout: Layout | None,
    scale: Sequence[float] | None,
    mean: Sequence[float] | None,
) -> dict[str, Scaling]:
    """Return the scaling of each input that has one: of the float inputs those with the most axes."""
    if scale is None and mean is None:
        return {}
    floats = [spec for spec in specs if spec.dtype is not None and spec.dtype.kind == "f"]
    if not floats:
        raise DataError("scale and mean need an input of floats", hint=_inputs_hint(specs))
    rank = max(len(spec.shape) for spec in floats)
    return {
        spec.name: Scaling(
            scale=tuple(scale or (1.0,)),
            mean=tuple(mean or (0.0,)),
            channels_last=(layout or _layout_of(spec)) == "nhwc",
        )
        for spec in floats
        if len(spec.shape) == rank
    }


def _named(raw: Raw, specs: Sequence[TensorSpec], where: str, *, optional: frozenset[str]) -> dict[str, Any]:
    """Return the arrays by the names of the inputs; a single-input model accepts any one array.

    Raises:
        DataError: an input has no array.

    """
    needed = [spec.name for spec in specs if spec.name not in optional]
    if len(raw) == 1 and len(needed) == 1 and not set(raw) <= {spec.name for spec in specs}:
        return {needed[0]: next(iter(raw.values()))}
    missing = [name for name in needed if name not in raw]
    if missing:
        found = ", ".join(repr(name) for name in raw if name != _ANY) or "nothing with a name"
        raise DataError(
            f"no array for input {missing[0]!r}; the data has {found}", where=where, hint=_inputs_hint(specs)
        )
    return {spec.name: raw[spec.name] for spec in specs if spec.name in raw}


def _inputs_hint(specs: Sequence[TensorSpec]) -> str:
    return f"The model's inputs are {', '.join(str(spec) for spec in specs)}"


def _samples(
    spec: str | Path | np.ndarray | Mapping[str, Any] | Sequence[Feed],
    specs: Sequence[TensorSpec],
    *,
    layout: Layout | None,
    size: int | None,
    optional: frozenset[str],
) -> list[_Sample]:
    if isinstance(spec, np.ndarray):
        return _cut({_ANY: spec}, specs, source="data", optional=optional)
    if isinstance(spec, Mapping):
        return _cut({k: np.asarray(v) for k, v in spec.items()}, specs, source="data", optional=optional)
    if not isinstance(spec, str | Path):
        return [_Sample(name=f"feed {i}", load=partial(dict, feed)) for i, feed in enumerate(spec)]
    path = Path(spec)
    if path.is_dir():
        return _folder_samples(path, specs, layout=layout, size=size, optional=optional)
    if path.is_file():
        return _cut(_read_arrays(path), specs, source=str(path), optional=optional)
    if isinstance(spec, str) and ":" in spec:
        return _function_samples(spec)
    if path.exists():
        hint = "Give a .npz or .npy file, a folder, or module:function"
        raise DataError("is neither a file nor a folder", where=str(spec), hint=hint)
    raise DataError("no such file or folder", where=str(spec))


def _function_samples(name: str) -> list[_Sample]:
    """Return what the user's function yields; it is called once and its feeds are kept."""
    try:
        feeds = list(load_function(name)())
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise DataError(f"the function failed: {type(error).__name__}: {error}", where=name) from error
    for feed in feeds:
        if not isinstance(feed, Mapping):
            raise DataError(f"the function yields {type(feed).__name__} and not dicts of arrays", where=name)
    return [_Sample(name=f"{name}[{i}]", load=partial(dict, feed)) for i, feed in enumerate(feeds)]


def _folder_samples(
    folder: Path,
    specs: Sequence[TensorSpec],
    *,
    layout: Layout | None,
    size: int | None,
    optional: frozenset[str],
) -> list[_Sample]:
    """Tell what a folder holds by its files."""
    if folder.name.startswith("test_data_set_"):
        return [_test_data_sample(folder, specs)]
    if sets := sorted(folder.glob("test_data_set_*"), key=lambda path: (len(path.name), path.name)):
        return [_test_data_sample(path, specs) for path in sets]
    if files := sorted(folder.glob("*.npz")):
        return [_Sample(name=str(path), load=partial(_read_arrays, path)) for path in files]
    if files := sorted(folder.glob("*.npy")):
        by_input = {path.stem: path for path in files}
        if len(specs) > 1 or specs[0].name in by_input:
            arrays = {name: _read_npy(path) for name, path in by_input.items()}
            return _cut(arrays, specs, source=str(folder), optional=optional)
        return [_Sample(name=str(path), load=partial(_read_arrays, path)) for path in files]
    return _image_samples(folder, specs, layout=layout, size=size)


def _cut(
    arrays: Mapping[str, np.ndarray], specs: Sequence[TensorSpec], *, source: str, optional: frozenset[str]
) -> list[_Sample]:
    """Cut arrays with a leading sample axis into samples, by the rule in the module's docstring."""
    names = {spec.name for spec in specs}
    label_name = next((name for name in LABEL_NAMES if name in arrays and name not in names), None)
    inputs = _named({k: v for k, v in arrays.items() if k != label_name}, specs, source, optional=optional)
    steps = {spec.name: _step(inputs[spec.name], spec, source) for spec in specs if spec.name in inputs}
    counts = {name: _count(inputs[name], step, name, source) for name, step in steps.items()}
    count = _common_count(counts, source)

    def load(index: int) -> Raw:
        sample = {name: _slice(inputs[name], step, index if counts[name] > 1 else 0) for name, step in steps.items()}
        if label_name is None:
            return sample
        return sample | {label_name: _label(arrays[label_name], count, index, source)}

    return [_Sample(name=f"{source}[{i}]", load=partial(load, i)) for i in range(count)]


def _step(array: np.ndarray, spec: TensorSpec, source: str) -> int | None:
    """Return how an array is cut: 0 a stack of samples, N slices of N along axis 0, None not at all."""
    rank = len(spec.shape)
    if array.ndim == rank + 1:
        return 0
    if array.ndim == rank:
        first = spec.shape[0] if rank else None
        return None if rank == 0 else first if isinstance(first, int) and first > 0 else 1
    raise DataError(
        f"input {spec} expected, with a sample axis before it or cut along its first axis; "
        f"the data has {array.dtype} {list(array.shape)}",
        where=source,
    )


def _count(array: np.ndarray, step: int | None, name: str, source: str) -> int:
    """Return the number of samples in an array.

    Raises:
        DataError: they don't fill the batches of the size that the model is fixed to.

    """
    if step is None:
        return 1
    left = array.shape[0] % max(step, 1)
    if left:
        raise DataError(
            f"{array.shape[0]} samples of {name!r} don't fill batches of {step}, the size that the model is fixed to",
            where=source,
            hint=f"Leave the last {left} out" if left < array.shape[0] else f"Give {step} or more",
        )
    return int(array.shape[0]) // max(step, 1)


def _common_count(counts: Mapping[str, int], source: str) -> int:
    """Return the number of samples; an array of one sample serves all.

    Raises:
        DataError: the arrays give different numbers.

    """
    several = {name: count for name, count in counts.items() if count != 1}
    for name, count in several.items():
        first, number = next(iter(several.items()))
        if count != number:
            raise DataError(f"{number} samples of {first!r} and {count} of {name!r}", where=source)
    return next(iter(several.values()), 1)


def _slice(array: np.ndarray, step: int | None, index: int) -> np.ndarray:
    if step is None:
        return array
    return np.asarray(array[index] if step == 0 else array[index * step : (index + 1) * step])


def _label(labels: np.ndarray, count: int, index: int, source: str) -> np.ndarray:
    """Return the labels of one sample: `labels` holds one row, or the same number of rows, per sample."""
    each, left = divmod(labels.shape[0], count) if labels.ndim else (0, 0)
    if each == 0 or left:
        found = labels.shape[0] if labels.ndim else labels.size
        raise DataError(f"{found} labels for {count} feeds", where=source)
    return np.asarray(labels[index * each : (index + 1) * each])


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a `.npz`, or a `.npy` as one array without a name; never runs pickled code.

    Raises:
        DataError: the file can't be read.

    """
    if path.suffix == ".npy":
        return {_ANY: _read_npy(path)}
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _read_member(path, archive, info) for info in archive.infolist()
            }
    except Exception as error:  # a damaged header is read by Python's own tokenizer, which has errors of its own
        raise DataError(f"not a readable .npz file ({_first_line(error)})", where=str(path)) from error


def _read_member(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """Read one array of a `.npz`; one that is stored uncompressed is mapped and not read."""
    with archive.open(info) as member:
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < 1 << 20:
            return np.asarray(np.lib.format.read_array(member, allow_pickle=False))
        version = np.lib.format.read_magic(member)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read_header(member)
        header_bytes = member.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name_bytes, extra_bytes = np.frombuffer(file.read(4), "<u2")
    offset = info.header_offset + 30 + int(name_bytes) + int(extra_bytes) + header_bytes
    return np.memmap(path, dtype, "r", offset=offset, shape=shape, order="F" if fortran else "C")


def _read_npy(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
                raise DataError("not a readable .npy file (it does not start like one)", where=str(path))
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(f"not a readable .npy file ({_first_line(error)})", where=str(path)) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _test_data_sample(folder: Path, specs: Sequence[TensorSpec]) -> _Sample:
    """Return the inputs of an ONNX `test_data_set_*` folder as a sample; its outputs are not read."""
    return _Sample(name=str(folder), load=partial(_read_test_data, folder, specs))


def _read_test_data(folder: Path, specs: Sequence[TensorSpec]) -> Raw:
    import onnx

    files = sorted(folder.glob("input_*.pb"), key=lambda path: (len(path.name), path.name))
    values: list[tuple[str, Any]] = []
    for path, spec in zip(files, specs, strict=False):
        sequence = spec.type.startswith("seq(")
        proto: Any = onnx.SequenceProto() if sequence else onnx.TensorProto()
        try:
            proto.ParseFromString(path.read_bytes())
            read = onnx.numpy_helper.to_list if sequence else onnx.numpy_helper.to_array
            values.append((proto.name, read(proto)))
        except Exception as error:  # numpy's, protobuf's and onnx's own
            raise DataError(f"not a readable ONNX tensor ({_first_line(error)})", where=str(path)) from error
    if len(values) < len(specs):
        raise DataError(f"{len(files)} inputs in it, the model has {len(specs)}", where=str(folder))
    if {name for name, _ in values} == {spec.name for spec in specs}:
        return dict(values)
    return {spec.name: value for spec, (_, value) in zip(specs, values, strict=True)}


def _layout_of(spec: TensorSpec) -> Layout:
    """Return where the channels of an image input are: last where that dimension is 1, 3 or 4 and the second isn't."""
    few = (1, 3, 4)
    if len(spec.shape) == 4 and spec.shape[3] in few and spec.shape[1] not in few:
        return "nhwc"
    return "nchw"


def _image_samples(
    folder: Path, specs: Sequence[TensorSpec], *, layout: Layout | None, size: int | None
) -> list[_Sample]:
    """Return the images below `folder`; where they are in sub-folders, those are the labels, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError("no .npz, .npy, test_data_set_* or image files in it", where=str(folder))
    if len(specs) != 1 or len(specs[0].shape) != 4:
        raise DataError("images need a model with one input of four axes", where=str(folder), hint=_inputs_hint(specs))
    spec = specs[0]
    layout = layout or _layout_of(spec)
    height, width, channels = (
        _pixels(spec.shape[axis], default)
        for axis, default in zip((2, 3, 1) if layout == "nchw" else (1, 2, 3), (size, size, 3), strict=True)
    )
    if height is None or width is None or channels is None:
        raise DataError("the model leaves the image size open", where=str(folder), hint="Give it with --size")
    classes = sorted({path.relative_to(folder).parts[0] for path in files if path.parent != folder})

    def load(path: Path) -> Raw:
        pixels = _read_image(path, height=height, width=width, channels=channels)
        image = pixels.transpose(2, 0, 1) if layout == "nchw" else pixels
        parts = path.relative_to(folder).parts
        return {_ANY: image[None]} | ({"label": np.array([classes.index(parts[0])])} if len(parts) > 1 else {})

    _require_pillow()
    return [_Sample(name=str(path), load=partial(load, path)) for path in files]


def _pixels(declared: int | str | None, default: int | None) -> int | None:
    return declared if isinstance(declared, int) and declared > 0 else default


def _require_pillow() -> None:
    try:
        import PIL  # noqa: F401
    except ImportError as error:
        raise DataError("reading images needs Pillow", hint="pip install onnxcompress[images]") from error


def _read_image(path: Path, *, height: int, width: int, channels: int) -> np.ndarray:
    """Return uint8 [height, width, channels]: the shorter side scaled to fit, the centre cut out."""
    from PIL import Image, ImageOps

    mode = {1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
    if mode is None:
        raise DataError(f"no image has {channels} channels", where=str(path))
    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(image.convert(mode), (width, height), Image.Resampling.BILINEAR)
    except Exception as error:  # each format has errors of its own
        raise DataError(f"not a readable image ({_first_line(error)})", where=str(path)) from error
    return np.asarray(fitted, np.uint8).reshape(height, width, channels)
