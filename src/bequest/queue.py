"""A queue with the face of `multiprocessing.Queue`, whose large items change hands instead of being copied.

An existing program gains by changing one import. Behind a queue stands a *mailbox* of the rack: an inbox that several
processes send to and several receive from. An item is pickled by `put`, at once; if that takes few bytes they travel
inline, else in a region, with the item's large buffers (NumPy, Arrow, pandas) beside the pickle. `get` copies nothing:
the arrays that it returns are the memory that was put.

What has been put survives the process that put it. A mailbox holds 1024 items; what a queue without ``maxsize`` is
given beyond that waits in the putting process, with a thread that passes it on, as in `multiprocessing`.
"""

from __future__ import annotations

import itertools
import os
import pickle
import sys
import threading
import time
from collections import deque
from pathlib import Path
from queue import Empty, Full
from typing import Any, Generic, TypeVar

from bequest.errors import AcceptTimeout, BequestError, ProcessDead
from bequest.limits import INBOX_CELLS, TAG_BYTES_MAX
from bequest.memory.connections import expect
from bequest.memory.inbox import Inbox
from bequest.memory.pickling import Pickled, loads
from bequest.memory.process import Process, run_at_exit
from bequest.memory.rack import connect
from bequest.memory.region import Region
from bequest.wire import messages as wire

__all__ = ["Empty", "Full", "Queue"]

_Item = TypeVar("_Item")
_DONE, _DEAD = 0, 2  # GrantStatus in native/attachment.hpp


