"""A missing part never looks green where everything can be installed."""

from __future__ import annotations

import pytest

from tests.absent import absent


def test_in_continuous_integration_it_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no such thing"):
        absent("no such thing")


def test_elsewhere_it_is_skipped_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="NOT TESTED: no such thing"):
        absent("no such thing")
