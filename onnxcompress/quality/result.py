"""Values of the report's `quality` object: the scores of two models, and the distance of their outputs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SkipValidation

from ..base.report_value import Count, ReportValue

Cosine = Annotated[float, Field(json_schema_extra={"minimum": -1, "maximum": 1})]


class OutputDifference(ReportValue):
    """Distance of one output from the original's, and its loss in points of its kind."""

    max_abs: float | None
    """Largest absolute difference; null where it overflows."""
    cosine: Cosine | None
    sqnr_db: float | None
    """Ratio of signal to error power, dB; null where there is no difference."""
    not_finite: tuple[Count, Count] = (0, 0)
    """Elements of the original's and of the other model's output that are not finite."""
    largest: float | None = None
    """Largest value of a sigmoid's output that is below 0.5 on all samples."""
    kind: str = ""
    """Meaning of the output's numbers, see `--output-kind`."""
    why: str = ""
    """Evidence for the kind."""
    drop: float | None = None
    """Loss of the output, 0.01 for one point of its kind; null where it is not scored."""
    drop_interval: tuple[float, float] | None = None
    """Ends of the 90% interval of the loss."""
    confidence: float | None = None
    """Mean of the original's best probability, where the output scores classes."""
    disagreement: float | None = None
    """Share of positions at which the two models choose another class."""
    positions: Count = 0
    """Number of choices that were compared."""
    classes: float | None = None
    """Mean number of classes of a choice."""
    figures: dict[str, float] = Field(default_factory=dict)
    """Further measures of the loss, by the kind."""


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
    """original - compressed, absolute.

    compressed - original where lower is better (error rates); a part of the original's for perplexity; hundredths for
    bleu and chrf, which are in percent.
    """
    drop_interval: tuple[float, float] | None = None
    """Ends of the 90% interval of the loss."""
    output: str | None = None
    """The output that loses most, where the loss is estimated."""
    divergence: float | None = None
    """Mean over the outputs of a figure of low variance that falls with every repair."""
    disagreement: float | None = None
    """Of the output that loses most, where it scores classes."""
