"""Recipes: a named list of passes with their options, read from TOML and changed by `--set`."""

from __future__ import annotations

import dataclasses
import difflib
import importlib.resources
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic

from . import passes
from .core import Need, Pass
from .errors import UsageError

_FOLDER = importlib.resources.files(__package__) / "recipes"


class _PassEntry(pydantic.BaseModel):
    """One `[[passes]]` table: the pass's name, all other keys are its options."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True)
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class _RecipeFile(pydantic.BaseModel):
    """The content of a recipe file."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)
    description: str = ""
    max_drop: float | None = pydantic.Field(default=None, ge=0)
    passes: list[_PassEntry]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A list of passes, validated and ready to run.

    `max_drop` is the recipe's own limit, within which it backs off (None: it has none).
    """

    name: str
    description: str
    passes: tuple[Pass, ...]
    max_drop: float | None = None

    def __post_init__(self) -> None:
        """Refuse names where passes belong."""
        for one in self.passes:
            if isinstance(one, str):
                passes.pass_class(one)  # names the nearest when there is none
                raise UsageError(f"recipe {self.name!r} has the name {one!r} where a pass belongs", hint=_BUILD)

    @classmethod
    def load(cls, name: str | Path | Recipe, settings: Iterable[str] = ()) -> Recipe:
        """Read a shipped recipe by name, or a TOML file by path, and apply `PASS.FIELD=VALUE` settings.

        Raises:
            UsageError: no such recipe, malformed TOML, unknown pass or field, value out of range, or a field
                in a file that only the command line may set.
        """
        if isinstance(name, Recipe):
            return name.with_settings(settings)
        if not isinstance(name, str | Path):
            raise UsageError(
                f"a {type(name).__name__} is no recipe", hint=f"Give a name, a .toml file or a Recipe. {_BUILD}"
            )
        text, where, title = _text(name)
        content = _parse(text, where)
        built = tuple(passes.build(entry.name, entry.options) for entry in content.passes)
        for one in built:
            _refuse_code(one, where)
        return cls(title, content.description, built, content.max_drop).with_settings(settings)

    def with_settings(self, settings: Iterable[str]) -> Recipe:
        """Return the recipe with `PASS.FIELD=VALUE` texts applied, each to all passes of that name, held ones included.

        Raises:
            UsageError: a text has another form, the recipe has no such pass, or field or value are wrong.
        """
        wanted = _wanted(settings)
        own = [held.name for one in self.passes for held in passes.walk(one)]
        for pass_name in wanted:
            if pass_name not in own:
                raise UsageError(
                    f"recipe {self.name!r} has no pass {pass_name!r}", hint=f"It has: {', '.join(dict.fromkeys(own))}"
                )
        return dataclasses.replace(self, passes=tuple(_with_options(one, wanted) for one in self.passes))

    @property
    def lossless(self) -> bool:
        """True when no pass changes what the model computes beyond float tolerance."""
        return all(p.lossless for p in self.active)

    @property
    def active(self) -> tuple[Pass, ...]:
        """The passes without those that wait for an option that only the command line gives."""
        return tuple(p for p in self.passes if not _is_idle(p))

    @property
    def needs_data(self) -> bool:
        """True when a pass can't work without feeds from the user."""
        return any(Need.DATA in p.needs for p in self.passes)

    @property
    def uses_data(self) -> bool:
        """True when a pass works with feeds from the user, be it that it can do without."""
        return any({Need.DATA, Need.DATA_IF_GIVEN} & p.needs for p in self.passes)

    def as_json(self) -> dict[str, Any]:
        """Return the resolved recipe: every pass with every option that is set; of held passes the changed ones."""
        return {"name": self.name, "passes": [{"name": one.name, **passes.shown_options(one)} for one in self.passes]}


def shipped() -> dict[str, str]:
    """Return the recipes that come with the package: name -> TOML text, sorted by name."""
    files = sorted((f for f in _FOLDER.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): f.read_text(encoding="utf-8") for f in files}


