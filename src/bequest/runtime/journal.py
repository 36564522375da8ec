"""The journal: what a machine must not forget, written down before anybody is told of it.

Theory of operation. A file without a name (memfd) that the supervisor keeps: what has been written into it survives
the daemon however that ends, for the page cache is the kernel's. Each input's changes are one *frame*: length,
checksum, changes. A frame is committed when its last byte is in the file; a daemon that is killed within the write
leaves a torn one, which the next finds by its checksum and cuts off. When the file has grown to several times what the
books hold, a fresh one is begun with all of that and takes the old one's place in the safe: sending it there is the
commit point, since the supervisor empties a dead daemon's post before it starts the next.

    frame = length (4 bytes), CRC-32 of the changes (4 bytes), changes in msgpack
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Sequence

import msgspec

from bequest.limits import JOURNAL_BYTES_MIN, JOURNAL_GROWTH
from bequest.protocol.books import Change

_HEAD = struct.Struct("<II")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Change])


class Journal:
    """Appends to the file behind a descriptor, which it owns."""

    def __init__(self, fd: int, size: int = 0) -> None:
        self.fd = fd
        self._size = size
        self._begun_with = 0  # bytes that all of the books took when it was begun, if that is known

    @classmethod
    def begin(cls, everything: Sequence[Change]) -> Journal:
        """A fresh one, with all that is in the books."""
        journal = cls(os.memfd_create("bequest-journal", os.MFD_CLOEXEC))
        journal.write(everything)
        journal._begun_with = journal._size
        return journal

    @classmethod
    def open(cls, fd: int) -> tuple[Journal, list[Change]]:
        """One that a run before has written, and its changes, in order. What it did not finish is cut off."""
        changes, size = read(fd)
        os.ftruncate(fd, size)
        return cls(fd, size), changes

    def write(self, changes: Sequence[Change]) -> None:
        """One frame; it is committed when this returns. Raises MemoryError if there is no room, and is as before."""
        if not changes:
            return
        data = _encoder.encode(changes)
        frame = _HEAD.pack(len(data), zlib.crc32(data)) + data
        try:
            written = os.pwrite(self.fd, frame, self._size)
            while written < len(frame):
                written += os.pwrite(self.fd, frame[written:], self._size + written)
        except OSError as error:
            raise MemoryError(f"no memory for the journal: {error.strerror}") from error
        self._size += len(frame)

    @property
    def is_long(self) -> bool:
        """It has grown so much that beginning anew is worth while."""
        return self._size > max(JOURNAL_BYTES_MIN, JOURNAL_GROWTH * self._begun_with)

    def grows_on(self) -> None:
        """It could not be replaced, and is not to be for some time."""
        self._begun_with = self._size

    def close(self) -> None:
        os.close(self.fd)


def read(fd: int) -> tuple[list[Change], int]:
    """The changes in the whole frames, and where these end."""
    data = os.pread(fd, os.fstat(fd).st_size, 0)
    changes: list[Change] = []
    end = 0
    while end + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, end)
        payload = data[end + _HEAD.size : end + _HEAD.size + length]
        if length == 0 or len(payload) < length or zlib.crc32(payload) != checksum:
            break
        changes += _decoder.decode(payload)
        end += _HEAD.size + length
    return changes, end
