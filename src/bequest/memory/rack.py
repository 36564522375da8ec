"""Finding a rack, starting one, and joining it.

`connect` looks where a user would expect: at ``$BEQUEST_RACK`` (a name or a directory), then for the rack that the user
has running, and else starts an *embedded* rack, which ends with the last process that uses it. An embedded rack is made
known to the program's children through the environment, so that they find the same one.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bequest.errors import BadConfig, BequestError, NoRack, RackGone, WrongSecret
from bequest.ids import check_name
from bequest.limits import EMBEDDED_START_TIMEOUT, SECRET_BYTES, SHARED_LINGER, TICKET_BYTES
from bequest.memory.connections import expect
from bequest.memory.group import Group, Quorum, make_keys
from bequest.memory.process import DEFAULT_SPIN, Process, attached_to
from bequest.memory.standby import Standby, Then
from bequest.protocol.groups import FENCE_REACHES, STEAL_POLICIES
from bequest.runtime import embedded
from bequest.runtime.config import make_config
from bequest.runtime.lasting import LastingChannel
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from types import TracebackType

RACK_VARIABLE = "BEQUEST_RACK"
COMPUTE_VARIABLE = "BEQUEST_COMPUTE"  # set by `bequest run`: the compute element that a program was placed on
_START_POLL = 0.02  # seconds between looks at a rack that another program is starting

_starting = threading.Lock()
_standbys = itertools.count(1)


def _forget_in_child() -> None:
    global _starting  # noqa: PLW0603 - a lock cannot be made fresh otherwise
    _starting = threading.Lock()  # another thread of the parent may have held it, and is not here to let go


os.register_at_fork(after_in_child=_forget_in_child)


class Rack:
    """A connection to a rack, from `connect`. Threads may share it; `close` ends it, not the rack."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._mmu = LastingChannel(directory / "mmu.sock")

    @property
    def name(self) -> str:
        """The name it was started under; an embedded rack makes one up."""
        assert self._mmu.welcome is not None
        return self._mmu.welcome.rack

    def attach(
        self,
        name: str,
        *,
        group: Group | bytes | None = None,
        compute: str | None = None,
        spin: float = DEFAULT_SPIN,
        heir: str | None = None,
    ) -> Process:
        """Attaches this program to the rack as the process ``name``, which must not be taken.

        ``group`` is a `Group` or its secret; None joins the user's default group. ``compute`` names the compute element
        (default: ``$BEQUEST_COMPUTE``, else the rack chooses). ``spin`` is how many seconds a wait for memory spins
        before it sleeps: more is faster while a core is idle. ``heir`` names the only process that may steal from this
        one where the group's steal policy is "standby". Raises `NameTaken`, `BadName`, `WrongSecret`, `RackGone`.
        """
        check_name(name)
        secret = group.secret if isinstance(group, Group) else group
        _check_secret(secret)
        place = compute if compute is not None else os.environ.get(COMPUTE_VARIABLE) or None
        if heir is not None:
            check_name(heir, "heir's name")
        return Process(self.directory, name, secret, place, spin, heir)

    def create_group(self, name: str, *, steal: str | Quorum = "member", fence: str = "ptrace") -> Group:
        """A new group: a protection domain of its own. It lives while this connection does, or anyone is in it.

        ``steal`` says who may steal memory in it: "member" (any member that shows the capability), "standby" (only the
        process that the victim has named its heir, with the capability), ``Quorum(k, of=n)`` (any member that has the
        shares of k), or "never". ``fence`` says how far the rack may go to keep a victim that runs from its memory:
        "protect" its pages from outside, "ptrace" if that does not work, "kill" if that does not either.
        """
        check_name(name, "group's name")
        policy = "quorum" if isinstance(steal, Quorum) else steal
        if policy not in STEAL_POLICIES or steal == "quorum":
            raise BadConfig(
                f"no steal policy {steal!r}; there are never, member, standby, and Quorum(k, of=n)"
            )
        if fence not in FENCE_REACHES:
            raise BadConfig(f"no fence {fence!r}; there are {', '.join(FENCE_REACHES)}")
        keys = make_keys(steal)
        reply, _ = self._mmu.request(
            wire.CreateGroup(name, policy, fence, keys.verifier, os.urandom(TICKET_BYTES))
        )
        created = expect(reply, wire.GroupCreated)
        return Group(created.name, created.secret, keys.capability, keys.shares)

    def standby(
        self,
        *,
        for_: str,
        capability: bytes | None = None,
        then: Then,
        on_suspicion: Then | None = None,
        group: Group | bytes | None = None,
    ) -> Standby:
        """`Process.standby`, by this program's attached process, or else by one that is attached for it.

        ``group`` is the victim's; None is that of this program's attached process, or else the user's default group. A
        process attached for it detaches on `cancel`.
        """
        process = None if group is not None else attached_to(self.directory)
        if process is not None:
            return process.standby(for_=for_, capability=capability, then=then, on_suspicion=on_suspicion)
        check_name(for_)
        process = self.attach(f"standby-{os.getpid()}-{next(_standbys)}", group=group)
        try:
            return Standby(process, for_, capability, then, on_suspicion, own_process=True)
        except BaseException:
            process.detach()
            raise

    def request(self, message: wire.Message) -> wire.Message:
        """For the command line: any request that the Rack MMU answers without descriptors."""
        reply, fds = self._mmu.request(message)
        for fd in fds:
            os.close(fd)
        return reply

    def is_alive(self) -> bool:
        """False once the rack has ended."""
        return self._mmu.is_alive()

    def close(self) -> None:
        """Ends this connection. Attached processes have their own and stay."""
        self._mmu.close()

    def __enter__(self) -> Rack:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):  # it never connected
            self._mmu.close()

    def __repr__(self) -> str:
        return f"<bequest.Rack {str(self.directory)!r}>"


