"""The memory of a memory element: anonymous files, made in worker threads.

- ``dram``: memfds; large slabs are gathered into 2 MiB pages.
- ``huge``: memfds on the kernel's reserved huge pages.
- ``file:PATH``: unnamed files (O_TMPFILE) in a directory, of a DAX file system for instance.

None has a name, so nothing is left behind however the element ends. All pages are allocated when the file is made: a
full disk, cgroup or pool is an error then, not a SIGBUS later. Memfds are sealed against growing. Against shrinking
they are not: an element whose memory fails cuts its files to nothing, so that whoever touches them faults. A member
that cuts a slab of its group so makes memory fail for its group, which it could have overwritten, and for nobody else.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from pathlib import Path

from bequest import _core
from bequest.limits import HUGE_PAGE_BYTES, WARM_STEP_BYTES

_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class SlabFileError(Exception):
    """The memory is not there; says what to do about it."""


class SlabFiles:
    """Makes and changes files of one element's kind. All methods may be called from worker threads."""

    def __init__(self, name: str, kind: str) -> None:
        self._name = name
        self._kind = kind
        self._directory = Path(kind.removeprefix("file:")) if kind.startswith("file:") else None

    def make(self, nbytes: int, huge: bool) -> tuple[int, int]:
        """A descriptor of fresh, present memory, and how much of it is on huge pages."""
        size = -(-nbytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES if self._kind == "huge" else nbytes
        try:
            fd = self._open()
        except OSError as error:
            raise SlabFileError(self._explain(error, size)) from error
        try:
            huge_bytes = self._fill(fd, size, huge)
            if self._directory is None:
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            os.close(fd)
            raise SlabFileError(self._explain(error, size)) from error
        except BaseException:
            os.close(fd)
            raise
        return fd, huge_bytes

    def punch(self, fd: int, offset: int, nbytes: int) -> None:
        """Frees pages, which read as zero from then on; fallocate's PUNCH_HOLE by the door that Python has to it."""
        with mmap.mmap(fd, nbytes, offset=offset) as pages:
            pages.madvise(mmap.MADV_REMOVE)

    def discard(self, fd: int) -> None:
        """Frees the memory and closes the file. Clients may have it mapped for ever, so closing alone frees nothing."""
        try:
            if (nbytes := os.fstat(fd).st_size) > 0:  # 0: it has been cut
                self.punch(fd, 0, nbytes)
        finally:
            os.close(fd)

    def lose(self, fd: int, run: tuple[int, int] | None) -> None:
        """Loses a run of it (offset, bytes), which reads as zeros then, or all: who has that mapped faults then."""
        if run is None:
            os.ftruncate(fd, 0)
        else:
            self.punch(fd, *run)

    def flip_bit(self, fd: int, offset: int) -> None:
        """As a fault in the memory would: for tests of programs."""
        os.pwrite(fd, bytes([os.pread(fd, 1, offset)[0] ^ 1]), offset)

    def copy(self, source: int, source_offset: int, target: int, target_offset: int, nbytes: int) -> None:
        _core.copy_pages(source, source_offset, target, target_offset, nbytes)

    def probe(self) -> None:
        """Raises `SlabFileError` if not even 2 MiB of this kind can be had."""
        os.close(self.make(HUGE_PAGE_BYTES, huge=False)[0])

    def _open(self) -> int:
        if self._directory is not None:
            return os.open(self._directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        if self._kind == "huge":
            flags |= os.MFD_HUGETLB
        return os.memfd_create(f"bequest-{self._name}", flags)

    def _fill(self, fd: int, nbytes: int, huge: bool) -> int:
        """Makes all pages present; how many bytes of them are on huge pages.

        In steps: the small pages that are gathered into huge ones are then free again for the next step, so that the
        machine touches little more memory for the first time than the slab has.
        """
        os.ftruncate(fd, nbytes)
        if self._kind == "huge" or not huge:
            os.posix_fallocate(fd, 0, nbytes)
            return nbytes if self._kind == "huge" else 0
        huge_bytes = 0
        for offset in range(0, nbytes, WARM_STEP_BYTES):
            step = min(WARM_STEP_BYTES, nbytes - offset)
            os.posix_fallocate(fd, offset, step)
            huge_bytes += _core.warm(fd, offset, step, True)
        return huge_bytes

    def _explain(self, error: OSError, nbytes: int) -> str:
        what = f"memory element {self._name!r} cannot get {nbytes >> 20} MiB"
        if self._kind == "huge" and error.errno in (errno.ENOMEM, errno.ENOSPC):
            return f"{what} of reserved huge pages: none are left; raise vm.nr_hugepages (sysctl) or use kind dram"
        if self._directory is not None and error.errno == errno.EOPNOTSUPP:
            return f"{what}: the file system of {self._directory} has no unnamed files (O_TMPFILE); use another one"
        if self._directory is not None:
            return f"{what} in {self._directory}: {error.strerror}"
        return f"{what}: {error.strerror}; the machine or this container's memory limit is used up"
