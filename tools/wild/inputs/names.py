"""Inputs of a pair of models that writes Arabic names in Latin letters."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import onnxruntime as ort

from ..catalog import Feed, Sources
from . import texts

COUNTRIES = ("EG", "SA", "IQ", "MA", "SY", "LB", "TN", "JO")
"""Of the names' bearers."""


def encoder(sources: Sources) -> Iterator[Feed]:
    """Yield "src" and "src_mask" [1, letters] of Arabic names.

    As in arabic_name_romanizer/vocab.py and inference.py: country, role, the letters, an end; the mask tells filling.
    The names are Faker's; every third is two names.
    """
    numbers = {token: i for i, token in enumerate(json.loads(sources.one("own", "*/resources/vocab.json"))["tokens"])}
    listed = texts.class_constants(sources.one("faker", "faker/providers/person/ar_AA/__init__.py"))
    given = [name for key in ("first_names_male", "first_names_female") for name in listed[key]]  # type: ignore[attr-defined]
    families = list(listed["last_names"])  # type: ignore[call-overload]
    random = sources.random
    given, families = (sources.half(texts.shuffled(sorted(set(names)))) for names in (given, families))
    for index in range(1_000_000):
        role, pool = (("GIVEN", given), ("SURNAME", families))[index % 2]
        name = pool[index // 2 % len(pool)]
        if index % 3 == 2:
            name += " " + families[random.integers(len(families))]
        tokens = [f"<{random.choice(COUNTRIES)}>", f"<ROLE_{role}>", *name, "<EOS>"]
        ids = np.array([[numbers.get(token, numbers["<UNK>"]) for token in tokens]], np.int64)
        yield {"src": ids, "src_mask": np.zeros(ids.shape, np.bool_)}


def decoder(sources: Sources) -> Iterator[Feed]:
    """Yield "prefix", "memory", "src_mask" and "hidden" at a step of the decoder in the middle of a name.

    The encoder of the package gives the memory, the decoder itself the letters before, the best one each time, as in
    beam_search of inference.py with one beam.
    """
    run_encoder, run_decoder = (
        ort.InferenceSession(sources.one("own", f"arabic_name_romanizer/resources/{part}.onnx"))
        for part in ("encoder", "decoder")
    )
    for source in encoder(sources):
        memory, mask, hidden = run_encoder.run(None, dict(source))
        prefix = np.array([[1]], np.int64)
        for _ in range(sources.random.integers(0, 8)):
            scores, hidden = run_decoder.run(
                None, {"prefix": prefix, "memory": memory, "src_mask": mask, "hidden": hidden}
            )
            best = int(scores[0].argmax())
            if best == 2:
                break
            prefix = np.append(prefix, [[best]], axis=1)
        yield {"prefix": prefix, "memory": memory, "src_mask": mask, "hidden": hidden}
