"""Data options as a user types them, turned into what the library takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import Layout

if TYPE_CHECKING:
    from ..data.evaluation_set import DataOptions


def data_options(
    layout: Layout | None, size: int | None, scale: str | None, mean: str | None, state: list[str] | None
) -> DataOptions:
    """Return how data is to be read.

    Raises:
        UsageError: an option has another form.
    """
    from ..data import load as data_loading
    from ..data.evaluation_set import DataOptions

    return DataOptions(
        layout=layout,
        size=size,
        scale=None if scale is None else data_loading.parse_numbers(scale),
        mean=None if mean is None else data_loading.parse_numbers(mean),
        state=data_loading.parse_state(state or ()),
    )
