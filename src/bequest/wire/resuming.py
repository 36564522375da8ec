"""How clients come back to a Rack MMU that was started anew.

They are part of `bequest.wire.messages`, which also has `Once`, the envelope of what must not be done twice.
"""

from __future__ import annotations

from bequest.wire.message import Message


class Resume(Message, frozen=True):
    """-> Resumed. This connection is that attached process's from now on; the ticket is `Attached.agent_ticket`."""

    pid: int
    incarnation: int
    ticket: bytes


class Resumed(Message, frozen=True):
    pid: int


class ComeBack(Message, frozen=True):
    """-> Done. This connection takes the place of one that had no process attached: `Welcome.client` was its number."""

    client: int
