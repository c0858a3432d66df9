"""Split words into byte planes, so that an entropy coder finds the little order there is in the weights of a network.

A trained float weight is noise in its mantissa, while its exponent takes few values: of 32 bits, about 2.6 carry
the exponent's 8. Bytes at the same place of every word are gathered in a *plane*; a rotation by one bit moves the
sign to the other end, so that the exponent of float32 and bfloat16 fills a plane of its own.

Hershcovitch et al., "ZipNN: Lossless Compression for AI Models", 2024 (arXiv:2411.05239), section 3: byte
grouping and separate exponents.
"""

from __future__ import annotations

import numpy as np

Words = np.ndarray
"""uint8, uint16, uint32 or uint64 [n], little-endian."""


def split(words: Words, *, rotate: bool) -> np.ndarray:
    """Return the bytes of words by their place.

    Args:
        words: uint16, uint32 or uint64 [n].
        rotate: move the sign, the highest bit, behind the lowest, so that the exponent is the highest.

    Returns:
        uint8 [bytes of a word, n], the highest byte last.
    """
    if rotate:
        words = (words << 1) | (words >> (words.dtype.itemsize * 8 - 1))
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, words.dtype.itemsize).T)


def join(planes: np.ndarray, *, rotate: bool) -> Words:
    """Return the words, uint [n], whose bytes by place are `planes`, uint8 [bytes of a word, n]; undoes `split`."""
    words = np.ascontiguousarray(planes.T).reshape(-1).view(f"<u{len(planes)}")
    if rotate:
        words = (words >> 1) | (words << (words.dtype.itemsize * 8 - 1))
    return words


def split_zeros(words: Words) -> tuple[np.ndarray, Words]:
    """Return a mask of the nonzero words as bits (uint8 [ceil(n / 8)], highest bit first), and those words."""
    is_set = words != 0
    return np.packbits(is_set), words[is_set]


def join_zeros(bits: np.ndarray, rest: Words, count: int) -> Words:
    """Return `count` words, those whose bit is set taken from `rest`, zero elsewhere; undoes `split_zeros`."""
    words = np.zeros(count, rest.dtype)
    words[flags(bits, count)] = rest
    return words


def flags(bits: np.ndarray, count: int) -> np.ndarray:
    """Return the first `count` bits as bool [count]."""
    return np.unpackbits(bits, count=count).view(np.bool_)


def split_palette(words: Words) -> tuple[Words, np.ndarray] | None:
    """Return the distinct words, ascending, and the index of each word (uint8 [n]); None where more than 256 differ."""
    values, indices = np.unique(words, return_inverse=True)
    return (values, indices.astype(np.uint8)) if len(values) <= 256 else None
