"""How a machine says no to a request."""

from __future__ import annotations

from collections.abc import Sequence

from bequest import ids
from bequest.errors import FAILURE_KINDS, BadName, FreeMemory
from bequest.limits import REFUSAL_CHARACTERS_MAX
from bequest.wire import messages as wire


class Refusal(Exception):
    """The request cannot be met; nothing has changed. Becomes the reply `wire.Failed`."""

    def __init__(self, kind: str, message: str, free: Sequence[FreeMemory] = ()) -> None:
        assert kind in FAILURE_KINDS, kind
        super().__init__(message)
        self.kind = kind
        self.message = message[:REFUSAL_CHARACTERS_MAX]  # it may quote what the client said, however long
        self.free = list(free)

    def reply(self) -> wire.Failed:
        return wire.Failed(self.kind, self.message, self.free)


def checked_name(name: str, what: str) -> str:
    """The name, if it can be one."""
    try:
        return ids.check_name(name, what)
    except BadName as error:
        raise Refusal("bad-name", str(error)) from error
