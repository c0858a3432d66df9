"""Objects of the JSON reports as frozen values with typed fields, from which the JSON schema is made."""

from __future__ import annotations

from typing import Annotated, Any

import pydantic

Count = Annotated[int, pydantic.Field(ge=0)]
"""A number of things or of bytes."""

Positive = Annotated[int, pydantic.Field(ge=1)]
NotNegative = Annotated[float, pydantic.Field(ge=0)]


class ReportValue(pydantic.BaseModel):
    """One object of a JSON report; a field that was not set is not written.

    Read by attribute (`quality.drop`), or by key as in the JSON (`quality["drop"]`).
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def as_json(self) -> dict[str, Any]:
        """Return the object as JSON-serialisable values."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)

    def __getitem__(self, key: str) -> Any:
        """Return a value of the JSON object."""
        return self.as_json()[key]
