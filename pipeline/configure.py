"""Where the values of a configuration come from, and what is said when one is wrong.

flags, else environment variables (PROMISSORY_…, tables joined by __), else a TOML file, else the defaults
  → config.Config
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from pipeline.config import Config
from pipeline.errors import UserError

__all__ = ["load"]

PREFIX: Final = "PROMISSORY_"
BESIDE: Final = ("config", "debug")
"""Variables with our prefix that are no keys: where the file is, and whether to show tracebacks."""
FILE: Final = Path("/etc/promissory/promissory.toml")
"""Read when no file is named and this one is there."""


@dataclass(frozen=True)
class Source:
    """One place that sets values, and how a key is spelled there."""

    values: Mapping[str, Any]
    spell: Callable[[tuple[str, ...]], str]

    def has(self, path: tuple[str, ...]) -> bool:
        table: Any = self.values
        for key in path:
            if not isinstance(table, Mapping) or key not in table:
                return False
            table = table[key]
        return True


def load(
    flags: Mapping[str, Any] | None = None,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Read the configuration. `flags` are top-level keys as the command line has them; None means not given.

    Raises UserError, status 2: unreadable file, unknown key (naming the nearest right one), wrong value.
    """
    environ = os.environ if environ is None else environ
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    sources = (
        Source(given, lambda path: f"--{path[0]}"),
        Source(_variables(environ), lambda path: PREFIX + "__".join(path).upper().replace(".", "_")),
        _file(file or (Path(environ[f"{PREFIX}CONFIG"]) if environ.get(f"{PREFIX}CONFIG") else None)),
    )
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        merged = _merge(merged, source.values)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise UserError(_explain(error, sources), status=2) from None


def _variables(environ: Mapping[str, str]) -> dict[str, Any]:
    """PROMISSORY_RING__SIZE=… → {"ring": {"size": …}}."""
    values: dict[str, Any] = {}
    for name in sorted(environ):
        path = name.removeprefix(PREFIX).lower().split("__")
        if not name.startswith(PREFIX) or path[0] in BESIDE:
            continue
        table = values
        for key in path[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                raise UserError(f"{name}: {PREFIX}{key.upper()} is set as well; unset one of them", status=2)
        table[path[-1]] = environ[name]
    return values


def _file(path: Path | None) -> Source:
    """The file that was named, else the one of this host if there is one."""
    found = path or (FILE if FILE.exists() else None)
    if found is None:
        return Source({}, ".".join)
    try:
        values = tomllib.loads(found.read_text())
    except OSError as error:
        raise UserError(f"{found}: {error.strerror}; name a file that can be read", status=2) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{found} is no TOML: {error}", status=2) from None
    return Source(values, lambda key: f"{'.'.join(key)} in {found}")


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Table by table; what stands above wins."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


# ---- what is said when it is wrong


WANTED: Final = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "string": "a text",
    "path": "a path",
    "tuple": "a list",
    "dict": "a table",
    "model": "a table",
}


def _explain(error: ValidationError, sources: tuple[Source, ...]) -> str:
    """The first trouble in one line: the key as spelled where it was set, the value, what is wanted."""
    first = error.errors(include_url=False)[0]
    path = tuple(key for key in first["loc"] if isinstance(key, str))
    source = next((s for s in sources if s.has(path)), sources[-1])
    if first["type"] == "extra_forbidden":
        return f"unknown key {source.spell(path)}{_nearest(path, source.spell)}"
    value = "not good" if path[:1] == ("kafka",) else repr(first["input"])  # it may be a secret
    return f"{source.spell(path)} is {value}, wanted: {_wanted(first['type'], first)}"


def _wanted(kind: str, error: Mapping[str, Any]) -> str:
    if kind == "value_error":
        return str(error["ctx"]["error"])
    if kind == "literal_error":
        return f"one of {error['ctx']['expected']}"
    return WANTED.get(kind.partition("_")[0]) or str(error["msg"]).removeprefix("Input should be ")


def _keys(model: type[BaseModel] = Config, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key there is, tables included."""
    for name, field in model.model_fields.items():
        yield (*above, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, (*above, name))


def _nearest(path: tuple[str, ...], spell: Callable[[tuple[str, ...]], str]) -> str:
    """The right key that is most like a wrong one: by its whole name, else by its last part."""
    whole = {".".join(key): key for key in _keys()}
    last = {key[-1]: key for key in whole.values()}
    for name, keys in ((".".join(path), whole), (path[-1], last)):
        match = get_close_matches(name, keys, 1)
        if match:
            return f"; did you mean {spell(keys[match[0]])}?"
    return f"; the keys are {', '.join(whole)}"