def _check_secret(secret: object) -> None:
    """What cannot be one is not sent: the daemon would take it for garbage."""
    if secret is None:
        return
    if not isinstance(secret, bytes):
        raise TypeError(f"a group is a Group or its secret in bytes, not {type(secret).__name__}")
    if len(secret) != SECRET_BYTES:
        raise WrongSecret(f"a group's secret has {SECRET_BYTES} bytes, this one has {len(secret)}")


def connect(name: str | None = None, *, start: bool = False) -> Rack:
    """Connects to a rack: the one named (or at that directory), else ``$BEQUEST_RACK``, else the user's running one.

    If there is none and none was asked for, starts an embedded rack, which ends with the last process that uses it,
    and sets ``$BEQUEST_RACK`` for this program's children. Raises `NoRack` if the one asked for does not run; but with
    ``start`` it is started then, and ends some seconds after the last process that uses it: programs that name the same
    one get the same one, also when all of them ask at once.
    """
    if start:
        if name is None:
            raise TypeError("connect(name, start=True) needs the name of the rack that is to be started")
        return _connect_or_start(name)
    wanted = name if name is not None else os.environ.get(RACK_VARIABLE) or None
    with _starting:  # two threads must not start a rack each
        found = embedded.find(name)
        if found is not None:
            try:
                return Rack(found.path)
            except RackGone:
                if wanted is not None:
                    raise
        started = embedded.start_embedded()
        os.environ[RACK_VARIABLE] = str(started.path)
        return Rack(started.path)


def _connect_or_start(name: str) -> Rack:
    """Whoever claims the directory first starts the rack; the others wait until it listens."""
    deadline = time.monotonic() + EMBEDDED_START_TIMEOUT
    refused: BequestError | None = None
    while True:
        try:
            return connect(name)
        except NoRack:
            if refused is not None:
                raise refused from None
            try:
                embedded.start_detached(make_config(name=name, linger=SHARED_LINGER))
            except BequestError as error:
                refused = error  # unless another program has been quicker
        except RackGone:  # another has claimed it, and it does not listen yet
            if time.monotonic() > deadline:
                raise
            refused = None
            time.sleep(_START_POLL)
