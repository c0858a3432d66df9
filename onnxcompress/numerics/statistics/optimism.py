"""Correction of losses on samples that fitted parameters have seen.

Parameters that were fitted on samples make the loss on these smaller than on others. Where some samples were held out,
their mean loss over that of the seen ones tells by how much, and the seen ones can be used too, scaled up:

    r = 1 + w max(0, held out / seen - 1),   w = e^2 / (e^2 + variance of e),   e = log(held out / seen)

The weight w keeps the noise of few samples from passing for optimism.
"""

from __future__ import annotations

import numpy as np

_LEAST = 4
"""Samples of both groups without which nothing is corrected. Chosen by judgement; not measured."""


def optimism(losses: np.ndarray, seen: np.ndarray) -> float:
    """Return the factor, from 1 on, by which losses on seen samples are too small.

    Args:
        losses: by sample, not negative, float [n].
        seen: True for samples that fitted parameters have seen, bool [n].
    """
    inside, outside = losses[seen], losses[~seen]
    if min(len(inside), len(outside)) < _LEAST or not (inside.mean() > 0 and outside.mean() > 0):
        return 1.0
    excess = float(np.log(outside.mean() / inside.mean()))
    if excess <= 0:
        return 1.0
    variance = sum(float(part.var(ddof=1)) / len(part) / float(part.mean()) ** 2 for part in (inside, outside))
    return 1.0 + float(np.expm1(excess)) * excess**2 / (excess**2 + variance)
