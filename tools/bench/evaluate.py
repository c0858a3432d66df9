"""`python -m bench.evaluate FOLDER MODEL`: print as JSON what a zoo folder's `eval.py` finds of a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.corpus import load_eval

if __name__ == "__main__":
    metrics = load_eval(Path(sys.argv[1])).evaluate(sys.argv[2])
    sys.stdout.write(json.dumps({k: v for k, v in metrics.items() if isinstance(v, (int, float))}) + "\n")
