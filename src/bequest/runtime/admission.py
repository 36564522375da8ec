"""Who may connect to a daemon, and what those are told who may not, or may no longer.

A connection that is to be closed is sent a `wire.Failed` first, if there is room for it at once: nobody waits for a
client that does not read. Why a connection is closed is thus known to whoever made it, whatever it was about to say
itself (`Channel` reads what was left for it), and to the log.
"""

from __future__ import annotations

import socket
from contextlib import suppress

from bequest.limits import PEERS_MAX, PEERS_OF_ONE_MAX
from bequest.runtime.transport import send_packet
from bequest.wire import messages as wire
from bequest.wire.codec import encode

NO_DESCRIPTORS = (
    "{} has no file descriptor left: close connections, or raise its limit (ulimit -n) before it starts"
)


def refusal(role: str, owner: int, uid: int, of_one: int, of_all: int) -> str:
    """Why user ``uid`` gets no connection, if it has ``of_one`` already, and all together ``of_all``; "" if it may."""
    if uid not in (owner, 0):
        return f"this rack is user {owner}'s: user {uid} has to start one of its own (`bequest up`)"
    if of_one >= PEERS_OF_ONE_MAX:
        return (
            f"this process has {of_one} connections to {role}, and gets no more: close some, or detach processes that"
            " it no longer needs"
        )
    if of_all >= PEERS_MAX:
        return f"{role} has {of_all} connections, and takes no more: end programs that use this rack, or start another"
    return ""


def send_away(connection: socket.socket, text: str) -> None:
    """Refuses the connection, and closes it."""
    last_words(connection, "refused", text)
    connection.close()


def last_words(connection: socket.socket, kind: str, text: str) -> None:
    """Unless that would take waiting."""
    with suppress(OSError):
        send_packet(connection, encode(wire.Failed(kind, text)), flags=socket.MSG_DONTWAIT)
