"""Row 8: what a pipeline may not do, and a broker that wants TLS and SCRAM."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import Row
from tests.faults.scene import Scene
from tests.faults.storms import UID, Storms
from tests.live.run import Live
from tests.secure import PASSWORD, Secure, guarded
from tests.test_privilege import confined

__all__ = ["confined", "guarded"]

pytestmark = pytest.mark.kernel


def test_what_it_may_not_do(confined: dict[str, Any], row: Row) -> None:
    denied = confined["denied"]
    row(
        "8 privilege",
        f"a process that gave up its privileges as the pipeline does, tries: {', '.join(denied)}",
    )
    row.saw(tried=len(denied), **Counter(denied.values()))
    assert set(denied.values()) <= {"EPERM", "EACCES"}, denied


@pytest.mark.kafka
def test_tls_and_scram(
    make_live: Callable[..., Live], guarded: Secure, acts: bytes, ground: Path, row: Row
) -> None:
    row(
        "8 TLS and SCRAM",
        "a broker that wants TLS and SCRAM-SHA-512 and knows another password at first; execs all the time",
    )
    guarded.let_in("an0ther")
    live = make_live(kernel__uids=str(UID), **guarded.settings(ground / "password"))
    scene = Scene(live, guarded.broker, "secure", guarded.address())
    with Storms(acts, pause=10_000) as storms:
        scene.until(lambda: live.ledger()["in_outbox"], "the outbox to take what the broker does not")
        assert "the broker refuses the credentials; check `kafka.sasl.*`" in live.said()
        assert live.process
        shown = Path(f"/proc/{live.process.pid}/cmdline").read_bytes()
        guarded.let_in(PASSWORD)
        scene.until(lambda: live.ledger()["acknowledged"], "the broker to take it")
    scene.executed = storms.executed
    written = [path.read_bytes() for path in live.state.iterdir() if path.is_file()]
    texts = (shown, live.said().encode(), *written)
    row.saw(places_looked_at=len(texts), with_the_password_in_them=sum(PASSWORD.encode() in t for t in texts))
    assert scene.judge(row) == 0
    assert not any(PASSWORD.encode() in text for text in texts)
