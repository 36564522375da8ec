"""``bequest down``: ends a rack, and says so when nothing of it is left.

The rack is asked; if it cannot answer any more, its supervisor is told by SIGTERM. Either way the verb waits for the
rack's lock to become free, which is the case when the last of its daemons has ended.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from bequest.cli.output import Output, json_option
from bequest.cli.racks import NO_RACK
from bequest.errors import NoRack, RackFault, RackGone, VersionMismatch

if TYPE_CHECKING:
    from bequest.runtime.directory import RackDirectory

_POLL = 0.01
_TIMEOUT = 15.0  # the supervisor gives its daemons 3 s before it kills them


@click.command("down")
@click.argument("name", required=False)
@click.option("--rack", "rack_name", metavar="NAME", help="The same as NAME.")
@click.option("--all", "everything", is_flag=True, help="End every rack of yours.")
@json_option
@click.pass_obj
def command(output: Output, name: str | None, rack_name: str | None, everything: bool) -> int:
    """End a rack: the one of this NAME or directory, or your default one.

    Everything in its memory is gone then; processes that use it get RackGone.
    """
    if sum([name is not None, rack_name is not None, everything]) > 1:
        raise click.UsageError("name one rack, or say --all")
    ended = [_end(directory) for directory in _meant(name or rack_name, everything=everything)]
    if output.json:
        output.document({"ended": ended})
    else:
        for rack in ended:
            output.console.print(f"Rack {rack} has ended.", markup=False)
        if not ended:
            output.console.print("No rack is running.")
    return 0


def _meant(name: str | None, *, everything: bool) -> list[RackDirectory]:
    """Ending is not looking: a rack that was not named is ended only if it is the default one."""
    from bequest.runtime import directory

    if everything:
        return directory.running()
    found = directory.find(name)
    if found is not None:
        return [found]
    others = ", ".join(other.name for other in directory.running())
    raise NoRack(
        f"no default rack is running, but others are: {others}; say which, or --all" if others else NO_RACK
    )


def _end(directory: RackDirectory) -> str:
    from bequest.memory.rack import Rack
    from bequest.wire import messages as wire

    name = directory.name
    try:
        with Rack(directory.path) as rack:
            name = rack.name
            rack.request(wire.Shutdown())
    except (RackGone, VersionMismatch):
        with suppress(NoRack, ProcessLookupError):
            os.kill(directory.notes().supervisor, signal.SIGTERM)
    deadline = time.monotonic() + _TIMEOUT
    while directory.is_live() or directory.path.exists():
        if time.monotonic() > deadline:
            raise RackFault(f"rack {name!r} has not ended within {_TIMEOUT:g} s; {directory.log} may say why")
        time.sleep(_POLL)
    return name
