"""A worker's inbox in the rack: one thread takes in what comes, and hands it to whom its tag begins with.

A process has one inbox, and the parts of this package share it. Whoever grants to a worker, or sends to it, begins the
tag with one of the kinds below. What is of a kind that nobody here knows is freed: its sender is another program.

What comes from one sender comes in order. Hence the `fence`: a worker that sends itself a message, and has got it, has
got all that had been granted to it before.
"""

from __future__ import annotations

import contextlib
import logging
import struct
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from bequest.errors import BequestError, NotAttached
from bequest.limits import INBOX_CELLS

if TYPE_CHECKING:
    from bequest.memory.process import Process
    from bequest.memory.region import Region

logger = logging.getLogger("distributed.worker.bequest")

KIND_BYTES = 4
FENCE = b"fenc"
SHARD = b"shrd"
_STOP = b"stop"
_NUMBER = struct.Struct("<Q")


class Post:
    """The inbox of ``process``, from `start` to `close`. What is delivered is delivered in the thread of the post.

    It is ``alive`` until it is closed or the rack ends.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._routes: dict[bytes, Callable[[Region], None]] = {FENCE: self._pass_fence}
        self._fences: dict[int, Callable[[], None]] = {}
        self._fences_made = 0
        self._lock = threading.Lock()
        self.alive = True
        self._thread = threading.Thread(target=self._serve, name="bequest-post", daemon=True)

    def route(self, kind: bytes, deliver: Callable[[Region], None]) -> None:
        """From now on, what is of this kind goes to ``deliver``, which owns it then and must not take long."""
        assert len(kind) == KIND_BYTES
        self._routes[kind] = deliver

    def start(self) -> None:
        """Begins to deliver."""
        self._thread.start()

    def close(self) -> None:
        """Delivers what has come, and no more."""
        with contextlib.suppress(BequestError):  # without a rack the thread has ended already
            self._process.send(self._process.name, _STOP)
        self._thread.join()

    def fence(self, passed: Callable[[], None]) -> None:
        """Calls ``passed``, in the thread of the post, when all has been delivered that was granted before.

        It is called as well when the post ends, for nobody is to wait for ever: see then whether it is `alive`.
        """
        with self._lock:
            if not self.alive:
                return passed()
            self._fences_made += 1
            number = self._fences_made
            self._fences[number] = passed
        with contextlib.suppress(BequestError):  # then the thread finds out too, and passes all fences
            self._process.send(self._process.name, FENCE + _NUMBER.pack(number))
        return None

    def _pass_fence(self, message: Region) -> None:
        (number,) = _NUMBER.unpack(message.tag[KIND_BYTES:])
        if message.sender == self._process.name:  # else it was the fence of one whose heir we are
            with self._lock:
                passed = self._fences.pop(number)
            passed()

    def _serve(self) -> None:
        try:
            self._deliver_all()
        finally:
            self.alive = False
            with self._lock:
                waiting, self._fences = list(self._fences.values()), {}
            for passed in waiting:
                passed()

    def _deliver_all(self) -> None:
        while True:
            try:
                regions = self._process.accept_all(INBOX_CELLS)
            except NotAttached:
                return
            except BequestError as trouble:
                logger.warning("%s takes no more from the rack: %s", self._process.name, trouble)
                return
            for region in regions:
                if region.tag == _STOP and region.sender == self._process.name:
                    return
                self._deliver(region)
            del region, regions  # of what was delivered there is one handle

    def _deliver(self, region: Region) -> None:
        deliver = self._routes.get(region.tag[:KIND_BYTES])
        try:
            if deliver is not None:
                deliver(region)
            else:
                logger.warning("%s sent %r, which nobody here knows", region.sender, region.tag)
                if region.nbytes:
                    region.free()
        except Exception:
            logger.exception("what %s sent as %r could not be taken in", region.sender, region.tag)
