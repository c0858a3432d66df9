"""`python -m bench.samples FOLDER MODEL OUT COUNT`: write a zoo folder's calibration feeds as .npz files, one a feed.

Prints as JSON the `--state` options of a recurrent model: an input that is zero in every feed, or that the feeds lack,
belongs to the next output of as many axes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx

from bench.corpus import load_eval


def main(folder: Path, model: Path, out: Path, count: int) -> None:
    """Write the feeds and print the state options."""
    module = load_eval(folder)
    feeds = list((module.calib_feeds if hasattr(module, "calib_feeds") else module.feeds)(count))[:count]
    graph = onnx.load(model, load_external_data=False).graph
    held = {tensor.name for tensor in graph.initializer}
    inputs = {v.name: len(v.type.tensor_type.shape.dim) for v in graph.input if v.name not in held}
    outputs = [(v.name, len(v.type.tensor_type.shape.dim)) for v in graph.output][1:]
    state = []
    for name, rank in inputs.items():
        carried = all(name not in feed or not np.any(feed[name]) for feed in feeds)
        match = next((each for each in outputs if each[1] == rank), None)
        if carried and match is not None:
            outputs.remove(match)
            state.append(f"{name}={match[0]}")
    out.mkdir(parents=True)
    for index, feed in enumerate(feeds):
        known = {name: array for name, array in feed.items() if name in inputs}
        np.savez(out / f"{index:05d}.npz", **known)
    sys.stdout.write(json.dumps(state) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
