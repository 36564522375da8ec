"""No hand-off at all: A reads its own buffer. The floor under every other figure: all of them contain it."""

from __future__ import annotations

import time

from .peer import Pattern, Peer, checksum


class ReadingAlone(Peer):
    title = "(reading alone, no hand-off)"
    rest_seconds = 0

    def prepare(self, nbytes: int) -> None:
        self.buffer = bytearray(nbytes)
        self.pattern = Pattern(nbytes)

    def round(self) -> float:
        self.pattern.write(self.buffer)
        started = time.perf_counter()
        answer = checksum(self.buffer)
        elapsed = time.perf_counter() - started
        self.pattern.verify(answer)
        return elapsed

    def close(self) -> None:
        self.buffer = bytearray()
