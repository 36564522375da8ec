"""The actor that the benchmark of actors sends to. Imported by those processes alone that use Bequest."""

from __future__ import annotations

import bequest


class Count(bequest.Struct):
    total: int = 0


class Counter(bequest.Actor):
    state: Count

    def add(self, number: int) -> int:
        self.state.total += number
        return self.state.total
