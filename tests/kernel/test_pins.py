"""The folder of pins: who may change it, and what goes. (What is pinned there: test_handover.py.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.kernel import pins


def test_one_at_a_time_changes_what_is_pinned(tmp_path: Path) -> None:
    folder = tmp_path / "pins"
    with pins.alone(folder):
        assert folder.stat().st_mode & 0o777 == 0o700
        with pytest.raises(UserError, match="being attached or detached already"), pins.alone(folder):
            pass
        assert folder.exists()
    assert not folder.exists()
    with pins.alone(folder):
        (folder / "other").touch()
    assert (folder / "other").exists(), "what is not empty stays"


def test_what_another_one_took_away_meanwhile_is_not_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pins"

    def slow(*_: object) -> None:
        folder.rmdir()

    monkeypatch.setattr("fcntl.flock", slow)
    with pytest.raises(UserError, match="try again"), pins.alone(folder):
        pass


def test_everything_of_ours_goes_and_nothing_else(tmp_path: Path) -> None:
    ours = ("map_books", "link_a", "entry_a", "slot_a", "ring_0", "gen-1/program_a", "gen-2/map_calls_a")
    for name in (*ours, "other"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert pins.is_attached(tmp_path)
    assert pins.generations(tmp_path) == {1, 2}
    pins.clear(tmp_path)
    assert not pins.is_attached(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_links_go_before_their_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone: list[str] = []
    for name in ("slot_a", "map_books", "link_a", "ring_0"):
        (tmp_path / name).touch()
    monkeypatch.setattr(Path, "unlink", lambda self, missing_ok: gone.append(self.name))
    pins.clear(tmp_path)
    assert gone[0] == "map_books", "the mark"
    assert gone.index("link_a") < gone.index("slot_a")
