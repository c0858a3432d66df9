"""Inputs of a decoder by what they mean: tokens, masks, positions, and the cache that each step passes on.

    input past_key_values.0.key <- output present.0.key of the step before; at first it is empty (zero length)

Names are those that exporters use; what can't be told is an error that names the input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ModelError
from ..runtime.tensor_spec import TensorSpec

_PAST = re.compile(r"^(?:past_key_values?|past|cache_in|cache)[._]*", re.IGNORECASE)
_PRESENT = re.compile(r"^(?:present_key_values?|present|new_past_key_values?|cache_out|new_cache)[._]*", re.IGNORECASE)
_NO_TOKENS = re.compile(r"mask|position|past|cache|type_id|num_logits", re.IGNORECASE)
_BRANCH = "use_cache_branch"
_SIDE = re.compile(r"_(?:in|out)$")
_STATES = re.compile(r"encoder_(?:hidden_states|outputs?)|memory|^enc$", re.IGNORECASE)
"""Names of a decoder's input that takes what the encoder found."""


def cache_links(inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, str]:
    """Return input -> output of the step before, by the names of both."""
    found = {_PRESENT.sub("", name): name for name in outputs if _PRESENT.match(name)}
    return {
        name: found[suffix]
        for name in inputs
        if _PAST.match(name) and name != _BRANCH and (suffix := _PAST.sub("", name)) in found
    }


def past_inputs(inputs: Sequence[str]) -> list[str]:
    """Return the inputs that take a cache."""
    return [name for name in inputs if _PAST.match(name) and name not in (_BRANCH, "cache_position")]


def present_key(output: str) -> str | None:
    """Return what a cache's output and input have in common, None for another output."""
    return _PRESENT.sub("", output) if _PRESENT.match(output) else None


def past_key(name: str) -> str:
    """Return the same of an input."""
    return _PAST.sub("", name)


def takes_states(name: str) -> bool:
    """Say whether an input is one that takes what an encoder found, by its name."""
    return _STATES.search(name) is not None


def is_merged(inputs: Sequence[str]) -> bool:
    """Say whether one file has both branches of a decoder, without and with a cache, in an If."""
    return _BRANCH in inputs


def token_input(specs: Sequence[TensorSpec]) -> TensorSpec | None:
    """Return the input that takes tokens: the first of integers [batch, length] that is no mask and no position."""
    for spec in specs:
        is_whole = spec.dtype is not None and spec.dtype.kind == "i" and len(spec.shape) == 2
        if is_whole and not _NO_TOKENS.search(spec.name):
            return spec
    return None


def score_output(specs: Sequence[TensorSpec]) -> str | None:
    """Return the output that scores tokens: `logits`, or the first of floats [..., classes] that is no cache."""
    names = [spec.name for spec in specs]
    if "logits" in names:
        return "logits"
    floats = [s for s in specs if s.dtype is not None and s.dtype.kind == "f" and present_key(s.name) is None]
    return next((spec.name for spec in floats if len(spec.shape) in (2, 3)), None)


def empty(spec: TensorSpec) -> np.ndarray:
    """Return a cache of nothing yet: one sequence, open axes of length zero, others as declared.

    Raises:
        ModelError: it is not of numbers.
    """
    if spec.dtype is None:
        raise ModelError(f"input {spec} is a cache of a type that can't be made", hint="Give --pipeline")
    shape = [size if isinstance(size, int) else int(axis == 0) for axis, size in enumerate(spec.shape)]
    return np.zeros(shape, spec.dtype)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Values that one step of a decoder is given.

    Args:
        tokens: int64 [1, n], those that are not in the cache.
        past: tokens that are.
        cache: by what outputs and inputs of a cache have in common (`past_key`).
        given: values by the names of encoder inputs and outputs.
        states: what the encoder found, float [1, length, width]; None without an encoder.
    """

    tokens: np.ndarray
    past: int
    cache: Mapping[str, np.ndarray]
    given: Mapping[str, np.ndarray]
    states: np.ndarray | None = None


def step_feed(specs: Sequence[TensorSpec], step: Step) -> dict[str, Any]:
    """Return the feed of a decoder for one step.

    Raises:
        ModelError: an input is none that is known.
    """
    wanted = token_input(specs)
    return {spec.name: _value(spec, step, is_tokens=spec is wanted) for spec in specs}


def _value(spec: TensorSpec, step: Step, *, is_tokens: bool) -> Any:
    name, count = spec.name, step.tokens.shape[1]
    whole = spec.dtype if spec.dtype is not None else np.dtype(np.int64)
    if is_tokens:
        return step.tokens.astype(whole)
    if name == _BRANCH:
        return np.full([1] * max(1, len(spec.shape)), bool(step.cache))
    if name in ("position_ids", "cache_position", "positions"):
        found = np.arange(step.past, step.past + count, dtype=whole)
        return found if len(spec.shape) == 1 else found[None]
    if "mask" in name and "encoder" not in name and "src" not in name:
        return np.ones((1, step.past + count), whole)
    if name.startswith("num_logits"):
        return np.asarray(0, whole)
    if past_inputs([name]):
        known = step.cache.get(past_key(name))
        return empty(spec) if known is None else known
    return _of_encoder(spec, step)


def _of_encoder(spec: TensorSpec, step: Step) -> Any:
    bare = _SIDE.sub("", spec.name)
    for key in (spec.name, spec.name.removeprefix("encoder_"), f"{bare}_out", bare):
        if key in step.given:
            found = step.given[key]
            return found if spec.dtype is None else found.astype(spec.dtype, copy=False)
    if step.states is not None and _STATES.search(spec.name):
        return step.states
    if step.states is not None and "mask" in spec.name:
        return np.ones(step.states.shape[:2], spec.dtype if spec.dtype is not None else np.int64)
    raise ModelError(
        f"input {spec} of a decoder is none that the built-in driver knows", hint="Give --pipeline module:function"
    )
