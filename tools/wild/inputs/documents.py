"""Inputs of models that read: pages, lines, captchas and number plates, drawn with the fonts that matplotlib ships."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ..catalog import Feed, Sources
from . import photographs as photos
from . import texts

FONTS = {
    "work": ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono-Bold.ttf", "DejaVuSans-Oblique.ttf", "cmr10.ttf"),
    "judge": ("DejaVuSans-Bold.ttf", "DejaVuSerif-Italic.ttf", "DejaVuSansMono.ttf", "STIXGeneral.ttf", "cmss10.ttf"),
}
"""Half -> faces of matplotlib's data folder."""


@lru_cache(maxsize=64)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def _any_font(sources: Sources, size: int) -> ImageFont.FreeTypeFont:
    names = FONTS[sources.which]
    return _font(names[sources.random.integers(len(names))], size)


def _colours(random: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return paper and ink, light and dark or the other way round."""
    light, dark = random.integers(190, 256, 3), random.integers(0, 90, 3)
    paper, ink = (light, dark) if random.random() < 0.85 else (dark, light)
    return tuple(map(int, paper)), tuple(map(int, ink))


def _worn(random: np.random.Generator, picture: Image.Image) -> Image.Image:
    """Return the picture as a camera sees it: blurred a little, noisy."""
    blurred = picture.filter(ImageFilter.GaussianBlur(float(random.uniform(0, 0.8))))
    noisy = np.asarray(blurred, np.float32) + random.normal(0, random.uniform(1, 8), (picture.height, picture.width, 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _line(sources: Sources, text: str, height: int, *, margin: float = 0.15) -> Image.Image:
    """Return a picture of one line of text, `height` pixels high."""
    font = _any_font(sources, round(height * 0.62))
    left, top, right, bottom = font.getbbox(text)
    paper, ink = _colours(sources.random)
    picture = Image.new("RGB", (int(right - left + 2 * margin * height), height), paper)
    place = (margin * height - left, (height - (bottom - top)) / 2 - top)
    ImageDraw.Draw(picture).text(place, text, ink, font=font)
    return _worn(sources.random, picture)


def _phrases(sources: Sources, *, longest: int) -> Iterator[str]:
    for sentence in texts.repeat(texts.english(sources)):
        words = sentence.split()
        start = int(sources.random.integers(0, max(1, len(words) - 2)))
        phrase = " ".join(words[start:])[: int(sources.random.integers(5, longest))].strip()
        if len(phrase) >= 4 and phrase.isascii():
            yield phrase


def ppocr_line(sources: Sources, *, name: str = "x", fixed: int = 0, turned: bool = False) -> Iterator[Feed]:
    """Yield [1, 3, 48, width] lines of text, blue first, (x/255 - 0.5)/0.5, blank behind.

    As rapidocr_onnxruntime's text recogniser and classifier of turned lines do: 48 pixels high, at least 320 wide
    for recognition, 192 (`fixed`) for the classifier, filled with zeros. Every other line is upside down if `turned`.
    """
    for index, phrase in enumerate(_phrases(sources, longest=36)):
        picture = _line(sources, phrase, 48)
        if turned and index % 2:
            picture = picture.rotate(180)
        width = fixed or max(320, picture.width)
        if picture.width > width:
            picture = picture.resize((width, 48), Image.Resampling.BILINEAR)
        made = np.zeros((1, 3, 48, width), np.float32)
        made[..., : picture.width] = photos.channels_first(photos.pixels(picture)[..., ::-1]) / 127.5 - 1
        yield {name: made}


def page(sources: Sources, size: tuple[int, int]) -> Image.Image:
    """Return a page of `size` (width, height): a heading, paragraphs in one or two columns, a picture, a table."""
    random, (width, height) = sources.random, size
    paper, ink = _colours(random)
    picture = Image.new("RGB", size, paper)
    draw, phrases = ImageDraw.Draw(picture), _phrases(sources, longest=60)
    body, heading = _any_font(sources, int(random.integers(11, 16))), _any_font(sources, int(random.integers(20, 30)))
    draw.text((width * 0.1, height * 0.05), next(phrases)[:30], ink, font=heading)
    columns = int(random.integers(1, 3))
    column_width = width * 0.8 / columns
    for column in range(columns):
        left, y = width * 0.1 + column * column_width, height * 0.12
        while y < height * 0.92:
            part = random.random()
            if part < 0.12:
                block = (int(column_width * 0.9), int(column_width * random.uniform(0.3, 0.6)))
                views = photos.views(sources)
                picture.paste(photos.cut(random, views[random.integers(len(views))], block), (int(left), int(y)))
                y += block[1] + 12
            elif part < 0.2:
                y = _table(draw, random, (left, y, column_width * 0.9), ink, body)
            else:
                for _ in range(random.integers(2, 7)):
                    text = next(phrases)
                    while body.getlength(text) > column_width * 0.92:
                        text = text[:-1]
                    draw.text((left, y), text, ink, font=body)
                    y += body.size * 1.35
                y += body.size
    return _worn(random, picture)


def _table(
    draw: ImageDraw.ImageDraw,
    random: np.random.Generator,
    place: tuple[float, float, float],
    ink: tuple[int, ...],
    font: ImageFont.FreeTypeFont,
) -> float:
    """Draw a table of numbers at (left, top, width) and return where it ends."""
    left, top, width = place
    rows, columns, step = int(random.integers(3, 7)), int(random.integers(3, 5)), font.size * 1.6
    for row in range(rows + 1):
        draw.line((left, top + row * step, left + width, top + row * step), ink)
    for column in range(columns + 1):
        x = left + column * width / columns
        draw.line((x, top, x, top + rows * step), ink)
        for row in range(rows if column < columns else 0):
            draw.text((x + 4, top + row * step + 2), f"{random.uniform(0, 999):.1f}", ink, font=font)
    return top + rows * step + 12


def ppocr_page(sources: Sources, *, width: int, height: int, name: str = "x") -> Iterator[Feed]:
    """Yield [1, 3, height, width] pages, blue first, (x/255 - 0.5)/0.5.

    As in rapidocr_onnxruntime/ch_ppocr_det/utils.py and config.yaml; sides are multiples of 32. The package scales
    the shorter side to 736 at least, which takes four times as long.
    """
    while True:
        made = photos.pixels(page(sources, (width, height)))[..., ::-1]
        yield {name: photos.channels_first(made) / np.float32(127.5) - 1}


def layout_page(sources: Sources, *, name: str = "image") -> Iterator[Feed]:
    """Yield [1, 3, 800, 608] pages, blue first, normalized by ImageNet's means and deviations.

    As in rapid_layout/model_handler/pp/pre_process.py, on pictures as OpenCV reads them.
    """
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    while True:
        pixels = photos.pixels(page(sources, (608, 800)))[..., ::-1]
        yield {name: photos.channels_first((pixels / np.float32(255) - mean) / deviation)}


def captcha(sources: Sources, *, name: str = "input1") -> Iterator[Feed]:
    """Yield [1, 1, 64, width] captchas of four to six letters and digits in grey from 0 to 1.

    As in ddddocr/core/ocr_engine.py: 64 high in proportion, grey, x/255. The captchas are drawn: letters turned
    and shifted one by one, lines and dots over them.
    """
    random = sources.random
    while True:
        signs = random.choice(list("abcdefghjkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789"), random.integers(4, 7))
        paper, ink = _colours(random)
        picture = Image.new("RGB", (40 * len(signs) + 20, 64), paper)
        for place, sign in enumerate(signs):
            picture = _stamped(sources, picture, sign, (10 + 40 * place, 4), 42, ink)
        draw = ImageDraw.Draw(picture)
        for _ in range(random.integers(1, 5)):
            ends = random.integers(0, [picture.width, 64, picture.width, 64])
            draw.line(tuple(map(int, ends)), tuple(map(int, random.integers(0, 200, 3))), 1)
        yield {name: np.asarray(_worn(random, picture).convert("L"), np.float32)[None, None] / np.float32(255)}


def _stamped(
    sources: Sources, picture: Image.Image, sign: str, place: tuple[int, int], size: int, ink: tuple[int, ...]
) -> Image.Image:
    """Return the picture with one turned sign of `size` pixels at `place`."""
    mask = Image.new("L", (size + 14, size + 14))
    ImageDraw.Draw(mask).text((8, 0), sign, 255, font=_any_font(sources, size))
    mask = mask.rotate(float(sources.random.uniform(-25, 25)), Image.Resampling.BILINEAR)
    picture.paste(Image.new("RGB", mask.size, ink), place, mask)
    return picture


def click_captcha(sources: Sources, *, name: str = "images") -> Iterator[Feed]:
    """Yield [1, 3, 416, 416] photographs with three to five big signs on them, blue first, 0 to 255, grey below.

    As in preproc of ddddocr/core/detection_engine.py: scaled to fit, the rest filled with 114.
    """
    random, scenes = sources.random, photos.scenes(sources, (416, 260))
    for picture in scenes:
        for place in range(random.integers(3, 6)):
            ink = tuple(map(int, random.integers(0, 256, 3)))
            where = (15 + 80 * place, int(random.integers(5, 180)))
            sign = str(random.choice(list("ABDEFGHKMNPQRSTWXYZ23456789")))
            picture = _stamped(sources, picture, sign, where, int(random.integers(45, 60)), ink)
        made = np.full((1, 3, 416, 416), 114, np.float32)
        made[:, :, :260] = photos.channels_first(photos.pixels(picture)[..., ::-1])
        yield {name: made}


def plate(sources: Sources) -> Image.Image:
    """Return a picture of a number plate."""
    random = sources.random
    letters = "".join(random.choice(list("ABCDEFGHJKLMNPRSTUVWXYZ"), 3))
    text = (
        f"{letters} {random.integers(100, 9999)}"
        if random.random() < 0.5
        else f"{random.integers(10, 99)} {letters} {random.integers(10, 99)}"
    )
    font = _any_font(sources, 56)
    left, top, right, bottom = font.getbbox(text)
    paper = (250, 250, 245) if random.random() < 0.6 else (245, 205, 40)
    picture = Image.new("RGB", (int(right - left) + 40, 84), paper)
    draw = ImageDraw.Draw(picture)
    draw.rectangle((2, 2, picture.width - 3, 81), outline=(10, 10, 10), width=3)
    draw.text((20 - left, (84 - (bottom - top)) / 2 - top), text, (15, 15, 20), font=font)
    return picture


def plates(sources: Sources, *, name: str = "input") -> Iterator[Feed]:
    """Yield [1, 3, 224, 224] float16 number plates, normalized as platerec.py does.

    The plate is stretched to the square, x/255, ImageNet's means and deviations.
    """
    mean, deviation = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    while True:
        made = _worn(sources.random, plate(sources)).resize((224, 224), Image.Resampling.BILINEAR)
        yield {name: photos.channels_first((photos.pixels(made) / 255 - mean) / deviation).astype(np.float16)}
