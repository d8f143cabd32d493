"""Private brokers for tests: real Apache Kafka in a folder of its own, on free ports of the loopback."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from config.kafka import broker
from tests.absent import absent


class Broker(broker.Broker):
    """`with Broker() as kafka:` starts one; at the end it and its data are gone.

    In between: `address`, and stop, kill, pause, resume, start again on the same data and port.
    """

    def __init__(self, properties: Mapping[str, str] | None = None, cluster: str | None = None) -> None:
        folder = Path(tempfile.mkdtemp(prefix="promissory-kafka-"))
        super().__init__(folder, properties=properties, cluster=cluster)

    def __enter__(self) -> "Broker":
        try:
            self.start()
        except broker.UnavailableError as error:
            self.remove()
            absent(f"no Apache Kafka: {error}")
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
