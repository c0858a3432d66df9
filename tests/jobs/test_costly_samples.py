"""Where a round over the samples to judge by is costly, seen samples are not among them."""

import pytest

import onnxcompress as oc
from onnxcompress.jobs import setup
from tests.helpers import floats, with_constants


@pytest.mark.parametrize(("most_macs", "judged"), [(64 * 12, 64), (64 * 12 - 1, 16)])
def test_seen_samples_are_judged_by_where_they_are_cheap(monkeypatch, most_macs, judged):
    model = with_constants("g (float[n, 4] x, float[4, 3] w) => (float[n, 3] y) { y = MatMul(x, w) }", w=floats(4, 3))
    monkeypatch.setattr(setup, "_MOST_MACS", most_macs)  # a run has 4 x 3
    assert oc.compress(model, recipe="int8", data={"x": floats(64, 4)}).report.quality["samples"] == judged
