"""Estates: what one process has stolen from another (paper, section 3.1).

The Rack MMU decides whether a steal is allowed, keeps the victim from its memory, and changes the owner words in the
shared table; each of those changes is a commit point of its own, and marks the extent with whom it was stolen from. So
the thief needs no list of what it got: it finds in the table what bears the mark and adopts it. A thief that lost the
reply, or had no room for the mappings, asks again and has the rest.

What was allocated, or split off, as one is stolen as one. Of a region of which parts had been granted away, the parts
that were left come as regions of their own.
"""

from __future__ import annotations

import contextlib
import operator
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from typing import TYPE_CHECKING

from bequest.errors import BadName, BequestError, UnknownProcess
from bequest.ids import check_name, check_path
from bequest.limits import INBOX_CELLS
from bequest.memory import seals
from bequest.memory.connections import expect
from bequest.memory.group import check_capability, combine
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from types import TracebackType

    from bequest.memory.process import Process
    from bequest.memory.region import Region


class Estate:
    """What `Process.steal` got, owned by the thief. Iterable; as a context manager it frees, at the end, what is left.

    ``regions`` are the victim's, by address. ``inbox`` is what waited in a dead victim's inbox: granted to it and never
    accepted, and messages, in order, with their tags and senders. ``victim`` and ``incarnation`` tell from whom.
    ``how`` tells how the victim was kept from its memory: "dead", "protected" (against writing, by its agent),
    "ptraced" (its mappings were taken away), "killed", "self" (the thief is the victim), or "untouched" if there was
    nothing to take.
    """

    def __init__(
        self, process: Process, stolen: wire.Stolen, regions: list[Region], inbox: list[Region]
    ) -> None:
        self._process = process
        self.victim = stolen.name
        self.incarnation = stolen.incarnation
        self.how = stolen.how
        self.regions = regions
        self.inbox = inbox

    @cached_property
    def names(self) -> dict[str, Region]:
        """The paths that lead to these regions: the victim's names went along with its memory. Asked for at first use.

        Where in its region a path points is told by ``offset`` in `Process.list`.
        """
        places = [region.address for region in self.regions]
        names: dict[str, Region] = {}
        for name in self._process.list() if places else []:
            place = name.address + name.offset
            region = self.regions[bisect_right(places, place) - 1]
            if region.address <= place < region.address + region.nbytes:
                names[name.path] = region
        return names

    def verify(self) -> int:
        """`Region.verify` of those regions of it that are sealed, its inbox included; the bytes verified.

        All of them are read before `ChecksumMismatch` is raised, which names every page that was found different. Of
        regions that were not sealed it says nothing: `Region.sealed` tells which are.
        """
        return seals.verify(
            region for region in [*self.regions, *self.inbox] if region.nbytes and region.sealed
        )

    def free(self) -> None:
        """Frees what is still owned of it, also of its inbox. Raises `BufferError` while views of it live."""
        with contextlib.ExitStack() as every_one:
            for region in [*self.regions, *self.inbox]:
                every_one.callback(seals.free, region, region._free_remaining)

    def __iter__(self) -> Iterator[Region]:
        return iter(self.regions)

    def __len__(self) -> int:
        return len(self.regions)

    def __bool__(self) -> bool:
        return True  # it was stolen, however little it was

    def __enter__(self) -> Estate:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as every_one:
            for region in [*self.regions, *self.inbox]:
                every_one.callback(region.__exit__, kind, error, trace)

    def __repr__(self) -> str:
        count, nbytes = len(self.regions), sum(region.nbytes for region in self.regions)
        mail = f", {len(self.inbox)} from its inbox" if self.inbox else ""
        many = "" if count == 1 else "s"
        return f"<bequest.Estate of {self.victim!r} ({self.how}): {count} region{many}, {nbytes} bytes{mail}>"


def steal(
    process: Process,
    victim: str,
    capability: bytes | None,
    shares: Iterable[bytes] | None,
    only: Iterable[str | int] | None,
    incarnation: int | None,
) -> Estate:
    """`Process.steal`."""
    try:
        check_name(victim)
    except BadName as error:
        raise UnknownProcess(f"no process can have that name: {error}") from None
    check_capability(capability)
    if shares is not None:
        if capability is not None:
            raise TypeError("a steal is opened by a capability or by shares of one, not by both")
        capability = combine(shares)
    if isinstance(only, str):
        raise TypeError(f"a part is a list of paths and addresses: only=[{only!r}]")
    selection = None if only is None else [_selected(item) for item in only]
    request = wire.Steal(victim, capability, selection, incarnation)
    reply, _ = process._links.mmu.request(request, meanwhile=partial(_prepare, process, victim, only))
    return _estate(process, expect(reply, wire.Stolen))


def _prepare(process: Process, victim: str, only: Iterable[str | int] | None) -> None:
    """Fetches and maps, closed, the slabs that all of the victim's memory lies in: adopting it has to, otherwise.

    It may come to nothing: what cannot be had now is asked for again, and trouble told, when it is owned.
    """
    if only is None:
        with contextlib.suppress(BequestError):
            process._map_ahead(victim)


def _selected(item: str | int) -> str | int:
    if isinstance(item, str):
        return check_path(item)
    try:
        return operator.index(item)
    except TypeError:
        raise TypeError(
            f"a part is a path or an address, as in region.address, not {type(item).__name__}"
        ) from None


def _estate(process: Process, stolen: wire.Stolen) -> Estate:
    again = f"steal({stolen.name!r}, …, incarnation={stolen.incarnation})"
    try:
        estate = Estate(process, stolen, process._adopt(stolen.pid, stolen.incarnation), [])
    except Exception as error:
        error.add_note(
            f"The memory of {stolen.name!r} is this process's nevertheless. To have it, make room and steal again: "
            f"{again}."
        )
        raise
    try:
        while stolen.heir and (more := process._inherit(stolen.pid, stolen.incarnation, INBOX_CELLS)):
            estate.inbox += more
    except BaseException as error:
        error.estate = estate  # type: ignore[attr-defined]  # or all of it would be freed with this frame
        error.add_note(
            f"The regions of {stolen.name!r} are this exception's `estate`. To have the rest of its inbox too, make "
            f"room and steal again: {again}."
        )
        raise
    return estate
