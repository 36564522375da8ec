"""Which rack a verb means, and what it asks it.

Verbs that only look take the rack that is meant without saying so: the one named, else ``$BEQUEST_RACK``, else this
user's default rack, else the only one that runs, an embedded one for instance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bequest.errors import NoRack

if TYPE_CHECKING:
    from bequest.memory.rack import Rack
    from bequest.runtime.directory import RackDirectory
    from bequest.wire import messages as wire

_F = TypeVar("_F", bound=Callable[..., Any])
NO_RACK = "no rack is running; start one with `bequest up`"


def rack_option(function: _F) -> _F:
    """``--rack NAME``, given to the verb as ``rack_name``."""
    return click.option(
        "--rack",
        "rack_name",
        metavar="NAME",
        help="The rack, by name or directory (default: $BEQUEST_RACK, else yours).",
    )(function)


def find_rack(name: str | None) -> RackDirectory:
    """The running rack that is meant. Raises `NoRack`, which says what to do."""
    from bequest.runtime import directory

    found = directory.find(name)
    if found is not None:
        return found
    others = directory.running()
    if len(others) == 1:
        return others[0]
    if others:
        names = ", ".join(other.name for other in others)
        raise NoRack(f"no default rack is running, but {names} are: name one of them")
    raise NoRack(NO_RACK)


def open_rack(name: str | None) -> Rack:
    """A connection to the rack that is meant. Raises `NoRack`, `RackGone`, `VersionMismatch`."""
    from bequest.memory.rack import Rack

    return Rack(find_rack(name).path)


# --- questions -------------------------------------------------------------------------------------------------


def rack_report(rack: Rack) -> wire.RackReport:
    """The rack as a whole."""
    from bequest.memory.connections import expect
    from bequest.wire import messages as wire

    return expect(rack.request(wire.Status("rack")), wire.RackReport)


def _pages(rack: Rack, what: str, kind: type[Any]) -> Iterator[Any]:
    """A report page by page, so that the rack is never held up for long."""
    from bequest.memory.connections import expect
    from bequest.wire import messages as wire

    cursor: int | None = 0
    while cursor is not None:
        page = expect(rack.request(wire.Status(what, cursor)), kind)
        yield page
        cursor = page.next_cursor


def processes(rack: Rack) -> list[wire.ProcessReport]:
    """All processes and mailboxes, in the order of their ids."""
    from bequest.wire import messages as wire

    return [row for page in _pages(rack, "processes", wire.ProcessList) for row in page.processes]


def elements(rack: Rack) -> list[wire.ElementStatus]:
    """All memory elements, in the order in which they were configured."""
    from bequest.memory.connections import expect
    from bequest.wire import messages as wire

    return expect(rack.request(wire.Status("elements")), wire.ElementList).elements


def slabs(rack: Rack) -> list[wire.SlabStatus]:
    """All slabs, in the order of their ids."""
    from bequest.wire import messages as wire

    return [row for page in _pages(rack, "slabs", wire.SlabList) for row in page.slabs]


def audit(rack: Rack) -> wire.AuditReport:
    """Whether every page has exactly one owner."""
    from bequest.memory.connections import expect
    from bequest.wire import messages as wire

    return expect(rack.request(wire.Status("audit")), wire.AuditReport)


def thefts(rack: Rack) -> list[wire.Theft]:
    """Attempts to steal that the rack remembers, oldest first."""
    from bequest.wire import messages as wire

    return [row for page in _pages(rack, "thefts", wire.TheftList) for row in page.thefts]


def names(rack: Rack, prefix: str) -> list[wire.Published]:
    """What is published at a path or below, in all groups."""
    from bequest.memory.connections import expect
    from bequest.wire import messages as wire

    found: list[wire.Published] = []
    after: tuple[int, str] | None = None
    while True:
        page = expect(rack.request(wire.ListNames(prefix, after)), wire.NameList)
        found += page.names
        after = page.next_after
        if after is None:
            return found
