"""How a run begins: whether the whole model is run or its regions, and what rewrites are proved on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import onnx_ir as ir

from ..base.size_limits import RUN_BYTES
from ..core import Feed
from ..data import synthetic
from ..data.evaluation_set import Evaluation
from ..errors import ModelError
from ..graph import query
from ..io.wire import MAX_MESSAGE_BYTES
from ..runtime import session as runtime
from ..runtime.loaded_model import LoadedModel

Verify = Literal["auto", "full", "regions"]

_PROOF_FEEDS = 2
"""Synthetic feeds of a proof: two sizes of every dynamic dimension."""


def by_regions(model: LoadedModel, verify: Verify) -> bool:
    """Say whether a model is proved by regions from the start: it was asked for, or the model is large."""
    return verify == "regions" or (verify == "auto" and model.size_bytes > RUN_BYTES)


def open_whole(model: LoadedModel, verify: Verify) -> runtime.Session | None:
    """Load the whole model in the runtime; None where operators that it doesn't know leave regions as the only way.

    Raises:
        ModelError: the runtime can't load it, for another reason or although `verify` is "full".
    """
    if model.size_bytes > MAX_MESSAGE_BYTES:
        raise ModelError(
            f"the model has {model.size_bytes:,} bytes; over 2 GiB it can't be run as one piece",
            where=model.path or "",
            hint="Give --verify regions",
        )
    try:
        return model.plain
    except ModelError:
        known = {*query.STANDARD_DOMAINS, "ai.onnx.ml", "com.microsoft"}
        functions = model.model.functions
        if verify == "full" or all(
            node.domain in known or node.op_identifier() in functions for node in query.nodes(model.model)
        ):
            raise
        return None


def proof_feeds(
    model: ir.Model, session: runtime.Session | None, judged: Evaluation | None, *, seed: int
) -> tuple[Sequence[Feed], Sequence[Mapping[str, Any]] | None]:
    """Return feeds to prove rewrites on, and the outputs where known: made-up ones, or the user's where none runs.

    Without a session only their shapes, and the values of the model's inputs, are of use: the user's come first.
    """
    if session is None:
        return judged.feeds[:1] if judged else synthetic.synthetic_feeds(model, seed=seed, sizes=(8,)), None
    try:
        tried = synthetic.tried_feeds(model, session, seed=seed, count=_PROOF_FEEDS)
        return [each.feed for each in tried], [each.outputs for each in tried]
    except ModelError:
        if judged is None:
            raise
        return judged.feeds[:_PROOF_FEEDS], None
