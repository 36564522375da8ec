"""What a member of the rack does all day: it allocates, writes, grants, accepts, splits, frees, steals, and goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bequest.sim.library import Acting, Handle, Library, RackLost
from bequest.sim.os_process import OsProcess, Program

if TYPE_CHECKING:
    from bequest.sim.world import World

ACTS = (
    ("alloc", 4),
    ("grant", 6),
    ("accept", 6),
    ("store", 3),
    ("load", 2),
    ("free", 2),
    ("split", 1),
    ("mailbox", 1),
    ("steal", 2),
    ("publish", 1),
    ("look_up", 1),
    ("contacts", 1),
    ("stand_by", 1),
    ("break", 1),
)
_CHOICES = tuple(act for act, weight in ACTS for _ in range(weight))
_HANDLES_MAX = 6


def life(world: World, process: OsProcess, secret: bytes | None) -> Program:
    """Attaches (the name may have a bearer still), acts until the world winds down or it feels like leaving, leaves."""
    try:
        library = Library(world, process)
        while not (yield from library.attach(process.name, secret)):
            if world.is_winding_down:
                return
            yield 0.01
        while not world.is_winding_down:
            library.reconcile()
            yield from _act(world, library)
            yield world.random.expovariate(1 / world.options.think)
            if not world.is_healed and world.random.random() < 0.01:
                if world.random.random() < 0.5:
                    return  # ends without a word
                yield from library.detach()
                return
        yield from _wind_down(library)
    except RackLost:
        world.trace("log", repr(process), "RackGone")


def _act(world: World, library: Library) -> Acting:
    random = world.random
    act = random.choice(_CHOICES)
    if act == "alloc" and len(library.handles) < _HANDLES_MAX:
        yield from library.alloc(random.choice((1, 1, 2, 5, 512)))
    elif act == "accept":
        yield from library.accept(random.choice([library.id, *(mailbox.id for mailbox in library.mailboxes)]))
    elif act == "mailbox":
        yield from _use_mailbox(world, library)
    elif act in _OF_OTHERS:
        yield from _look_at_others(world, library, act)
    elif library.handles:
        yield from _use(world, library, act, random.choice(library.handles))


def _use(world: World, library: Library, act: str, handle: Handle) -> Acting:
    random = world.random
    if act == "publish":
        yield from library.publish(_path(random.choice(world.members)), handle)
    elif act == "break" and random.random() < world.options.breakage:
        yield from library.break_memory(handle)
    elif act == "grant":
        yield from library.grant(handle, random.choice(world.names))
    elif act == "store":
        yield from library.store(handle)
    elif act == "load":
        yield from library.load(handle)
    elif act == "free":
        library.free(handle)
    elif act == "split" and handle.pages > 1:
        library.split(handle, random.randrange(1, handle.pages))


_OF_OTHERS = ("steal", "look_up", "contacts", "stand_by")


def _look_at_others(world: World, library: Library, act: str) -> Acting:
    random = world.random
    others = [name for name in world.members if name != library.process.name]
    other = random.choice(others)
    if act == "look_up":
        yield from library.look_up(_path(other))
    elif act == "contacts":
        yield from library.name_contacts(random.sample(others, random.randint(0, len(others))))
    elif act == "stand_by":
        yield from library.stand_by(other)
    elif random.random() < world.options.greed:
        yield from library.steal(other, [_path(other)] if random.random() < 0.2 else None)


def _path(name: str) -> str:
    return f"/{name}/state"


def _use_mailbox(world: World, library: Library) -> Acting:
    if library.mailboxes and world.random.random() < 0.5:
        yield from library.close_mailbox(world.random.choice(library.mailboxes))
    else:
        yield from library.open_mailbox("letters")


def _wind_down(library: Library) -> Acting:
    """Reads all it has once more, takes what still waits, and goes."""
    library.reconcile()
    for handle in list(library.handles):
        yield from library.load(handle)
    while library.table.inboxes.get(library.id):
        yield from library.accept(library.id)
    yield from library.detach()
