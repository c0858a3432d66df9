"""Places of the models of a pipeline in a folder; imports nothing heavy, so that an empty folder is refused at once."""

from __future__ import annotations

from pathlib import Path

_FOLDERS = ("", "onnx")
"""Where models are within a folder that was given: in it, or where exporters of whole repositories put them."""


def model_files(folder: Path) -> list[Path]:
    """Return the `.onnx` files of the first place that has any, sorted by name; empty where none has."""
    places = [sorted((folder / each).glob("*.onnx")) for each in _FOLDERS]
    return next((each for each in places if each), [])
