"""The pages of docs/ are current: what is made of the schemas, what they point to, the order of imports."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from pipeline import docs
from pipeline.kernel.manifest import Hook
from pipeline.schema import by_name
from pipeline.sheet import sheet

HOUSE = docs.DOCS.parent
SAID = ("event", "schema", "surface", "hooks", "fields", "without", "blind", "cost")
PAGES = sorted(docs.DOCS.glob("*.md"))


@pytest.mark.parametrize("name", docs.FILES)
def test_made_parts_are_current(name: str) -> None:
    text = (docs.DOCS / name).read_text()
    assert docs.MARKED.search(text)
    assert docs.renewed(text) == text, "run: python -m pipeline.docs --write"


def test_a_stale_document_is_found_and_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "DOCS", tmp_path)
    for name in docs.FILES:
        (tmp_path / name).write_text("before\n<!-- kinds: made -->\nout of date\n<!-- end -->\nafter\n")
    assert docs.main([]) == 1
    assert docs.main(["--write"]) == 0
    assert docs.main([]) == 0
    text = (tmp_path / docs.FILES[0]).read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| `exec_failed` |" in text
    assert "out of date" not in text


def test_other_sheets_replace_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "<!-- surfaces: made -->\n<!-- end -->\n"
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(docs, "DOCS", tmp_path / "docs")
    for name in docs.FILES:
        (tmp_path / "docs" / name).write_text(page)
    for kernel in ("6.1.0-9-amd64", "7.3.4+deb13-amd64"):
        found = sheet([Hook("fork", "tracepoint", {}, True, "proven: …")], kernel, "2026-11-23")
        (tmp_path / kernel).write_text(json.dumps(found))
        assert docs.main(["surfaces", str(tmp_path / kernel)]) == 0
        assert [path.stem for path in (tmp_path / "docs" / docs.SHEETS).iterdir()] == [kernel]
        assert f"| event | {kernel} |" in (tmp_path / "docs" / "surfaces.md").read_text()
    assert docs.main([]) == 0


def test_the_sheets_are_of_these_schemas() -> None:
    """Otherwise kernels have to be asked again: make vm-test, promissory check --matrix --json."""
    hooks = [Hook(s.name, o.name, {}, True, "") for s in by_name().values() for o in s.surfaces]
    now = [{key: row[key] for key in SAID} for row in sheet(hooks)["rows"]]
    sheets = [json.loads(path.read_text()) for path in (docs.DOCS / docs.SHEETS).glob("*.json")]
    assert sheets
    for made in sheets:
        assert [{key: row[key] for key in SAID} for row in made["rows"]] == now, made["kernel"]


def test_record_names_every_key() -> None:
    text = (docs.DOCS / "record.md").read_text()
    for schema in by_name().values():
        assert f"## {schema.title}" in text
        for key in (*(".".join(f.path) for f in schema.fields), *(p.name for p in schema.promises)):
            assert f"| `{key}` |" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page: Path) -> None:
    text = page.read_text()
    for path, test in re.findall(r"`((?:pipeline|bpf|tests|config)/[\w./-]+\.\w+)(?:::(\w+))?`", text):
        assert (HOUSE / path).exists(), path
        assert not test or f"def {test}(" in (HOUSE / path).read_text(), test
    for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
        other = page.parent / target if target else page
        assert other.exists(), target
        assert not anchor or anchor in _anchors(other), anchor


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_imports_go_downwards() -> None:
    """As the page on architecture lists them, and without circles."""
    text = (docs.DOCS / "architecture.md").read_text()
    section = text.partition("## Import order")[2].partition("\n## ")[0]
    rows = [line.split("  ")[2].split(", ") for line in section.splitlines() if line.startswith("    ")]
    place = {name: number for number, row in enumerate(rows) for name in row}
    graph: dict[str, set[str]] = {}
    for path in (HOUSE / "pipeline").rglob("*.py"):
        module = ".".join(path.relative_to(HOUSE).with_suffix("").parts).removesuffix(".__init__")
        graph[module] = set(_imported(path)) - {module, "pipeline"}
        for imported in graph[module]:
            above, below = (place[name.split(".")[1]] for name in (module, imported))
            assert above <= below, f"{module} imports {imported}"
    TopologicalSorter(graph).prepare()


def _imported(path: Path) -> Iterator[str]:
    """Modules of ours that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("pipeline"):
            folder = HOUSE / node.module.replace(".", "/")
            inner = [f"{node.module}.{name.name}" for name in node.names]
            modules = [name for name in inner if (folder / f"{name.rpartition('.')[2]}.py").exists()]
            yield from modules or [node.module]
