"""Built-in drivers: greedy decoding with and without a cache, and the loss of a language model on texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DataError, ModelError
from ..quality.task.values import token_losses
from .caches import Step, present_key, score_output, step_feed, token_input
from .sessions import outputs_of

_SINGLE_STEPS = 8
"""Tokens at the end of a text that are fed one by one, so that a decoder with a cache runs as it is used: a prompt,
then steps. Chosen by judgement; not measured."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Settings of greedy decoding.

    Args:
        start: tokens that every sequence begins with.
        ends: tokens that end it.
        most: new tokens at most.
        suppressed: tokens that are never chosen.
        not_first: tokens that are not chosen as the first new one.
    """

    start: tuple[int, ...]
    ends: frozenset[int]
    most: int
    suppressed: tuple[int, ...] = ()
    not_first: tuple[int, ...] = ()


class _DecodedSequence:
    """One sequence: the tokens so far and the cache of them.

    Args:
        first: decodes what has no cache yet.
        later: continues with one; None where all tokens are fed anew at each step.
        given: values by name, for inputs that are the same at each step.
        states: of the encoder.
    """

    def __init__(self, first: Any, later: Any, given: Mapping[str, Any], states: np.ndarray | None) -> None:
        self._first, self._later, self._given, self._states = first, later, given, states
        self._cache: dict[str, np.ndarray] = {}
        self._tokens = np.zeros((1, 0), np.int64)

    def scores(self, tokens: Sequence[int]) -> np.ndarray:
        """Feed further tokens and return their scores, float [n, classes], the last row's alone where that is all."""
        new = np.asarray(tokens, np.int64).reshape(1, -1)
        past = self._tokens.shape[1]
        self._tokens = np.concatenate([self._tokens, new], axis=1)
        is_later = self._later is not None and bool(self._cache)
        session = self._later if is_later else self._first
        fed, known = (new, past) if is_later else (self._tokens, 0)
        step = Step(tokens=fed, past=known, cache=self._cache, given=self._given, states=self._states)
        found = outputs_of(session, step_feed(session.get_inputs(), step))
        for name, value in found.items():
            key = present_key(name)
            if key is not None and value.size:  # a branch that goes on gives nothing for what stays
                self._cache[key] = value
        scored = score_output(session.get_outputs())
        if scored is None:
            raise ModelError("no output of the decoder scores tokens", hint="Give --pipeline module:function")
        scores = np.asarray(found[scored], np.float32)
        scores = scores[0] if scores.ndim == 3 else scores
        return scores[-new.shape[1] :]


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder:
    """Greedy decoding of what an encoder has found; the prediction is the new tokens, int64 [n].

    Args:
        encoder: name of the part.
        decoder: that begins.
        later: that continues with a cache: another part, `decoder` itself, or None where there is no cache.
    """

    encoder: str
    decoder: str
    later: str | None
    generation: Generation

    def __call__(self, sessions: Mapping[str, Any], sample: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the tokens for one sample: the encoder's inputs by name."""
        encoder = sessions[self.encoder]
        wanted = {spec.name for spec in encoder.get_inputs()}
        found = outputs_of(encoder, {name: value for name, value in sample.items() if name in wanted})
        states = next((value for value in found.values() if value.ndim == 3), None)
        given = {**sample, **found}
        later = None if self.later is None else sessions[self.later]
        return _generated(_DecodedSequence(sessions[self.decoder], later, given, states), (), self.generation)


@dataclass(frozen=True, kw_only=True)
class CausalGeneration:
    """Greedy continuation of a prompt; the prediction is the new tokens, int64 [n]."""

    decoder: str
    has_cache: bool
    generation: Generation

    def __call__(self, sessions: Mapping[str, Any], sample: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the tokens that follow those of one sample."""
        session = sessions[self.decoder]
        decoder = _DecodedSequence(session, session if self.has_cache else None, {}, None)
        return _generated(decoder, sequence_of(session, sample), self.generation)


@dataclass(frozen=True, kw_only=True)
class CausalLoss:
    """Loss of a language model on a text; the prediction is (sum of -ln p, tokens), float64 [2].

    With a cache the text is fed as a prompt and the last tokens one by one; the probabilities are the same.
    """

    decoder: str
    has_cache: bool

    def __call__(self, sessions: Mapping[str, Any], sample: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the loss on one sample: tokens [1, n]."""
        session = sessions[self.decoder]
        tokens = sequence_of(session, sample)
        if len(tokens) < 2:
            raise DataError("a text needs two tokens at least")
        single = min(_SINGLE_STEPS, (len(tokens) - 1) // 2) if self.has_cache else 0
        decoder = _DecodedSequence(session, session if self.has_cache else None, {}, None)
        cut = len(tokens) - 1 - single
        rows = [decoder.scores(tokens[:cut])]
        rows += [decoder.scores([token]) for token in tokens[cut:-1]]
        scores = np.concatenate(rows)
        if len(scores) != len(tokens) - 1:
            raise ModelError("the decoder scores the last token alone", hint="Give --pipeline module:function")
        return token_losses(scores, np.asarray(tokens[1:], np.int64))


def sequence_of(session: Any, sample: Mapping[str, np.ndarray]) -> list[int]:
    """Return the tokens of a sample: the array named after the decoder's input; negative ones are padding.

    Raises:
        DataError: there is none.
    """
    spec = token_input(session.get_inputs())
    name = "" if spec is None else spec.name
    if name not in sample:
        raise DataError(f"a sample holds {', '.join(sample) or 'nothing'}, and tokens {name!r} are needed")
    return [int(each) for each in np.asarray(sample[name]).ravel() if each >= 0]


def _generated(decoder: _DecodedSequence, prompt: Sequence[int], how: Generation) -> np.ndarray:
    fed = [*(prompt or ()), *(() if prompt else how.start)]
    found: list[int] = []
    while len(found) < how.most:
        scores = decoder.scores(fed)[-1].copy()
        blocked = [*how.suppressed, *(how.not_first if not found else ())]
        scores[[each for each in blocked if each < len(scores)]] = -np.inf
        token = int(np.argmax(scores))
        if token in how.ends:
            break
        found.append(token)
        fed = [token]
    return np.array(found, np.int64)
