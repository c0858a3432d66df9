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
        "insightface": ("insightface/data/images/t1.jpg", "insightface/data/images/mask_white.jpg"),
    },
}
"""Half -> package -> photographs of people; t1.jpg has six faces."""

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
def _opened(sources: Sources, group: str) -> tuple[Image.Image, ...]:
    wanted = {"faces": FACES, "views": VIEWS}[group][sources.which]
    contents = [content for key, patterns in wanted.items() for content in sources.read(key, *patterns).values()]
    return tuple(Image.open(io.BytesIO(content)).convert("RGB") for content in contents)


def faces(sources: Sources) -> tuple[Image.Image, ...]:
    """Return this half's photographs of people."""
    return _opened(sources, "faces")


def views(sources: Sources) -> tuple[Image.Image, ...]:
    """Return this half's other photographs."""
    return _opened(sources, "views")


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
    made = photograph.resize(size, Image.Resampling.BILINEAR, box=box)
    if random.random() < 0.5:
        made = ImageOps.mirror(made)
    made = ImageEnhance.Brightness(made).enhance(float(random.uniform(0.75, 1.25)))
    return ImageEnhance.Contrast(made).enhance(float(random.uniform(0.85, 1.15)))


def people(sources: Sources, size: tuple[int, int], *, least: float = 0.6) -> Iterator[Image.Image]:
    """Yield cuts of photographs of people, one photograph after another, without end."""
    photographs = faces(sources)
    while True:
        for photograph in photographs:
            yield cut(sources.random, photograph, size, least=least)


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
