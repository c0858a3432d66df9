"""Data options as a user types them, turned into a dataset that fits a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import Layout

if TYPE_CHECKING:
    from ..data import Dataset
    from ..runtime import Session


def load(
    spec: str,
    session: Session,
    *,
    layout: Layout | None,
    size: int | None,
    scale: str | None,
    mean: str | None,
    state: list[str] | None,
) -> Dataset:
    """Return the samples that `--data` or `--eval` names.

    Raises:
        DataError: they can't be read, or don't fit the model's inputs.
        UsageError: an option has another form.
    """
    from .. import data

    return data.load_data(
        spec,
        session.inputs,
        layout=None if layout is None else layout.value,
        size=size,
        scale=None if scale is None else data.parse_numbers(scale),
        mean=None if mean is None else data.parse_numbers(mean),
        state=data.parse_state(state or ()),
    )
