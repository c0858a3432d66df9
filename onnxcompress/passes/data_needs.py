"""What passes need that can do without data in one of their ways."""

from __future__ import annotations

from typing import Any

from ..core import Need


class DataUnless:
    """`needs` of a pass: data, unless the option of an instance has a certain value.

    Args:
        option: name of the option.
        value: with which no data is needed.
    """

    def __init__(self, option: str, value: str) -> None:
        self._option = option
        self._value = value

    def __get__(self, instance: Any, owner: type[Any]) -> frozenset[Need]:
        """Return the needs of an instance, or of the class with its defaults."""
        without = instance is not None and getattr(instance, self._option) == self._value
        return frozenset() if without else frozenset({Need.DATA})
