"""Weights of few bits: our recipe beside onnxruntime's quantizers, and the speed of single products."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.int8 import Row, Tool
from bench.process import ROOT, TOOLS_FOLDER
from bench.tables import Table

_PEERS = ("nearest", "nearest, int8 products", "nearest, asymmetric", "HQQ", "GPTQ", "k-quant")
"""The names that `bench.nbits` knows, which runs in the peers' environment."""
_BLOCKS = "quantize-blocks"


def tools() -> list[Tool]:
    """Return what is compared."""

    def ours(name: str, *settings: str, without_data: bool = False) -> Tool:
        options = [part for setting in settings for part in ("--set", f"{_BLOCKS}.{setting}")]
        return Tool(name=name, options=("--recipe", "int4-weights", *options), without_data=without_data)

    two, eight = "scheme=int2/block32/sym", "scheme=int8/block32/sym"
    return [
        ours("8 bits, without data", eight, without_data=True),
        ours("4 bits"),
        ours("4 bits, awq", "method=awq"),
        ours("4 bits, without data", without_data=True),
        ours("4 bits, nearest", "method=nearest"),
        *(Tool(name=f"4 bits, onnxruntime {peer}", peer=("bench.nbits", peer, "4")) for peer in _PEERS),
        ours("2, 4 and 8 bits at 3.6", "bits_per_weight=3.6"),
        ours("2 bits", two),
        ours("2 bits, awq", two, "method=awq"),
        ours("2 bits, nearest", two, "method=nearest"),
        Tool(name="2 bits, onnxruntime nearest", peer=("bench.nbits", "nearest", "2")),
    ]


def products(seconds: float) -> list[dict[str, Any]]:
    """Return the rows of `bench.decode`."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(TOOLS_FOLDER)])}
    command = [sys.executable, "-m", "bench.decode", str(seconds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def product_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Tabulate the time of single products as ratios to float32."""
    kinds = list(rows[0]["ratios"])
    out = Table("MatMul with few-bit weights, blocks of 32: time as a ratio to float32", ["layer", "rows", *kinds])
    for row in rows:
        out.add(row["layer"], row["rows"], *(row["ratios"][kind] for kind in kinds))
    return out


def as_json(rows: Sequence[Row], measured: Sequence[dict[str, Any]]) -> str:
    """Return all figures as JSON."""
    return json.dumps({"models": [asdict(row) for row in rows], "products": list(measured)}, indent=1) + "\n"
