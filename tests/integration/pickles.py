"""What the tests of pickling send to other processes: importable there under the same name."""

from __future__ import annotations

from typing import Any

import actors
import bequest as bq


class Opaque:
    """A class of the user's own."""

    def __init__(self, array: Any, name: str) -> None:
        self.array = array
        self.name = name

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Opaque) and self.name == other.name and bool((self.array == other.array).all())
        )

    __hash__ = None  # type: ignore[assignment]


def load_and_dump(seat: actors.Seat, to: str) -> None:
    """Takes the object out of the region granted to it, puts it into one of its own, and grants that."""
    bq.dumps(bq.loads(seat.me.accept(actors.DEADLINE)), seat.me).grant(to)
