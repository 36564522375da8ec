"""Standbys: being called at once when another process dies (paper, sections 3.2 and 4.1).

Theory of operation. The library itself watches the victim's lifeline in the shared table: the kernel marks it within a
fraction of a millisecond of the death, and wakes a thread of this standby's, which runs the callback. That is a *hint*:
it speaks of one thread of the victim. So a `Death` is ``confirmed`` only when the rack has said so, which needs the
kernel's word; and stealing, which moves memory, has the rack prove the death or fence the victim first. The rack's
notice is also the second way by which a death is heard.

A standby stands by for a *name*. Its bearer may attach later, and again under a new incarnation; each of its deaths is
told once. Who detaches in good order has not died.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING

from bequest.errors import BequestError
from bequest.memory.events import Event, ProcessDied, ProcessSuspected
from bequest.memory.group import check_capability
from bequest.wire import messages as wire
from bequest.wire.codec import check

if TYPE_CHECKING:
    from types import TracebackType

    from bequest.memory.estate import Estate
    from bequest.memory.process import Process

_LIVE = 1  # Life in native/layout.hpp
Then = Callable[["Death"], object]


class Death:
    """What a standby is called with: that a process has died, or that it is suspected to hang.

    ``name``, ``id`` and ``incarnation`` tell which. ``is_suspicion`` is true if it has only shown no sign of life.
    """

    def __init__(self, standby: Standby, id_: int, incarnation: int, *, is_suspicion: bool = False) -> None:
        self.name = standby.name
        self.id = id_
        self.incarnation = incarnation
        self.is_suspicion = is_suspicion
        self._standby = standby
        self._is_confirmed = False

    @property
    def confirmed(self) -> bool:
        """Whether the kernel has said that it has gone. Until then this is a hint, if a good one."""
        return self._is_confirmed

    def wait_confirmed(self, timeout: float | None = None) -> bool:
        """Waits until it is confirmed; False if that takes longer than ``timeout`` seconds."""
        news = self._standby._news
        with news:
            return news.wait_for(lambda: self._is_confirmed, timeout)

    def steal(
        self, only: Iterable[str | int] | None = None, *, shares: Iterable[bytes] | None = None
    ) -> Estate:
        """Takes its memory, or a part of it, as `Process.steal`. The rack proves the death, or fences it, first.

        With the standby's capability, or ``shares`` of one that the group's members have handed over by now.
        """
        capability = None if shares is not None else self._standby._capability
        return self._standby._process.steal(
            self.name, capability, shares=shares, only=only, incarnation=self.incarnation
        )

    def __repr__(self) -> str:
        what = "suspicion" if self.is_suspicion else "death" if self.confirmed else "death (a hint)"
        return f"<bequest.Death: {what} of {self.name!r} id={self.id} incarnation={self.incarnation}>"


class Standby:
    """Standing by for a process, until `cancel`; a context manager. ``name`` is the victim's."""

    def __init__(
        self,
        process: Process,
        name: str,
        capability: bytes | None,
        then: Then,
        on_suspicion: Then | None,
        own_process: bool,
    ) -> None:
        check_capability(capability)
        for callback in (then, on_suspicion or then):
            if not callable(callback):
                raise TypeError(f"a standby calls a function, not {type(callback).__name__}")
        self.name = name
        self._process = process
        self._capability = capability
        self._then = then
        self._on_suspicion = on_suspicion
        self._own_process = own_process  # it was attached for this standby, and goes with it
        self._lock = threading.Lock()
        self._news = threading.Condition()  # a death has been confirmed
        self._told: dict[int, Death] = {}  # by incarnation
        self._is_cancelled = False
        self._number: int | None = None
        self._vigil = process._notices.vigil(f"bequest-standby-{name}"[:31], self._broke)
        process._notices.subscribe()
        process._notices.listen(self._hear)
        try:
            standing = process._notices.stand_by(wire.StandBy(name, capability))
            self._number = standing.standby
            if standing.pid:
                self._watch(standing.pid, standing.incarnation)
        except BaseException:
            self._withdraw()
            raise
        self._vigil.start()
        # In a thread of its own: a memory element that does not answer holds up nobody who only wants to be told.
        threading.Thread(target=self._make_ready, name="bequest-ready", daemon=True).start()

    def cancel(self) -> None:
        """Stands by no more. Does nothing the second time."""
        with self._lock:
            if self._is_cancelled:
                return
            self._is_cancelled = True
        self._withdraw()
        if self._own_process and self._process.attached:
            self._process.detach()

    def _withdraw(self) -> None:
        self._process._notices.unlisten(self._hear)
        self._vigil.close()
        if self._process.attached:
            with contextlib.suppress(BequestError):
                self._process._notices.stand_down(self._number)

    def __enter__(self) -> Standby:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    def __repr__(self) -> str:
        state = " cancelled" if self._is_cancelled else ""
        return f"<bequest.Standby for {self.name!r}{state}>"

    # --- what is heard, in the library's threads -------------------------------------------------------------

    def _broke(self, id_: int, incarnation: int) -> None:
        death, is_news = self._death(id_, incarnation)
        if is_news and not self._is_cancelled:
            self._then(death)

    def _make_ready(self) -> None:
        """What a theft needs and can be had before: then it only fetches what is allocated from now on."""
        check(wire.Steal(self.name, self._capability))
        with contextlib.suppress(BequestError):  # then the theft tells
            self._process._links.reach_elements()
            self._process._map_ahead(self.name)

    def _watch(self, id_: int, incarnation: int) -> None:
        process = self._process
        life, bearer, _, _ = process.table.life(id_)
        if life == _LIVE and bearer == incarnation:
            self._vigil.keep(process.table, id_, incarnation)

    def _hear(self, event: Event | wire.NoticeAttached) -> None:
        match event:
            case wire.NoticeAttached(name, id_, incarnation) if name == self.name:
                self._watch(id_, incarnation)
            case ProcessDied(name, id_, incarnation) if name == self.name:
                death, is_news = self._death(id_, incarnation)
                with self._news:
                    death._is_confirmed = True
                    self._news.notify_all()
                if is_news:
                    self._call(self._then, death)
            case ProcessSuspected(name, id_, incarnation) if name == self.name:
                if self._on_suspicion is not None:
                    self._call(self._on_suspicion, Death(self, id_, incarnation, is_suspicion=True))

    def _death(self, id_: int, incarnation: int) -> tuple[Death, bool]:
        """Heard of in either way; and whether that was the first time, which calls for the callback."""
        with self._lock:
            known = self._told.get(incarnation)
            if known is not None:
                return known, False
            death = self._told[incarnation] = Death(self, id_, incarnation)
            return death, True

    def _call(self, callback: Then, death: Death) -> None:
        if not self._is_cancelled:
            self._vigil.run(partial(callback, death))
