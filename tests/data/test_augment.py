"""Few samples are varied: images moved and mirrored, pairs mixed; what can't be varied stays as it is."""

import numpy as np
import pytest

from onnxcompress.data.augment import ENOUGH, varied
from tests.helpers import floats


def _feeds(*shape, count=16):
    return [{"x": floats(*shape, seed=seed)} for seed in range(count)]


def test_images_are_moved_and_mixtures_added():
    feeds = _feeds(1, 3, 12, 12)
    found = varied(feeds, seed=0)
    assert found[:16] == feeds
    assert len(found) == 16 * 4
    for given, moved in zip(feeds, found[16:32], strict=True):
        assert np.array_equal(np.sort(given["x"], axis=None), np.sort(moved["x"], axis=None))
    steps = [(i, j) for i in range(-2, 3) for j in range(-2, 3)]
    pairs = [(np.flip(a["x"], 3), b["x"]) for a, b in zip(feeds, found[16:32], strict=True)]
    assert any(np.array_equal(mirrored, np.roll(b, step, (2, 3))) for mirrored, b in pairs for step in steps)
    assert all(feed["x"].dtype == np.float32 and feed["x"].flags.c_contiguous for feed in found)


def test_images_with_channels_last_are_moved_along_their_sides():
    feeds = [{"x": np.stack([np.full((12, 12), c, np.float32) for c in range(3)], axis=-1)[None]}] * 16
    assert all(np.array_equal(feed["x"], feeds[0]["x"]) for feed in varied(feeds, seed=0)[16:32])


def test_rows_are_only_mixed():
    feeds = _feeds(1, 64)
    found = varied(feeds, seed=0)
    assert len(found) == 16 * 3
    rows = np.concatenate([feed["x"] for feed in feeds])
    for feed in found[16:]:
        share, residue = np.linalg.lstsq(rows.T, feed["x"][0], rcond=None)[:2]
        assert np.sum(share > 1e-4) <= 2
        assert share.sum() == pytest.approx(1, abs=1e-3)
        assert residue < 1e-6


def test_the_seed_decides():
    feeds = _feeds(1, 64)
    one, same, other = (varied(feeds, seed=seed)[-1]["x"] for seed in (1, 1, 2))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(
    ("feeds", "state"),
    [
        (_feeds(1, 64), {"h": "h_out"}),
        (_feeds(1, 64, count=15), {}),
        (_feeds(1, 4, count=ENOUGH), {}),
        ([*_feeds(1, 64), {"x": floats(1, 32)}], {}),
        ([{"x": np.arange(4)}] * 16, {}),
        ([{"x": floats(1, 64), "length": np.float32(3)}] * 16, {}),
    ],
)
def test_what_is_ordered_enough_or_of_other_kinds_is_left_alone(feeds, state):
    assert varied(feeds, seed=0, state=state) is feeds
