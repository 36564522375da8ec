"""What has become of a call: its value, or an exception that names the actor and the cause."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bequest.actors import mail
from bequest.errors import BequestError, CallTimeout, RemoteError, UnknownMethod

if TYPE_CHECKING:
    from bequest.actors.mail import Identity
    from bequest.memory.region import Region

UNKNOWN_METHOD = "UnknownMethod"
REGION_LOST = "RegionLost"
NOT_REPEATABLE = "NotRepeatable"


def outcome(actor: str, method: str, reply: list[Any], find: Callable[[Identity], Region]) -> Any:
    """The value of a reply. Raises RemoteError, UnknownMethod."""
    error = reply[1]
    if error is not None:
        kind, message, trace = error
        if kind == UNKNOWN_METHOD:
            raise UnknownMethod(f"actor {actor!r} {message}")
        raise RemoteError(
            f"{method}() of actor {actor!r} raised {kind}: {message}", kind=kind, remote_traceback=trace
        )
    if len(reply) > 3:
        return mail.unpack(reply[2], find)
    return reply[2]


def timed_out(actor: str, method: str, timeout: float | None) -> BequestError:
    """For a call that has not been answered in time."""
    return CallTimeout(
        f"actor {actor!r} has not answered {method}() within {timeout} s; it may handle it yet, once"
    )
