"""Keeps a rack where it can be found: makes anew what somebody has deleted of its directory while it runs.

Theory of operation. A rack lives in its processes; its directory is only how it is found. Whoever is attached notices
nothing when that is deleted, but nobody could join the rack any more, look at it or end it. So the supervisor looks
every so often, and makes the directory, the lock, the notes, the log and the sockets again. A socket that has been
bound cannot be bound a second time: a post gets another, and its daemon is handed a copy. A log that has grown too long
is begun anew on the same occasion (`bequest.runtime.rack_log`).

If another rack has been started in that place meanwhile, this one cannot be found again, by anybody: it ends.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bequest.errors import BequestError, NameTaken
from bequest.limits import UPKEEP_INTERVAL
from bequest.runtime.directory import ClaimedDirectory
from bequest.runtime.post import Post
from bequest.runtime.rack_log import RackLog
from bequest.runtime.transport import listen
from bequest.wire.message import Message
from bequest.wire.supervision import Hold, Listen, WriteLog

log = logging.getLogger("bequest.supervisor")

Tell = Callable[[Post, Message, list[int]], None]


class Upkeep:
    """The supervisor's. ``tell`` hands a message and descriptors to a post's daemon, if there is one."""

    def __init__(
        self, directory: ClaimedDirectory, posts: list[Post], tell: Tell, rack_log: RackLog | None
    ) -> None:
        self._directory = directory
        self._posts = posts
        self._tell = tell
        self._log = rack_log
        self._bound = {post.key: _identity(post.path) for post in posts}
        self._trouble = ""
        self.next_look = time.monotonic() + UPKEEP_INTERVAL

    def look(self, now: float) -> None:
        """When it is time. Raises `NameTaken` if the rack has lost its place to another."""
        if now < self.next_look:
            return
        self.next_look = now + UPKEEP_INTERVAL
        try:
            self._look()
        except NameTaken:
            raise
        except (OSError, BequestError) as error:
            if str(error) != self._trouble:
                log.error("%s has been deleted, and cannot be made again: %s", self._directory.path, error)
            self._trouble = str(error)
        else:
            self._trouble = ""

    def _look(self) -> None:
        has_moved = self._directory.restore()
        if self._log is not None and self._log.look():  # first, so that the rest is told in it
            self._tell_all(WriteLog(str(self._log.path)))
        if has_moved:
            log.warning("%s had been deleted, and has been made again", self._directory.path)
            self._tell_all(Hold(), [self._directory.lock])
        for post in self._posts:
            if post.path is not None and _identity(post.path) != self._bound[post.key]:
                self._listen_again(post, post.path)

    def _tell_all(self, message: Message, fds: Sequence[int] = ()) -> None:
        for post in self._posts:
            self._tell(post, message, list(fds))

    def _listen_again(self, post: Post, path: Path) -> None:
        path.unlink(missing_ok=True)
        fresh = listen(path)  # if it cannot be had now, the old one stays
        assert post.listener is not None
        post.listener.close()
        post.listener = fresh
        self._bound[post.key] = _identity(path)
        log.warning("the socket of %s had been deleted: it has another", post.title)
        self._tell(post, Listen(), [post.listener.fileno()])


def _identity(path: Path | None) -> tuple[int, int] | None:
    try:
        found = os.lstat(path) if path is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_dev, found.st_ino)
