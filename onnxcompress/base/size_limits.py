"""Size limits of models: above each, something that holds the whole model in memory is not done.

All are bytes of the model as one file, weights included. The runtime takes up to three times as much to load a model,
of long lists in attributes `LIST_TIMES` that.
`wire.MAX_MESSAGE_BYTES` is another kind of limit: what the format can hold.
"""

RUN_BYTES = 256 << 20
"""Largest model that is run as a whole for a proof where another way is open: by regions, or part by part.

Chosen by judgement, so that a run takes less than 1 GB; not measured.
"""
LIST_TIMES = 4
"""A byte of a long list in an attribute counts as so many bytes of weights.

A tree ensemble of 194 MB takes 2.24 GB to load, 11.5 times its size, and 1.5 GB from then on.
"""
INSPECT_BYTES = 320 << 20
"""Largest model that `inspect` loads in the runtime and tries passes on: some 1 GB of memory.

Above `RUN_BYTES`, for `inspect` proves nothing: it holds one session and no second model to compare with.
"""
APART_BYTES = 64 << 20
"""Largest model that is cheap to hold twice.

Larger ones are serialized anew for each session, and `inspect` runs them in a process of their own, which maps their
weights from a file. Chosen by judgement; not measured.
"""
SHAPE_RUN_BYTES = 64 << 20
"""Largest model that is run only to learn the shapes that inference leaves open: a nicety is not worth more.

Chosen by judgement; not measured. Where shapes are what a job is about (`split`, the search for shortcuts), it runs
models of any size.
"""
