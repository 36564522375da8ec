"""Memory that moves between processes and outlives them.

A *rack* pools memory; programs *attach* to it as named processes and own *regions* of it::

    import bequest as bq

    rack = bq.connect()
    with rack.attach("mapper") as me:
        region = me.alloc(64 << 20)
        region.grant("reducer")      # the pages change hands; nothing is copied

`connect` finds or starts a rack, `Rack.attach` joins it, `Process` allocates, grants and accepts, and `Region` is
memory with one owner. `dumps` and `loads` put Python objects into regions, and `Queue` replaces
`multiprocessing.Queue`. A `Heap` in regions, with `Map` and `Log`, is state that is consistent at every instant, and so
worth inheriting.

This module only re-exports, and imports what is asked for when it is asked for:
the daemons and the command line pay for nothing else. Everything is documented where it is defined.
"""

from __future__ import annotations

import importlib as _importlib
import sys as _sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bequest import actors
    from bequest.actors.actor import Actor
    from bequest.actors.function import function
    from bequest.errors import (
        AcceptTimeout,
        AddressSpaceFull,
        BadConfig,
        BadDirectory,
        BadName,
        BadSize,
        BequestError,
        CallTimeout,
        ChecksumMismatch,
        ConnectionRefused,
        CorruptHeap,
        FenceFailed,
        ForeignHeap,
        HeapFull,
        HeapMisuse,
        InboxFull,
        MemoryFailure,
        MemoryLost,
        MemoryRevoked,
        NameTaken,
        NoRack,
        NotAttached,
        NotOwner,
        NotSealed,
        NotSendable,
        ProcessDead,
        RackFault,
        RackGone,
        RackMemoryError,
        RegionFrozen,
        RegionMoved,
        RegionSealed,
        RemoteError,
        TagTooLong,
        TooManyMappings,
        UnknownActor,
        UnknownMethod,
        UnknownName,
        UnknownProcess,
        UnsupportedPlatform,
        VersionMismatch,
        WrongCapability,
        WrongSecret,
    )
    from bequest.memory.estate import Estate
    from bequest.memory.events import (
        ContactCalled,
        ElementBack,
        ElementSilent,
        Event,
        Events,
        EventsDropped,
        MemoryFailed,
        ProcessCleared,
        ProcessDied,
        ProcessSuspected,
    )
    from bequest.memory.frozen import Frozen, Reading
    from bequest.memory.group import Group, Quorum
    from bequest.memory.inbox import Inbox
    from bequest.memory.names import Published
    from bequest.memory.pickling import NotPickled, dumps, loads
    from bequest.memory.process import Process, current
    from bequest.memory.rack import Rack, connect
    from bequest.memory.region import Region
    from bequest.memory.standby import Death, Standby
    from bequest.memory.watchdog import Watchdog
    from bequest.objects.array import Array
    from bequest.objects.heap import Heap
    from bequest.objects.log import Log
    from bequest.objects.map import Map
    from bequest.objects.struct import Struct
    from bequest.queue import Queue

__version__ = "0.1.0"

__all__ = [
    "AcceptTimeout",
    "Actor",
    "AddressSpaceFull",
    "Array",
    "BadConfig",
    "BadDirectory",
    "BadName",
    "BadSize",
    "BequestError",
    "CallTimeout",
    "ChecksumMismatch",
    "ConnectionRefused",
    "ContactCalled",
    "CorruptHeap",
    "Death",
    "ElementBack",
    "ElementSilent",
    "Estate",
    "Event",
    "Events",
    "EventsDropped",
    "FenceFailed",
    "ForeignHeap",
    "Frozen",
    "Group",
    "Heap",
    "HeapFull",
    "HeapMisuse",
    "Inbox",
    "InboxFull",
    "Log",
    "Map",
    "MemoryFailed",
    "MemoryFailure",
    "MemoryLost",
    "MemoryRevoked",
    "NameTaken",
    "NoRack",
    "NotAttached",
    "NotOwner",
    "NotPickled",
    "NotSealed",
    "NotSendable",
    "Process",
    "ProcessCleared",
    "ProcessDead",
    "ProcessDied",
    "ProcessSuspected",
    "Published",
    "Queue",
    "Quorum",
    "Rack",
    "RackFault",
    "RackGone",
    "RackMemoryError",
    "Reading",
    "Region",
    "RegionFrozen",
    "RegionMoved",
    "RegionSealed",
    "RemoteError",
    "Standby",
    "Struct",
    "TagTooLong",
    "TooManyMappings",
    "UnknownActor",
    "UnknownMethod",
    "UnknownName",
    "UnknownProcess",
    "UnsupportedPlatform",
    "VersionMismatch",
    "Watchdog",
    "WrongCapability",
    "WrongSecret",
    "actors",
    "connect",
    "current",
    "dumps",
    "function",
    "loads",
]

_HOMES = {
    "bequest.actors.actor": ("Actor",),
    "bequest.actors.function": ("function",),
    "bequest.memory.events": (
        "ContactCalled",
        "ElementBack",
        "ElementSilent",
        "Event",
        "Events",
        "EventsDropped",
        "MemoryFailed",
        "ProcessCleared",
        "ProcessDied",
        "ProcessSuspected",
    ),
    "bequest.memory.estate": ("Estate",),
    "bequest.memory.frozen": ("Frozen", "Reading"),
    "bequest.memory.group": ("Group", "Quorum"),
    "bequest.memory.inbox": ("Inbox",),
    "bequest.memory.names": ("Published",),
    "bequest.memory.pickling": ("NotPickled", "dumps", "loads"),
    "bequest.memory.process": ("Process", "current"),
    "bequest.memory.rack": ("Rack", "connect"),
    "bequest.memory.region": ("Region",),
    "bequest.memory.standby": ("Death", "Standby"),
    "bequest.memory.watchdog": ("Watchdog",),
    "bequest.objects.array": ("Array",),
    "bequest.objects.heap": ("Heap",),
    "bequest.objects.log": ("Log",),
    "bequest.objects.map": ("Map",),
    "bequest.objects.struct": ("Struct",),
    "bequest.queue": ("Queue",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'bequest' has no attribute {name!r}")
    if _sys.platform != "linux":
        raise ImportError(
            f"bequest runs on Linux only: it stands on memfd, futex and mprotect, not on {_sys.platform}"
        )
    if name == "actors":
        return _importlib.import_module("bequest.actors")
    found: object = getattr(_importlib.import_module(_HOME_OF.get(name, "bequest.errors")), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
