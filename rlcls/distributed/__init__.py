"""stub"""

from typing import Any


class Hosts:
    index = 0
    count = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value

    @property
    def stop_asked(self) -> bool:
        return False

    def stops(self, number: int, *, asked: bool) -> bool:
        return asked

    def fail(self, reason: str) -> None: ...
    def close(self) -> None: ...


ALONE = Hosts()

import contextlib
from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def joined(options: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[Hosts]:
    yield ALONE
