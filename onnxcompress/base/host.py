"""Abilities of the machine that this runs on."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import platform
import sys
from pathlib import Path

_WIDE = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "avx_vnni_int8"})
"""Flags of x64 processors that add products of 8-bit integers in 32 bits at once."""
_X64 = frozenset({"x86_64", "amd64"})

_MMAP_THRESHOLD = -3
"""Parameter of mallopt: the size of blocks from which on each is returned to the system when it is freed."""
_LARGE_BLOCK_BYTES = 1 << 20
"""Blocks that take long to fill beside what returning them costs. Chosen by judgement."""


def adds_in_16_bits(*, machine: str | None = None, cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Say whether two products of uint8 by int8 are added in 16 bits, where they can saturate: x64 without VNNI.

    Where the flags can't be read it is taken to be so.

    Args:
        machine: the architecture; None for this one.
        cpuinfo: where the kernel lists the processor's flags.
    """
    if (machine or platform.machine()).lower() not in _X64:
        return False
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return _WIDE.isdisjoint(flags)


def spare_memory_bytes(*, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Return most of the memory that is free for new processes, None where the system does not tell.

    Args:
        meminfo: where the kernel says it.
    """
    try:
        lines = meminfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    kilobytes = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return None if kilobytes is None else kilobytes * 1024 * 9 // 10


def touched_bytes() -> int:
    """Return how much memory this thread has begun to use so far, counted anew where it was returned in between.

    It only grows; 0 on other systems than Linux.
    """
    if sys.platform != "linux":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt * mmap.PAGESIZE


def return_free_memory() -> None:
    """Return freed memory to the system, and from now on large blocks as soon as they are freed (glibc only).

    Without it, blocks of up to 32 MB leave holes all over the heap: hundreds of megabytes after runs of large
    activations.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
        library.malloc_trim(0)


def waited_seconds() -> float:
    """Return how long threads of this process, added up, were ready to run and had no processor (0 but on Linux)."""
    waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has ended
            waited += int(path.read_text(encoding="ascii").split()[1])
    return waited / 1e9
