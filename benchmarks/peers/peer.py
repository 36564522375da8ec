"""The interface of a peer, and the code that all of them share: filling the buffer and reading it.

An instance lives in process A, the sender. One hand-off is `round()`:

untimed   A writes a new pattern into its buffer (all of it the first time, one byte of every page later)
timed     A hands the buffer over; B reads one byte of every 4 KiB; A holds B's answer untimed   A checks that
the answer is the checksum of the new pattern, so that no stale or half-read buffer counts

The pattern differs each time and B's reading code is `checksum` for everybody; only the way across differs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..measure import PAGE_BYTES

Bytes = NDArray[np.uint8]

PATTERN_SHIFTS = 251
REST_SECONDS = 0.0002


class WrongAnswer(Exception):
    """B read something other than what A wrote last: the peer, or its benchmark, is broken."""


def as_bytes(buffer: Any) -> Bytes:
    """The buffer as an array of bytes, without a copy."""
    return np.frombuffer(buffer, np.uint8)


def checksum(buffer: Any) -> int:
    """Reads one byte of every page: the receiver's part, the same code for every peer."""
    return int(as_bytes(buffer)[::PAGE_BYTES].sum(dtype=np.uint8))


class Pattern:
    """Writes one byte into every page of a buffer, different ones each time, and knows what B must answer."""

    def __init__(self, nbytes: int) -> None:
        self.pages = -(-nbytes // PAGE_BYTES)
        generator = np.random.default_rng(nbytes)
        self.source: Bytes = generator.integers(0, 256, self.pages + PATTERN_SHIFTS, dtype=np.uint8)
        self.shift = 0
        self.expected = 0

    def advance(self) -> int:
        """Moves on to the next pattern; returns its number, which `stamp` takes."""
        self.shift = (self.shift + 1) % PATTERN_SHIFTS
        self.expected = int(self._bytes(self.shift).sum(dtype=np.uint8))
        return self.shift

    def stamp(self, buffer: Any, shift: int) -> None:
        as_bytes(buffer)[::PAGE_BYTES] = self._bytes(shift)

    def write(self, buffer: Any) -> None:
        self.stamp(buffer, self.advance())

    def verify(self, answer: int) -> None:
        if answer != self.expected:
            raise WrongAnswer(f"B answered {answer}, A had written {self.expected}")

    def _bytes(self, shift: int) -> Bytes:
        return self.source[shift : shift + self.pages]


class Peer(ABC):
    """One way to hand a filled buffer from A to B. Use: prepare, then (expect, round...)..., close."""

    title: ClassVar[str]
    """How the tables call it."""
    requires: ClassVar[tuple[str, ...]] = ()
    """Modules that must be installed."""
    sizes: ClassVar[tuple[int, ...] | None] = None
    """The sizes it runs at; None for all of them."""
    rest_seconds: ClassVar[float] = REST_SECONDS
    """An untimed pause before each hand-off, so that who sleeps is asleep; 0 where both sides spin."""

    @abstractmethod
    def prepare(self, nbytes: int) -> None:
        """Makes a buffer of `nbytes` and fills it; lets go of the one before."""

    def expect(self, count: int) -> None:  # noqa: B027 - optional
        """Tells B that `count` hand-offs follow. Between such turns B sleeps: idle peers disturb nobody."""

    @abstractmethod
    def round(self) -> float:
        """One hand-off, verified; returns its seconds."""

    @abstractmethod
    def close(self) -> None:
        """Ends B and lets go of everything."""
