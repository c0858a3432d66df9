"""Recognises what a folder of models is: encoder and decoder, a causal decoder, or a sentence encoder.

models, by their inputs and outputs --> roles --> Pipeline with a built-in driver
configurations beside them          --> start and end tokens, pooling
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..data.input_specs import input_specs
from ..errors import ModelError, UsageError
from ..io import model_io
from ..runtime.tensor_spec import TensorSpec
from . import caches
from .configurations import Configurations
from .decoding import CausalGeneration, CausalLoss, EncoderDecoder
from .embeddings import SentenceEncoder
from .folders import model_files
from .value import Pipeline, RunsSample

_POOLED = ("sentence_embedding", "last_hidden_state", "token_embeddings", "pooler_output")
"""Outputs of sentence encoders, in the order in which one is taken."""

Role = Literal["encoder", "decoder", "later", "merged", "plain", "causal", "sentences", "other"]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """One model of a folder."""

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.inputs]

    @property
    def has_past(self) -> bool:
        return bool(caches.past_inputs(self.names))

    @property
    def has_present(self) -> bool:
        return any(caches.present_key(name) is not None for name in self.outputs)


def recognise(folder: Path, *, metric: str | None = None, models: Sequence[Path] = ()) -> Pipeline:
    """Return the pipeline that a folder holds.

    Args:
        folder: with models and what belongs to them.
        metric: that the user wants: what a causal decoder does for a sample depends on it.
        models: those that are parts; empty: what is found.

    Raises:
        UsageError: nothing is built in for the metric.
        ModelError: it holds no model, none of the known layouts, or one that can't be read.
    """
    if not folder.is_dir():
        raise ModelError("is no folder", where=str(folder), hint="Give a folder with several models")
    paths = sorted(models) or model_files(folder)
    if not paths:
        raise ModelError("holds no .onnx file", where=str(folder), hint="Give a folder with the models of a pipeline")
    found = [_look(path) for path in paths]
    settings = Configurations(folder)
    named = settings.decoder_file()
    if named is not None and not any(each.path.name == named for each in found):
        raise ModelError(f"genai_config.json names {named!r}, which is not there", where=str(folder))
    for build in (_encoder_decoder, _causal, _sentences):
        pipeline = build(folder, found, settings, metric)
        if pipeline is not None:
            return pipeline
    listed = ", ".join(path.name for path in paths)
    raise ModelError(
        f"{listed}: neither encoder and decoder, nor a causal decoder, nor a sentence encoder",
        where=str(folder),
        hint="Give --pipeline module:function that returns an onnxcompress.Pipeline",
    )


def _look(path: Path) -> _Found:
    model = model_io.load(path)
    outputs = tuple(value.name or "" for value in model.graph.outputs)
    return _Found(path=path, inputs=tuple(input_specs(model)), outputs=outputs)


def _encoder_decoder(
    folder: Path, found: Sequence[_Found], settings: Configurations, metric: str | None
) -> Pipeline | None:
    encoder = next((e for e in found if _encodes(e) and any(_takes(d, e) for d in found if d is not e)), None)
    if encoder is None:
        return None
    takers = [each for each in found if each is not encoder and _takes(each, encoder)]
    merged = [each for each in takers if caches.is_merged(each.names)]
    begins = [each for each in takers if each.has_present and not each.has_past]
    plain = [each for each in takers if not each.has_present and not each.has_past]
    goes_on = [e for e in found if e is not encoder and e.has_past and not caches.is_merged(e.names)]
    starters = begins if begins and goes_on else merged or begins or plain
    if not starters:
        return None
    first = starters[0]
    later = goes_on[0] if begins and goes_on else first if first.has_past else None
    if metric == "perplexity":
        raise UsageError("perplexity of an encoder and decoder has no built-in driver", hint="Give --pipeline")
    roles = {"encoder": encoder, "decoder": first}
    if later is not None and later is not first:
        roles["decoder_with_past"] = later
    last = None if later is None else "decoder" if later is first else "decoder_with_past"
    run = EncoderDecoder(encoder="encoder", decoder="decoder", later=last, generation=settings.generation())
    return _pipeline(folder, found, roles, run, "wer", inputs=encoder.inputs)


def _causal(folder: Path, found: Sequence[_Found], settings: Configurations, metric: str | None) -> Pipeline | None:
    named = settings.decoder_file()
    decoders = [e for e in found if e.path.name == named] if named else [e for e in found if "logits" in e.outputs]
    decoders = [each for each in decoders if caches.token_input(each.inputs) is not None]
    if len(decoders) != 1:
        return None
    only = decoders[0]
    has_cache = bool(caches.cache_links(only.names, only.outputs))
    run: RunsSample = CausalLoss(decoder="decoder", has_cache=has_cache)
    if metric not in (None, "perplexity"):
        generation = settings.generation(needs_start=False)
        run = CausalGeneration(decoder="decoder", has_cache=has_cache, generation=generation)
    tokens = caches.token_input(only.inputs)
    assert tokens is not None
    return _pipeline(folder, found, {"decoder": only}, run, "perplexity", inputs=(tokens,))


def _sentences(folder: Path, found: Sequence[_Found], settings: Configurations, _: str | None) -> Pipeline | None:
    encoders = [each for each in found if set(_POOLED) & set(each.outputs)]
    if len(encoders) != 1:
        return None
    output = next(name for name in _POOLED if name in encoders[0].outputs)
    run = SentenceEncoder(encoder="encoder", output=output, pooling=settings.pooling())
    return _pipeline(folder, found, {"encoder": encoders[0]}, run, "spearman", inputs=encoders[0].inputs)


def _pipeline(
    folder: Path,
    found: Sequence[_Found],
    roles: dict[str, _Found],
    run: RunsSample,
    metric: str,
    *,
    inputs: tuple[TensorSpec, ...],
) -> Pipeline:
    used = {each.path for each in roles.values()}
    left = [str(each.path.relative_to(folder)) for each in found if each.path not in used]
    notes = [f"{', '.join(left)}: copied as they are, since the built-in driver runs without them"] if left else []
    parts = {name: each.path for name, each in roles.items()}
    return Pipeline(parts=parts, run=run, metric=metric, folder=folder, inputs=inputs, notes=tuple(notes))


def _encodes(each: _Found) -> bool:
    return not each.has_past and not each.has_present and "logits" not in each.outputs


def _takes(decoder: _Found, encoder: _Found) -> bool:
    """Say whether a model takes tokens and what an encoder gives."""
    tokens = caches.token_input(decoder.inputs)
    if tokens is None:
        return False
    shared = {name.removesuffix("_out") for name in encoder.outputs} | set(encoder.outputs)
    names = [spec.name for spec in decoder.inputs]
    return bool(shared & set(names)) or any(caches.takes_states(name) for name in names)
