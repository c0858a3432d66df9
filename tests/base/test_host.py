"""The processor's flags are read; what is not known is taken for the worse."""

import pytest

from onnxcompress.base import host


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


def test_most_of_the_free_memory_may_be_taken(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:   10000000 kB\n")
    assert host.spare_memory_bytes(meminfo=path) == 9_000_000 * 1024
    assert host.spare_memory_bytes(meminfo=tmp_path / "none") is None
