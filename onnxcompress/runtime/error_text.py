"""The reason that the runtime gives for a failure, without what it puts around it."""

from __future__ import annotations

import re

_NOISE = (
    re.compile(r"\[ONNXRuntimeError\] : \d+ : \w+ : "),
    re.compile(r"^Load model from .*? failed: ?"),
    # the likes of "/src/core/model.cc:256 onnxruntime::Model::Model(...) Why" and "helper.h:59 Compute Why"
    re.compile(r"\S+\.(?:cc|h|hpp):\d+ (?:\w+ (?=[A-Z]))?"),
    re.compile(r"(?:\w[\w:<>&*]* )?onnxruntime::[\w:<>~]+\(.*?\) (?=[A-Z\[])"),
)
"""What the runtime puts around its reason: error codes, and the places in its own sources."""


def reason(error: BaseException) -> str:
    """Return what the runtime says went wrong, in one line and without the file names of its own sources."""
    text = " ".join(str(error).split()) or type(error).__name__
    for noise in _NOISE:
        text = noise.sub("", text)
    return text.strip().rstrip(".")
