"""The processor's flags are read; what is not known is taken for the worse."""

import pytest

from onnxcompress import host


@pytest.mark.parametrize(
    ("text", "narrow"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni", False),
        ("flags : fpu avx_vnni", False),
        ("flags : fpu avx2", True),
        ("", True),
    ],
)
def test_x64_without_vnni_adds_in_16_bits(tmp_path, text, narrow):
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\n{text}\n")
    assert host.adds_in_16_bits(machine="AMD64", cpuinfo=path) is narrow
    assert host.adds_in_16_bits(machine="aarch64", cpuinfo=path) is False


def test_flags_that_cannot_be_read_count_as_missing(tmp_path):
    assert host.adds_in_16_bits(machine="x86_64", cpuinfo=tmp_path / "none") is True
