"""Channels: which of this replica's connections want to hear what.

Messages come out of the log, so every replica hears all of them, in one order, and delivers to its own clients.
Changes of keys are messages, too, of Redis's channels for them: ``__keyspace@0__:KEY`` says what happened to a key, and
``__keyevent@0__:EVENT`` to which key it happened.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

from bequest.paxos.strings import glob

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Subscriber(Protocol):
    """A connection, as far as this is concerned."""

    channels: dict[bytes, None]
    patterns: dict[bytes, None]

    def hear(self, message: list[bytes]) -> None:
        """A message for it."""


class Channels:
    """Who subscribes to what. ``on_change`` is told whether anybody subscribes to anything."""

    def __init__(self, on_change: Callable[[bool], None]) -> None:
        self._on_change = on_change
        self._channels: dict[bytes, dict[Subscriber, None]] = {}
        self._patterns: dict[bytes, tuple[re.Pattern[bytes], dict[Subscriber, None]]] = {}

    def subscribe(self, subscriber: Subscriber, channel: bytes) -> None:
        """To one channel."""
        self._channels.setdefault(channel, {})[subscriber] = None
        subscriber.channels[channel] = None
        self._on_change(True)

    def subscribe_pattern(self, subscriber: Subscriber, pattern: bytes) -> None:
        """To all channels like this. Raises Failure if that is no pattern."""
        if pattern not in self._patterns:
            self._patterns[pattern] = (glob(pattern), {})
        self._patterns[pattern][1][subscriber] = None
        subscriber.patterns[pattern] = None
        self._on_change(True)

    def unsubscribe(self, subscriber: Subscriber, channel: bytes) -> None:
        """Not to this one any more."""
        if subscriber.channels.pop(channel, self) is None:
            del self._channels[channel][subscriber]
            if not self._channels[channel]:
                del self._channels[channel]
            self._on_change(bool(self._channels or self._patterns))

    def unsubscribe_pattern(self, subscriber: Subscriber, pattern: bytes) -> None:
        """Not to these any more."""
        if subscriber.patterns.pop(pattern, self) is None:
            del self._patterns[pattern][1][subscriber]
            if not self._patterns[pattern][1]:
                del self._patterns[pattern]
            self._on_change(bool(self._channels or self._patterns))

    def forget(self, subscriber: Subscriber) -> None:
        """It has gone."""
        for channel in list(subscriber.channels):
            self.unsubscribe(subscriber, channel)
        for pattern in list(subscriber.patterns):
            self.unsubscribe_pattern(subscriber, pattern)

    def deliver(self, events: Iterable[tuple[bytes, bytes]]) -> None:
        """What has been published, to whom it may concern."""
        for channel, message in events:
            for subscriber in list(self._channels.get(channel, ())):
                subscriber.hear([b"message", channel, message])
            for pattern, (like, subscribers) in list(self._patterns.items()):
                if like.fullmatch(channel):
                    for subscriber in list(subscribers):
                        subscriber.hear([b"pmessage", pattern, channel, message])

    def count(self, channel: bytes) -> int:
        """How many subscribers hear a message of this channel."""
        found = len(self._channels.get(channel, ()))
        if self._patterns:
            found += sum(len(all_) for like, all_ in self._patterns.values() if like.fullmatch(channel))
        return found

    def names(self) -> list[bytes]:
        """The channels that have subscribers."""
        return list(self._channels)

    def subscribers(self, channel: bytes) -> int:
        """How many subscribe to just this channel."""
        return len(self._channels.get(channel, ()))

    @property
    def pattern_count(self) -> int:
        """How many patterns are subscribed to."""
        return len(self._patterns)
