"""`python -m bench.race SAMPLES MODEL OTHER...`: print as JSON each other's time as a ratio to the model's, in pairs.

The largest feed is run, one thread; inputs that the feeds lack are zeros.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from onnxcompress.errors import ModelError
from onnxcompress.runtime import session as runtime
from onnxcompress.runtime.latency import race


def main(samples: Path, model: Path, others: list[Path]) -> None:
    """Race each of the others against the model."""
    feeds: list[dict[str, Any]] = [dict(np.load(path)) for path in sorted(samples.glob("*.npz"))]
    feed = max(feeds, key=lambda each: sum(int(np.size(array)) for array in each.values()))
    session = runtime.open_session(model, optimize=True)
    for spec in session.inputs:
        if spec.name not in feed:
            feed[spec.name] = np.zeros([d if isinstance(d, int) else 1 for d in spec.shape], spec.dtype)
    ratios: list[float | None] = []
    for other in others:
        try:
            ratios.append(race(session, runtime.open_session(other, optimize=True), feed).ratio)
        except ModelError:
            ratios.append(None)
    sys.stdout.write(json.dumps(ratios) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(each) for each in sys.argv[3:]])
