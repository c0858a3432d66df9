"""Feeds for a model from what users have: arrays, folders of files, images, ONNX test data, a function.

Every form becomes a list of samples (a name and a way to load it), and every sample is fitted to the model's
inputs. Samples are loaded again each time they are read, so that memory holds one at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..base.user_code import load_function
from ..core import Feed
from ..errors import DataError, UsageError
from .feeds import Lazy
from .fit import Scaling, fit, non_finite, zeros
from .read_files import Layout, image_samples, layout_of, read_arrays, read_npy, sample_of_test_data
from .samples import ANY, LABEL_NAMES, Sample, by_input, cut_stack, inputs_hint, required
from .source_path import check_there

if TYPE_CHECKING:
    from ..runtime.tensor_spec import TensorSpec


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


def load_data(
    spec: str | Path | np.ndarray | Mapping[str, Any] | Sequence[Feed] | Dataset,
    specs: Sequence[TensorSpec],
    *,
    layout: Layout | None = None,
    size: int | None = None,
    scale: Sequence[float] | None = None,
    mean: Sequence[float] | None = None,
    state: Mapping[str, str] | None = None,
    empty: Mapping[str, Collection[int]] | None = None,
) -> Dataset:
    """Read data and fit it to a model's inputs.

    Args:
        spec: a path to a `.npz` or `.npy` or to a folder of `.npz`, `.npy`, `test_data_set_*` or images;
            "module:function"; an array for the only input; a dict of arrays; a sequence of feeds.
        specs: the model's inputs; those that have a default are fed where the data holds them.
        layout: of images: "nchw" or "nhwc"; by default read from the model's input.
        size: pixels; of images where the model leaves it open.
        scale: float inputs become x*scale - mean: one value, or one per channel. Of several float inputs those
            with the most axes are scaled.
        mean: see `scale`.
        state: input -> output whose value it gets from the run before; first the data's, or zero.
        empty: state input -> axes of no length where it begins as zero, see `states.growing_axes`.

    Raises:
        DataError: missing, unreadable, empty, or not fitting the model.
        UsageError: a state or function that does not exist.

    """
    if isinstance(spec, Dataset):
        return spec
    state = dict(state or {})
    unknown = [name for name in state if name not in {s.name for s in specs}]
    if unknown:
        raise UsageError(f"the model has no input {unknown[0]!r} to carry state into", hint=inputs_hint(specs))
    source = str(spec) if isinstance(spec, str | Path) else "data"
    samples = _samples(spec, specs, layout=layout, size=size, optional=frozenset(state))
    reader = _DataReader(specs=specs, scaling=_scaling(specs, layout, scale, mean), state=state, empty=empty or {})
    return _checked(samples, reader, source=source)


def parse_numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of "0.01" or "0.01,0.02,0.03".

    Raises:
        UsageError: the text is something else.

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
    empty: Mapping[str, Collection[int]]

    def read(self, sample: Sample) -> tuple[Feed, Any]:
        raw = dict(sample.load())
        names = {spec.name for spec in self.specs}
        label = next((raw.pop(name) for name in LABEL_NAMES if name in raw and name not in names), None)
        raw = by_input(raw, self.specs, sample.name, optional=frozenset(self.state))
        feed: Feed = {}
        for spec in self.specs:
            if spec.name in raw:
                feed[spec.name] = self._fitted(raw[spec.name], spec, sample.name)
        for spec in self.specs:
            if spec.name not in feed and not spec.is_optional:
                feed[spec.name] = zeros(spec, feed, self.specs, empty=self.empty.get(spec.name, ()))
        return feed, label

    def feed(self, samples: Sequence[Sample], index: int) -> Feed:
        """Return the feed of one of these samples, without its label."""
        return self.read(samples[index])[0]

    def _fitted(self, array: Any, spec: TensorSpec, where: str) -> Any:
        fitted = fit(array, spec, where=where)
        scaling = self.scaling.get(spec.name)
        return fitted if scaling is None else scaling.apply(fitted).astype(spec.dtype)


def _checked(samples: Sequence[Sample], reader: _DataReader, *, source: str) -> Dataset:
    """Read every sample once: what doesn't fit is an error, what isn't finite is skipped."""
    kept: list[Sample] = []
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
    specs: Sequence[TensorSpec], layout: Layout | None, scale: Sequence[float] | None, mean: Sequence[float] | None
) -> dict[str, Scaling]:
    """Return the scaling of each input that has one: of the float inputs those with the most axes."""
    if scale is None and mean is None:
        return {}
    floats = [spec for spec in required(specs) if spec.dtype is not None and spec.dtype.kind == "f"]
    if not floats:
        raise DataError("scale and mean need an input of floats", hint=inputs_hint(specs))
    rank = max(len(spec.shape) for spec in floats)
    return {
        spec.name: Scaling(
            scale=tuple(scale or (1.0,)),
            mean=tuple(mean or (0.0,)),
            channels_last=(layout or layout_of(spec)) == "nhwc",
        )
        for spec in floats
        if len(spec.shape) == rank
    }


def _samples(
    spec: str | Path | np.ndarray | Mapping[str, Any] | Sequence[Feed],
    specs: Sequence[TensorSpec],
    *,
    layout: Layout | None,
    size: int | None,
    optional: frozenset[str],
) -> list[Sample]:
    if isinstance(spec, np.ndarray):
        return cut_stack({ANY: spec}, specs, source="data", optional=optional)
    if isinstance(spec, Mapping):
        return cut_stack({k: np.asarray(v) for k, v in spec.items()}, specs, source="data", optional=optional)
    if not isinstance(spec, str | Path):
        return [Sample(name=f"feed {i}", load=partial(dict, feed)) for i, feed in enumerate(spec)]
    check_there(spec)
    path = Path(spec)
    if path.is_dir():
        return _folder_samples(path, specs, layout=layout, size=size, optional=optional)
    if path.is_file():
        return cut_stack(read_arrays(path), specs, source=str(path), optional=optional)
    return _function_samples(str(spec))


def _function_samples(name: str) -> list[Sample]:
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
    return [Sample(name=f"{name}[{i}]", load=partial(dict, feed)) for i, feed in enumerate(feeds)]


def _folder_samples(
    folder: Path, specs: Sequence[TensorSpec], *, layout: Layout | None, size: int | None, optional: frozenset[str]
) -> list[Sample]:
    """Tell what a folder holds by its files."""
    if folder.name.startswith("test_data_set_"):
        return [sample_of_test_data(folder, specs)]
    if sets := sorted(folder.glob("test_data_set_*"), key=lambda path: (len(path.name), path.name)):
        return [sample_of_test_data(path, specs) for path in sets]
    if files := sorted(folder.glob("*.npz")):
        return [Sample(name=str(path), load=partial(read_arrays, path)) for path in files]
    if files := sorted(folder.glob("*.npy")):
        by_input = {path.stem: path for path in files}
        if len(required(specs)) != 1 or specs[0].name in by_input:
            arrays = {name: read_npy(path) for name, path in by_input.items()}
            return cut_stack(arrays, specs, source=str(folder), optional=optional)
        return [Sample(name=str(path), load=partial(read_arrays, path)) for path in files]
    return image_samples(folder, specs, layout=layout, size=size)
