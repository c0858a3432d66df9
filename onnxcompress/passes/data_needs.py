"""What passes need that can do without data in one of their ways."""

from __future__ import annotations

from typing import Any

from ..core import Need


class DataFor:
    """`needs` of a pass: data, where an option of the instance has one of some values; else data if there are any.

    Args:
        option: name of the option.
        values: those that need data.
    """

    def __init__(self, option: str, *values: str) -> None:
        self._option = option
        self._values = values

    def __get__(self, instance: Any, owner: type[Any]) -> frozenset[Need]:
        """Return the needs of an instance, or of the class with its defaults."""
        is_needed = instance is not None and getattr(instance, self._option) in self._values
        return frozenset({Need.DATA if is_needed else Need.DATA_IF_GIVEN})
