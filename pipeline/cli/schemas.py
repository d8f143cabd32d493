"""`promissory schema`: what events say, out of the one place that says it."""

from __future__ import annotations

import json
from difflib import get_close_matches

from rich.text import Text

from pipeline.errors import UserError
from pipeline.schema import Schema, by_name
from pipeline.tables import console, table

__all__ = ["find", "print_json", "print_list", "print_one"]


def find(name: str) -> Schema:
    """The schema of that name, or a UserError that names the nearest."""
    schemas = by_name()
    if name not in schemas:
        near = get_close_matches(name, schemas, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(schemas)}"
        raise UserError(f"no schema is called {name}; {hint}", status=2)
    return schemas[name]


def print_list() -> None:
    """Every kind in one line."""
    rows = (
        (s.title, s.family, ", ".join(surface.name for surface in s.surfaces), s.summary)
        for s in by_name().values()
    )
    console().print(table(["schema", "family", "surfaces", "what it says"], rows))


def print_one(schema: Schema) -> None:
    """One kind with all its fields."""
    out = console()
    out.print(Text(schema.title, "bold"), Text(schema.summary))
    for surface in schema.surfaces:
        hooks = " ".join((surface.name, *surface.before, *surface.hooks))
        out.print(Text(f"  {hooks}  {surface.notes}".rstrip()), soft_wrap=True)
    rows = [
        (".".join(field.path), field.type, field.unit, field.ecs, field.meaning) for field in schema.fields
    ]
    rows += [(promise.name, promise.type, "", promise.ecs, promise.meaning) for promise in schema.promises]
    out.print(table(["key of the record", "type", "unit", "ECS", "meaning"], rows))


def print_json(name: str) -> None:
    """The JSON Schema of the records of a kind, or of a kind of notice."""
    from pipeline import json_schema, notices

    made = notices.json_schema(name) if name in notices.NOTICES else json_schema.json_schema(find(name))
    print(json.dumps(made, indent=2, ensure_ascii=False))
