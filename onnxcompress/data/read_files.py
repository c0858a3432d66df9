"""Read samples from files: arrays of numpy, tensors of ONNX test data, images."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..errors import DataError
from .samples import ANY, Raw, Sample, inputs_hint, required

if TYPE_CHECKING:
    from ..runtime.tensor_spec import TensorSpec

Layout = Literal["nchw", "nhwc"]
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})


def sample_of_test_data(folder: Path, specs: Sequence[TensorSpec]) -> Sample:
    """Return the inputs of an ONNX `test_data_set_*` folder as a sample; its outputs are not read."""
    return Sample(name=str(folder), load=partial(_read_test_data, folder, specs))


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
    needed = {spec.name for spec in required(specs)}
    if len(values) < len(needed):
        raise DataError(f"{len(files)} inputs in it, the model has {len(needed)}", where=str(folder))
    if needed <= {name for name, _ in values} <= {spec.name for spec in specs}:
        return dict(values)
    return {spec.name: value for spec, (_, value) in zip(specs, values, strict=False)}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Read a `.npz`, or a `.npy` as one array without a name; never runs pickled code.

    Raises:
        DataError: the file can't be read.

    """
    if path.suffix == ".npy":
        return {ANY: read_npy(path)}
    try:
        with zipfile.ZipFile(path) as archive:
            return {
                info.filename.removesuffix(".npy"): _read_member(path, archive, info) for info in archive.infolist()
            }
    except Exception as error:  # a damaged header is read by Python's own tokenizer, which has errors of its own
        raise DataError(f"not a readable .npz file ({_first_line(error)})", where=str(path)) from error


def read_npy(path: Path) -> np.ndarray:
    """Map the array of a `.npy` file.

    Raises:
        DataError: the file can't be read.
    """
    try:
        with path.open("rb") as file:
            if file.read(len(np.lib.format.MAGIC_PREFIX)) != np.lib.format.MAGIC_PREFIX:
                raise DataError("not a readable .npy file (it does not start like one)", where=str(path))
        mapped: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped
    except DataError:
        raise
    except Exception as error:  # as above
        raise DataError(f"not a readable .npy file ({_first_line(error)})", where=str(path)) from error


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


def layout_of(spec: TensorSpec) -> Layout:
    """Return where the channels of an image input are: last where that dimension is 1, 3 or 4 and the second isn't."""
    few = (1, 3, 4)
    if len(spec.shape) == 4 and spec.shape[3] in few and spec.shape[1] not in few:
        return "nhwc"
    return "nchw"


def image_samples(
    folder: Path, specs: Sequence[TensorSpec], *, layout: Layout | None, size: int | None
) -> list[Sample]:
    """Return the images below `folder`; where they are in sub-folders, those are the labels, sorted."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError("no .npz, .npy, test_data_set_* or image files in it", where=str(folder))
    if len(required(specs)) != 1 or len(specs[0].shape) != 4:
        raise DataError("images need a model with one input of four axes", where=str(folder), hint=inputs_hint(specs))
    spec = specs[0]
    layout = layout or layout_of(spec)
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
        return {ANY: image[None]} | ({"label": np.array([classes.index(parts[0])])} if len(parts) > 1 else {})

    _require_pillow()
    return [Sample(name=str(path), load=partial(load, path)) for path in files]


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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
