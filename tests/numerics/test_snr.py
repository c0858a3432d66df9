"""Energies and their ratios, whatever type the numbers have."""

import numpy as np
import pytest

from onnxcompress.numerics import snr


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint8, np.int32])
def test_squares_beyond_the_type_of_the_numbers_count(dtype):
    array = np.full((3, 5), 100, dtype)
    array[0, 0] = 120
    assert snr.energy(array) == 14 * 100**2 + 120**2


def test_float16_squares_that_overflow_or_vanish_count_too():
    assert snr.energy(np.array([600, 2.0**-14], np.float16)) == 600**2 + 2.0**-28
    reference = np.full(4, 640, np.float16)
    assert snr.error_energy(reference, np.zeros(4, np.float16)) == 4 * 640**2
    assert snr.db(snr.energy(reference), snr.error_energy(reference, reference + np.float16(8))) == pytest.approx(
        20 * np.log10(80)
    )
