"""``bequest down``: ends a rack, and says so when nothing of it is left.

The rack is asked; if it cannot answer any more, its supervisor is told by SIGTERM. Either way the verb waits for the
supervisor, which ends when its daemons have and the rack's directory is gone.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
    ended = [end_rack(directory) for directory in _meant(name or rack_name, everything=everything)]
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


def end_rack(directory: RackDirectory) -> str:
    """Has it end, and waits until it has; its name. Raises RackFault if that takes too long."""
    from bequest.memory.rack import Rack
    from bequest.wire import messages as wire

    name = directory.name
    with _watched(directory) as ends_within:
        try:
            with Rack(directory.path) as rack:
                name = rack.name
                rack.request(wire.Shutdown())
        except (RackGone, VersionMismatch):
            with suppress(NoRack, ProcessLookupError):
                os.kill(directory.notes().supervisor, signal.SIGTERM)
        if not ends_within(_TIMEOUT):
            raise RackFault(f"rack {name!r} has not ended within {_TIMEOUT:g} s; {directory.log} may say why")
    return name


@contextmanager
def _watched(directory: RackDirectory) -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds for the rack's supervisor, which ends last, and says whether it has."""
    try:
        pidfd = os.pidfd_open(directory.notes().supervisor)
    except (NoRack, ProcessLookupError):  # it is ending, or only daemons without a supervisor are left of it
        yield lambda seconds: _lock_is_free(directory, seconds)
        return
    try:
        yield lambda seconds: bool(select.select([pidfd], [], [], seconds)[0])
    finally:
        os.close(pidfd)


def _lock_is_free(directory: RackDirectory, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while directory.is_live():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True