def check(name: str, settings: Iterable[str] = ()) -> None:
    """Find what is wrong with a recipe's name or file, or with names in settings, before anything heavy is imported.

    Raises:
        UsageError: no such recipe, malformed TOML, unknown pass, or a setting of another form. Options and their values
            are checked by `Recipe.load`.
    """
    text, where, _ = _text(name)
    for entry in _parse(text, where).passes:
        passes.place_of(entry.name)
    _wanted(settings)


def _text(name: str | Path) -> tuple[str, str, str]:
    """Return the TOML text of a recipe, where it is from, and its title.

    Raises:
        UsageError: there is no such recipe.
    """
    path = Path(name)
    own = _FOLDER / f"{name}.toml"
    if path.name == str(name) and own.is_file():
        return own.read_text(encoding="utf-8"), f"recipe {name}", str(name)
    if path.suffix == ".toml":
        return _read(path), str(path), path.stem
    close = difflib.get_close_matches(str(name), shipped(), n=1)
    known = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(shipped())}, or a .toml file"
    if str(name) in passes.available():
        known = f'It is a pass: a .toml file with [[passes]] and name = "{name}" runs it'
    raise UsageError(f"unknown recipe {str(name)!r}", hint=known)


def _wanted(settings: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return pass -> field -> value of PASS.FIELD=VALUE texts.

    Raises:
        UsageError: a text has another form, or there is no such pass.
    """
    wanted: dict[str, dict[str, Any]] = {}
    for text in settings:
        place, equals, value = text.partition("=")
        pass_name, dot, field = place.strip().partition(".")
        if not (equals and dot and field):
            raise UsageError(f"--set {text!r} is not of the form PASS.FIELD=VALUE")
        passes.place_of(pass_name)  # names the nearest when there is none
        wanted.setdefault(pass_name, {})[field] = _value(value.strip())
    return wanted


def _with_options(one: Pass, wanted: Mapping[str, Mapping[str, Any]]) -> Pass:
    """Return a pass with the options that are wanted of it and of the passes that it holds."""
    options: dict[str, Any] = {
        key: _with_options(held, wanted) for key, held in passes.options_of(one).items() if isinstance(held, Pass)
    }
    options |= wanted.get(one.name, {})
    return passes.changed(one, options) if options else one


_BUILD = "One of your own: Recipe(name, description, (Normalize(), ...)) with the classes of onnxcompress.passes"


def _is_idle(one: Pass) -> bool:
    """Say whether a pass waits for an option that only the command line gives: without it, it does nothing."""
    wanted: frozenset[str] = getattr(one, "command_line_only", frozenset())
    return bool(wanted) and all(getattr(one, name) is None for name in wanted)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # editors on Windows put a mark in front
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"can't read the recipe: {reason}", where=str(path)) from error


def _parse(text: str, where: str) -> _RecipeFile:
    try:
        return _RecipeFile.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"the recipe is not TOML: {error}", where=where) from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        if first["loc"][0] == "passes" and isinstance(first["input"], str) and len(first["loc"]) == 2:
            text = f"passes holds the name {first['input']!r} where a table belongs"
            raise UsageError(text, where=where, hint=f'Write it as [[passes]] and name = "{first["input"]}"') from error
        if first["type"] == "extra_forbidden":
            close = difflib.get_close_matches(field, _RecipeFile.model_fields, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(_RecipeFile.model_fields)}"
            raise UsageError(f"unknown key {field!r}", where=where, hint=hint) from error
        raise UsageError(f"{field}: {first['msg']}", where=where) from error


def _refuse_code(one: Pass, where: str) -> None:
    """Refuse options by which a file could make us run code, those of held passes included."""
    for held in passes.walk(one):
        for field in sorted(getattr(held, "command_line_only", ())):
            if getattr(held, field) is not None:
                raise UsageError(
                    f"{held.name}.{field} names code to run, which a recipe file may not do",
                    where=where,
                    hint=f"Give it on the command line: --set {held.name}.{field}=...",
                )


def _value(text: str) -> Any:
    """Read a value as TOML would (0.5, true, [1, 2]); anything else is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