class Queue(Generic[_Item]):
    """Create it in one process, pass it to others as an argument of `multiprocessing.Process`; any may put and get.

    ``maxsize`` bounds the items waiting; 0 does not. The processes need not attach to a rack: the queue attaches them,
    to the rack that `bequest.connect` finds, in the user's default group.
    """

    def __init__(self, maxsize: int = 0, *, ctx: object = None) -> None:
        del ctx  # multiprocessing's: a rack serves all start methods alike
        self._maxsize = max(0, maxsize)
        with connect() as rack:
            self._directory = rack.directory
        self._name: str | None = None
        self._begin()
        self._seat()

    def _begin(self) -> None:
        """The state of this process's end; fresh after a fork."""
        self._owner = os.getpid()
        self._process: Process | None = None
        self._mailbox = (0, 0)  # id and incarnation
        self._lock = threading.Lock()
        self._overflow: deque[Region | bytes] = deque()
        self._flushed = threading.Condition(self._lock)
        self._feeder: threading.Thread | None = None
        self._closed = False
        self._wait_at_exit = True

    # --- multiprocessing.Queue's face -----------------------------------------------------------------------

    def put(self, obj: _Item, block: bool = True, timeout: float | None = None) -> None:
        """Puts an item. Raises `queue.Full` if there is no room within ``timeout`` seconds, ValueError if closed."""
        process = self._seat()
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        item = _pack(obj, process)
        deadline = None if timeout is None else time.monotonic() + max(0.0, timeout)
        while True:
            with self._lock:
                if self._offer(process, item):
                    return
            if not block or not process.wait_for_room(self._mailbox[0], deadline, self._capacity):
                raise Full

    def get(self, block: bool = True, timeout: float | None = None) -> _Item:
        """The next item. Raises `queue.Empty` if there is none within ``timeout`` seconds."""
        process = self._seat()
        if self._closed:
            raise ValueError(f"Queue {self!r} is closed")
        try:
            region = Inbox(process, self._mailbox[0]).accept(timeout if block else 0)
        except AcceptTimeout:
            raise Empty from None
        item: _Item = _unpack(region)
        return item

    def put_nowait(self, obj: _Item) -> None:
        """`put` without waiting."""
        self.put(obj, block=False)

    def get_nowait(self) -> _Item:
        """`get` without waiting."""
        return self.get(block=False)

    def qsize(self) -> int:
        """About how many items wait, as of some moment ago."""
        return self._seat()._depth(self._mailbox[0]) + len(self._overflow)

    def empty(self) -> bool:
        """Whether nothing waited, as of some moment ago."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether ``maxsize`` items waited, as of some moment ago."""
        return bool(self._maxsize) and self.qsize() >= self._maxsize

    def close(self) -> None:
        """No more items will be put or got by this process. What it has put is still passed on."""
        self._closed = True

    def join_thread(self) -> None:
        """Waits until everything that this process has put is in the mailbox. Call `close` before."""
        if not self._closed:
            raise ValueError(f"Queue {self!r} is not closed")
        self._flush()

    def cancel_join_thread(self) -> None:
        """At exit, do not wait for items that found no room: they are lost."""
        self._wait_at_exit = False

    # --- putting --------------------------------------------------------------------------------------------

    @property
    def _capacity(self) -> int:
        return min(self._maxsize or INBOX_CELLS, INBOX_CELLS)

    def _offer(self, process: Process, item: Region | bytes) -> bool:
        """Into the mailbox, or behind what waits for it; False if the queue is full. Called with the lock held."""
        if not self._overflow and self._send(process, item):
            return True
        if self._maxsize and len(self._overflow) >= self._maxsize - self._capacity:
            return False
        self._overflow.append(item)
        if self._feeder is None:
            self._feeder = threading.Thread(target=self._feed, name="bequest-queue-feeder", daemon=True)
            self._feeder.start()
        return True

    def _send(self, process: Process, item: Region | bytes) -> bool:
        mailbox, incarnation = self._mailbox
        if isinstance(item, bytes):
            status = process._send(mailbox, incarnation, item, self._capacity)
        else:
            status, _ = process._grant([item], 0, mailbox, incarnation, b"", str(self._name), self._capacity)
        if status == _DEAD:
            raise ProcessDead(f"the queue {self._name!r} has ended: nobody held it open any more")
        return status == _DONE

    def _feed(self) -> None:
        """The feeder thread: passes on what found no room, in order, until nothing is left."""
        process = self._process
        assert process is not None
        try:
            while True:
                with self._lock:
                    while self._overflow and self._send(process, self._overflow[0]):
                        self._overflow.popleft()
                    if not self._overflow:
                        self._feeder = None
                        self._flushed.notify_all()
                        return
                process.wait_for_room(self._mailbox[0], None, self._capacity)
        except BequestError as error:
            with self._lock:
                # Told before anybody is: who waits for this may be the end of the program, and it does not wait for
                # a thread that still prints.
                lost = len(self._overflow)
                print(f"bequest.Queue: {lost} items could not be passed on: {error}", file=sys.stderr)
                self._overflow.clear()
                self._feeder = None
                self._flushed.notify_all()

    def _flush(self) -> None:
        with self._flushed:
            self._flushed.wait_for(lambda: self._feeder is None)

    def _at_exit(self) -> None:
        if self._wait_at_exit and os.getpid() == self._owner:
            self._flush()

    # --- being in several processes -------------------------------------------------------------------------

    def _seat(self) -> Process:
        """This program's attachment for queues, with the mailbox open; made at the first use in each process."""
        if self._owner != os.getpid():
            self._begin()
        if self._process is None or not self._process.attached:
            process = _queue_process(self._directory)
            reply, _ = process._links.mmu.request(wire.OpenMailbox(self._name, create=self._name is None))
            opened = expect(reply, wire.MailboxOpened)
            self._name, self._mailbox = opened.name, (opened.id, opened.incarnation)
            self._process = process
            run_at_exit(self._at_exit)
        return self._process

    def __getstate__(self) -> tuple[str, str | None, int]:
        from multiprocessing.context import assert_spawning  # loaded by whoever makes a child

        assert_spawning(self)
        return str(self._directory), self._name, self._maxsize

    def __setstate__(self, state: tuple[str, str | None, int]) -> None:
        directory, self._name, self._maxsize = state
        self._directory = Path(directory)
        self._begin()

    def __repr__(self) -> str:
        return f"<bequest.Queue {self._name!r} maxsize={self._maxsize}>"


def _pack(obj: object, process: Process) -> Region | bytes:
    pickled = Pickled(obj)
    if not pickled.buffers and len(pickled.data) <= TAG_BYTES_MAX:
        return pickled.data
    region = pickled.into_region(process)
    region._free_when_dropped()  # if it finds no room, it is not the caller's to free
    return region


def _unpack(region: Region) -> Any:
    if region.nbytes == 0:
        return pickle.loads(region.tag)
    return loads(region)


_seats: dict[tuple[int, Path], Process] = {}
_numbers = itertools.count()
_seats_lock = threading.Lock()


def _queue_process(directory: Path) -> Process:
    """One attachment for all queues of this program on one rack, beside what the program attaches itself."""
    with _seats_lock:
        key = (os.getpid(), directory)
        process = _seats.get(key)
        if process is None or not process.attached:
            with connect(str(directory)) as rack:
                process = rack.attach(f"queue-{os.getpid()}-{next(_numbers)}")
            _seats[key] = process
        return process


def _forget_in_child() -> None:
    global _seats_lock  # noqa: PLW0603 - a lock cannot be made fresh otherwise
    _seats.clear()
    _seats_lock = threading.Lock()  # another thread of the parent may have held it, and is not here to let go


os.register_at_fork(after_in_child=_forget_in_child)
