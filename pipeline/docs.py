"""What in docs/ follows from the schemas and from what kernels said: `python -m pipeline.docs` checks it,
`--write` renews it, `surfaces SHEET…` takes other sheets (`promissory check --matrix --json`) and renews it;
`publish` also enters new versions of schemas into schemas/lock.json.

In a document such a part stands between two comments, `<!-- PART: … -->` and `<!-- end -->`; what is around
them is written by hand. Nothing of the pipeline's flow passes through here.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from pipeline.chunk import STRIDE
from pipeline.notices import NOTICES, json_schema
from pipeline.record import DERIVED
from pipeline.schema import COMMON, Field, Schema, Surface, by_name
from pipeline.sheet import Sheet, document

__all__ = ["DOCS", "FILES", "LOCK", "contract", "keep", "main", "publish", "renewed"]

DOCS: Final = Path(__file__).resolve().parent.parent / "docs"
FILES: Final = ("wire-format.md", "record.md", "notices.md", "surfaces.md")
SHEETS: Final = "sheets"
LOCK: Final = DOCS.parent / "schemas" / "lock.json"

Row = Sequence[object]


def _table(head: Row, rows: Iterable[Row]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|" + "".join(f" {cell} |" if cell != "" else " |" for cell in line) for line in lines)


def _code(text: object) -> str:
    return f"`{text}`" if text else ""


def _heads() -> str:
    """Offsets of every kind's head, counted from the beginning of its chunk."""
    anyone = next(iter(by_name().values()))
    parts = ["### The common block", _offsets(anyone, COMMON)]
    for schema in by_name().values():
        own = [field for field in schema.fields if field not in COMMON]
        parts += [f"### Kind {schema.number}: {schema.name}", _offsets(schema, own, promises=True)]
    return "\n\n".join(parts)


def _offsets(schema: Schema, fields: Iterable[Field], *, promises: bool = False) -> str:
    at = _starts(schema)
    rows: list[Row] = [
        (at[field.name], field.type, _code(field.name), "" if field.nil is None else field.nil)
        for field in fields
    ]
    if promises:
        rows += [(at[f"{p.name}_of"], "promise", _code(p.name), "") for p in schema.promises]
        rows.append((STRIDE - schema.room, f"bytes {schema.room}", _code("room"), ""))
    return _table(("offset", "type", "name", "unknown is"), rows)


def _starts(schema: Schema) -> dict[str, int]:
    """Name in the schema's dtype → offset."""
    assert schema.dtype.fields is not None
    return {name: int(place[1]) for name, place in schema.dtype.fields.items()}


def _kinds() -> str:
    """Numbers of kinds, and the bits of their promises."""
    rows = [
        (s.number, _code(s.name), s.family, ", ".join(f"{i} {p.name}" for i, p in enumerate(s.promises)))
        for s in by_name().values()
    ]
    return _table(("kind", "name", "family", "promises, in the order of their data"), rows)


def _record() -> str:
    """Every key of every kind's record."""
    fields = [_row(field, field.nil is not None) for field in COMMON]
    derived: list[Row] = [
        (
            _code(".".join(item.path)) + (" (may be absent)" if item.optional else ""),
            item.type + (" or nil" if item.nil else ""),
            _code(item.column),
            item.meaning,
        )
        for item in DERIVED
    ]
    parts = [
        "## Keys that the pipeline works out",
        _table(("key", "type", "column in a filter", "meaning"), derived),
        "## Keys that every event's head has",
        _table(HEAD, fields),
    ]
    for schema in by_name().values():
        parts += [f"## {schema.title}", *_one(schema)]
    return "\n\n".join(parts)


HEAD: Final = ("key", "type", "unit", "ECS", "OCSF", "meaning")


def _one(schema: Schema) -> list[str]:
    own = [field for field in schema.fields if field not in COMMON]
    rows = [_row(field, schema.may_be_nil(field)) for field in own]
    rows += [
        (_code(p.name), f"{p.type} or nil", f"up to `caps.{p.cap}`", _code(p.ecs), _code(p.ocsf), p.meaning)
        for p in schema.promises
    ]
    said = f"{schema.summary} ECS: {schema.ecs}. OCSF: {schema.ocsf}."
    surfaces = "\n".join(f"{number}. {_surface(s)}" for number, s in enumerate(schema.surfaces, 1))
    return [part for part in (said, surfaces, _table(HEAD, rows) if rows else "") if part]


