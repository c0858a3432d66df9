"""Photographs out of packages, and pictures cut and composed of them; work and judge have different photographs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ..catalog import Sources

FACES = {
    "work": {
        "face_recognition": ("*/tests/test_images/obama.jpg", "*/tests/test_images/obama2.jpg"),
        "scikit_image": ("skimage/data/astronaut.png",),
        "insightface": ("insightface/data/images/Tom_Hanks_54745.png",),
    },
    "judge": {
        "face_recognition": ("*/tests/test_images/biden.jpg", "*/tests/test_images/obama3.jpg"),
        "insightface": ("insightface/data/images/t1.jpg",),
    },
}
"""Half -> package -> photographs of people."""

PLACES = {
    "obama.jpg": ((492, 280, 263),),
    "obama2.jpg": ((337, 464, 307),),
    "astronaut.png": ((225, 127, 106),),
    "Tom_Hanks_54745.png": ((52, 66, 85),),
    "biden.jpg": ((563, 413, 290),),
    "obama3.jpg": ((771, 482, 280),),
    "t1.jpg": ((518, 345, 120), (797, 418, 100), (965, 140, 116), (115, 341, 101), (329, 220, 94), (1181, 347, 92)),
}
"""Photograph -> middle (x, y) and side of its faces in pixels, as BlazeFace finds them."""

VIEWS = {
    "work": {
        "scikit_learn": ("sklearn/datasets/images/china.jpg",),
        "scikit_image": ("skimage/data/coffee.png", "skimage/data/astronaut.png", "skimage/data/gravel.png"),
    },
    "judge": {
        "scikit_learn": ("sklearn/datasets/images/flower.jpg",),
        "scikit_image": ("skimage/data/chelsea.png", "skimage/data/motorcycle_left.png", "skimage/data/grass.png"),
    },
}
"""Half -> package -> photographs of anything: backgrounds."""


@lru_cache(maxsize=4)
def _opened(sources: Sources, group: str) -> dict[str, Image.Image]:
    wanted = {"faces": FACES, "views": VIEWS}[group][sources.which]
    contents = [item for key, patterns in wanted.items() for item in sources.read(key, *patterns).items()]
    return {name.rpartition("/")[2]: Image.open(io.BytesIO(content)).convert("RGB") for name, content in contents}


def faces(sources: Sources) -> tuple[Image.Image, ...]:
    """Return this half's photographs of people."""
    return tuple(_opened(sources, "faces").values())


def views(sources: Sources) -> tuple[Image.Image, ...]:
    """Return this half's other photographs."""
    return tuple(_opened(sources, "views").values())


def cut(
    random: np.random.Generator, photograph: Image.Image, size: tuple[int, int], *, least: float = 0.6
) -> Image.Image:
    """Return a random cut of `size` (width, height): a share `least` to 1 of it, perhaps mirrored, lighter or darker.

    Shapes are kept: the cut has the proportions of `size`.
    """
    width, height = photograph.size
    share = random.uniform(least, 1) * min(width / size[0], height / size[1])
    box_width, box_height = size[0] * share, size[1] * share
    left, top = random.uniform(0, width - box_width), random.uniform(0, height - box_height)
    box = (left, top, left + box_width, top + box_height)
    return _varied(random, photograph.resize(size, Image.Resampling.BILINEAR, box=box))


def _varied(random: np.random.Generator, made: Image.Image) -> Image.Image:
    """Return the picture perhaps mirrored, lighter or darker, of more or less contrast."""
    if random.random() < 0.5:
        made = ImageOps.mirror(made)
    made = ImageEnhance.Brightness(made).enhance(float(random.uniform(0.75, 1.25)))
    return ImageEnhance.Contrast(made).enhance(float(random.uniform(0.85, 1.15)))


def people(
    sources: Sources, size: tuple[int, int], *, smallest: float = 0.15, largest: float = 0.6
) -> Iterator[Image.Image]:
    """Yield pictures of `size` (width, height) with a face in each, one photograph after another, without end.

    The face's side is `smallest` to `largest` of the picture's shorter one, more where the photograph ends.
    """
    random, photographs = sources.random, _opened(sources, "faces")
    turn = 0
    while True:
        for name, photograph in photographs.items():
            x, y, side = PLACES[name][turn % len(PLACES[name])]
            share = np.exp(random.uniform(np.log(smallest), np.log(largest)))
            width, height = (side / share * length / min(size) for length in size)
            fits = min(1.0, photograph.width / width, photograph.height / height)
            width, height = width * fits, height * fits
            left = _between(random, x - width + side / 2, x - side / 2, photograph.width - width)
            top = _between(random, y - height + side / 2, y - side / 2, photograph.height - height)
            window = photograph.crop((round(left), round(top), round(left + width), round(top + height)))
            yield _varied(random, window.resize(size, Image.Resampling.BILINEAR))
        turn += 1


def _between(random: np.random.Generator, low: float, high: float, end: float) -> float:
    """Return a draw between `low` and `high`, in either order, that is 0 to `end`."""
    return float(np.clip(random.uniform(min(low, high), max(low, high)), 0, max(0, end)))


def scenes(sources: Sources, size: tuple[int, int]) -> Iterator[Image.Image]:
    """Yield cuts of all photographs, one after another, without end."""
    photographs = faces(sources) + views(sources)
    while True:
        for photograph in photographs:
            yield cut(sources.random, photograph, size, least=0.4)


def pixels(picture: Image.Image) -> np.ndarray:
    """Return float32 [height, width, 3], 0 to 255, red first."""
    return np.asarray(picture.convert("RGB"), np.float32)


def channels_first(array: np.ndarray) -> np.ndarray:
    """Return [1, channels, height, width] of [height, width, channels]."""
    return np.ascontiguousarray(array.transpose(2, 0, 1)[None])
