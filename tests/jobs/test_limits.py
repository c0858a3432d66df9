"""Candidates are told by how much they are over the user's limits."""

import pytest

from onnxcompress.core import Trial
from onnxcompress.jobs.limits import LatencyLimit, excess

TRIAL = Trial(bytes=1000, size_ratio=0.5, latency_ratio=0.6, drop=0.0, divergence=1e-4, latency_ms=3.0)
UNTIMED = Trial(bytes=1000, size_ratio=0.5, latency_ratio=None, drop=0.0, divergence=1e-4)


@pytest.mark.parametrize(
    ("trial", "max_bytes", "latency", "says"),
    [
        (TRIAL, None, None, None),
        (TRIAL, 1000, "0.6x", None),
        (TRIAL, 999, None, "1,000 bytes"),
        (TRIAL, None, "0.5x", "0.600x"),
        (TRIAL, None, "3ms", None),
        (TRIAL, None, "2ms", "3.000 ms"),
        (UNTIMED, None, "0.5x", None),
    ],
)
def test_an_excess_is_said_in_words(trial, max_bytes, latency, says):
    found = excess(trial, max_bytes=max_bytes, latency=None if latency is None else LatencyLimit.parse(latency))
    assert found is None if says is None else says in found