def _surface(surface: Surface) -> str:
    name = " ".join((f"**{surface.name}**", *map(_code, (*surface.before, *surface.hooks))))
    return f"{name}: {surface.notes}" if surface.notes else name


def _row(field: Field, may_be_nil: bool) -> Row:
    kind = f"{field.type} or nil" if may_be_nil else field.type
    key = _code(".".join(field.path))
    return key, kind, field.unit, _code(field.ecs), _code(field.ocsf), field.meaning


def _surfaces() -> str:
    """What each kernel whose sheet is kept said to each event's surfaces."""
    return document(json.loads(path.read_text()) for path in sorted((DOCS / SHEETS).glob("*.json")))


JSON: Final = {"integer": "i64", "number": "number", "string": "text", "boolean": "bool", "null": "nil"}


def _notices() -> str:
    """Every key of records that are no events."""
    parts = []
    for name in NOTICES:
        schema = json_schema(name)
        parts += [f"### {name}", schema["description"], _keys(schema)]
        for title, inner in schema["$defs"].items():
            if title != "HostBlock":
                parts += [f"Each of `{title.lower()}`:", _keys(inner)]
    return "\n\n".join(parts)


def _keys(schema: Mapping[str, Any]) -> str:
    rows = [(_code(key), _typed(of), of.get("description", "")) for key, of in schema["properties"].items()]
    return _table(("key", "type", "meaning"), rows)


def _typed(of: Mapping[str, Any]) -> str:
    """A JSON Schema's type, in our words."""
    if "anyOf" in of:
        return " or ".join(map(_typed, of["anyOf"]))
    return JSON.get(of.get("type", ""), "list" if of.get("type") == "array" else "map")


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    "kinds": _kinds,
    "heads": _heads,
    "record": _record,
    "notices": _notices,
    "surfaces": _surfaces,
}
MARKED: Final = re.compile(r"(?P<begin><!-- (?P<part>\w+): [^\n]* -->\n).*?(?P<end><!-- end -->)", re.S)


def renewed(text: str) -> str:
    """A document with its made parts as the schemas would have them now."""
    return MARKED.sub(lambda m: m["begin"] + PARTS[m["part"]]() + "\n" + m["end"], text)


def contract(schema: Schema) -> dict[str, dict[str, str]]:
    """What a published version of a schema promises for ever: keys and their types."""
    return {
        "fields": {".".join(field.path): field.type for field in schema.fields},
        "promises": {promise.name: promise.type for promise in schema.promises},
    }


def publish(lock: Path = LOCK) -> None:
    """Enter versions that are new into the list of published ones; those that are in it stay as they are."""
    published = json.loads(lock.read_text())
    for schema in by_name().values():
        published.setdefault(schema.title, contract(schema))
    lock.write_text(json.dumps(published, indent=2) + "\n")


def keep(sheets: Iterable[Sheet]) -> None:
    """Keep these sheets, and none of before."""
    made = {f"{sheet['kernel']}.json": json.dumps(sheet, indent=1, ensure_ascii=False) for sheet in sheets}
    folder = DOCS / SHEETS
    for old in folder.glob("*.json"):
        old.unlink()
    folder.mkdir(exist_ok=True)
    for name, text in made.items():
        (folder / name).write_text(f"{text}\n")


def main(arguments: Sequence[str]) -> int:
    """Check, or with `--write` or `surfaces` renew; the status is 1 where a document is not current."""
    status = 0
    if arguments[:1] == ["surfaces"]:
        keep(json.loads(Path(name).read_text()) for name in arguments[1:])
    if arguments[:1] == ["publish"]:
        publish()
    for path in (DOCS / name for name in FILES):
        old = path.read_text()
        new = renewed(old)
        if new == old:
            continue
        if arguments:
            path.write_text(new)
        else:
            print(f"{path} is not current; run: python -m pipeline.docs --write", file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
