"""The process that works on models for `sweep.py`: one JSON line in, one out."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path

import sweep


def main() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    print("{}", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        recorded = Path(request["recorded"]) if request["recorded"] else None
        try:
            found = sweep.judge(Path(request["model"]), recorded, request["recipe"])
        except Exception as error:  # noqa: BLE001 - a bug is a crash to the sweep
            found = {"outcome": "crashed", "detail": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
