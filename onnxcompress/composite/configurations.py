"""Settings in the configurations beside models: tokens that begin and end, pooling, and the files that are named."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import ModelError, UsageError
from .decoding import Generation
from .embeddings import Pooling

_MOST_NEW = 128
"""New tokens at most where no configuration says fewer: a damaged model that never ends costs no more. By judgement."""
GENAI = "genai_config.json"
_FILES = ("generation_config.json", GENAI, "config.json")
"""In the order in which a setting is taken."""


class Configurations:
    """The configurations of a folder; each is read when it is first asked for.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def decoder_file(self) -> str | None:
        """Return the model that genai_config.json names, None where there is no such file.

        Raises:
            ModelError: it is no JSON.
        """
        found = self._read(GENAI).get("model")
        decoder = found.get("decoder") if isinstance(found, dict) else None
        name = decoder.get("filename") if isinstance(decoder, dict) else None
        return name if isinstance(name, str) else None

    def pooling(self) -> Pooling:
        """Return how a sentence encoder is pooled: what 1_Pooling/config.json says, else the mean."""
        found = self._read("1_Pooling/config.json")
        return "cls" if found.get("pooling_mode_cls_token") is True else "mean"

    def generation(self, *, needs_start: bool = True) -> Generation:
        """Return how tokens are generated.

        Raises:
            UsageError: nothing says which token begins or ends a sequence.
        """
        ends = _tokens(self._setting("eos_token_id"))
        start = _tokens(self._setting("decoder_start_token_id", "bos_token_id"))
        forced = self._setting("forced_decoder_ids")
        pairs = sorted(
            pair for pair in forced or () if isinstance(pair, list) and len(pair) == 2 and pair[1] is not None
        )
        if not ends or (needs_start and not start):
            wanted = "eos_token_id" + (" and decoder_start_token_id" if needs_start else "")
            raise UsageError(
                f"no configuration says {wanted}",
                where=str(self._folder),
                hint="Put a generation_config.json with them there, or give --pipeline",
            )
        longest = self._setting("max_new_tokens", "max_length")
        most = min(longest, _MOST_NEW) if isinstance(longest, int) and longest > 0 else _MOST_NEW
        return Generation(
            start=(*start[:1], *(int(token) for _, token in pairs)),
            ends=frozenset(ends),
            most=most,
            suppressed=_tokens(self._setting("suppress_tokens")),
            not_first=_tokens(self._setting("begin_suppress_tokens")),
        )

    def _setting(self, *names: str) -> Any:
        for name in names:
            for file in _FILES:
                found = self._read(file)
                inner = [found.get(key) for key in ("model", "search")] if file == GENAI else []
                for each in (found, *(one for one in inner if isinstance(one, dict))):
                    if each.get(name) is not None:
                        return each[name]
        return None

    def _read(self, name: str) -> dict[str, Any]:
        path = self._folder / name
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"can't be read ({' '.join(str(error).split())})", where=str(path)) from error
        return found if isinstance(found, dict) else {}


def _tokens(value: Any) -> tuple[int, ...]:
    values: Iterable[Any] = value if isinstance(value, list) else [value]
    return tuple(each for each in values if isinstance(each, int) and not isinstance(each, bool) and each >= 0)
