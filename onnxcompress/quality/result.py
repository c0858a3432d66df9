"""Values of the report's `quality` object: the scores of two models, and the distance of their outputs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SkipValidation

from ..base.report_value import Count, ReportValue

Cosine = Annotated[float, Field(json_schema_extra={"minimum": -1, "maximum": 1})]


class OutputDifference(ReportValue):
    """Distance of one output from the original's, and the estimated loss where it scores classes."""

    max_abs: float | None
    """Largest absolute difference; null where it overflows."""
    cosine: Cosine | None
    sqnr_db: float | None
    """Ratio of signal to error power, dB; null where there is no difference."""
    not_finite: tuple[Count, Count] = (0, 0)
    """Elements of the original's and of the other model's output that are not finite."""
    cosine_of_answers: Cosine | None = None
    """Of p and 1 - p together, for a sigmoid's output that is below 0.5 on all samples."""
    largest: float | None = None
    """Largest value of such an output."""
    confidence: float | None = None
    """Mean of the original's best probability."""
    estimated_drop: float | None = None
    """Mean probability, by the original, that the other model's choice loses."""
    disagreement: float | None = None
    """Share of positions at which the two models choose another class."""
    positions: Count = 0
    """Number of choices that were compared."""


class Quality(ReportValue):
    """Scores of the original and the other model; null where no output can be scored."""

    metric: str
    samples: Count
    data: SkipValidation[str] = ""
    """Source of the samples, "synthetic" for made ones."""
    outputs: dict[str, OutputDifference]
    original: float | None
    compressed: float | None
    drop: float | None
    """original - compressed, absolute."""
    disagreement: float | None = None
    """Of the output that loses most, where it scores classes."""
