"""Where racks are found: one private directory each, in a base directory that only the user can enter.

A rack's directory holds its sockets, its log, ``rack.json``, and a lock file. The supervisor takes the lock and all
daemons inherit it, so it is free exactly when the last of them has ended, however that came about: a directory whose
lock is free is *stale*, and the next rack to start sweeps it away. Making and sweeping happen under a lock of the base
directory, so that nobody sweeps what another is just making. A directory that is deleted while its rack runs is made
again (`bequest.runtime.upkeep`), with another lock, which is handed to all daemons.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from bequest.errors import BadDirectory, NameTaken, NoRack

ENVIRONMENT_VARIABLE = "BEQUEST_RACK"
DEFAULT_NAME = "default"
EMBEDDED_PREFIX = "embedded-"


class RackNotes(msgspec.Struct):
    """What ``rack.json`` says."""

    name: str
    supervisor: int  # its operating-system pid
    version: str
    embedded: bool


class RackDirectory:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"RackDirectory({str(self.path)!r})"

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def mmu_socket(self) -> Path:
        return self.path / "mmu.sock"

    @property
    def log(self) -> Path:
        return self.path / "rack.log"

    def socket(self, name: str) -> Path:
        """Of an element or agent, by the name that `wire.Attached` tells."""
        return self.path / name

    def notes(self) -> RackNotes:
        try:
            return msgspec.json.decode((self.path / "rack.json").read_bytes(), type=RackNotes)
        except (OSError, msgspec.MsgspecError) as error:
            raise NoRack(f"{self.path} is no rack's directory: {error}") from error

    def is_live(self) -> bool:
        """Whether any daemon of the rack is still there."""
        try:
            lock = os.open(self.path / "lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False


class ClaimedDirectory(RackDirectory):
    """A rack's directory as its own daemons have it: locked."""

    def __init__(self, path: Path, lock: int) -> None:
        super().__init__(path)
        self.lock = lock
        self._notes: RackNotes | None = None

    def write_notes(self, notes: RackNotes) -> None:
        self._notes = notes
        temporary = self.path / "rack.json.new"
        temporary.write_bytes(msgspec.json.encode(notes))
        temporary.rename(self.path / "rack.json")

    def restore(self) -> bool:
        """Makes again what is missing of directory, lock and notes; whether there is a new lock, which all must hold.

        Raises `NameTaken` if another rack has its place, and `BadDirectory` or OSError if that cannot be done now.
        """
        is_new = not self._is_ours()
        if is_new:
            _make_base(self.path.parent)
            with _locked(self.path.parent, wait=False):
                self._take_place_again()
        if self._notes is not None and not (self.path / "rack.json").exists():
            self.write_notes(self._notes)
        return is_new

    def _take_place_again(self) -> None:
        if self.is_live():
            raise NameTaken(f"another rack has been started in {self.path}")
        with suppress(FileExistsError):
            self.path.mkdir(mode=0o700)
        if not _is_own_directory(self.path):
            raise BadDirectory(f"{self.path} is something else now; have it removed")
        (self.path / "lock").unlink(missing_ok=True)
        before, self.lock = self.lock, _take_lock(self.path)
        os.close(before)

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self.lock), os.stat(self.path / "lock"))
        except OSError:
            return False

    def remove(self) -> None:
        """Unless it is another rack's by now."""
        with suppress(OSError):
            if self._is_ours():
                _remove(self.path)


def base_directory() -> Path:
    """``$XDG_RUNTIME_DIR/bequest`` if that is this user's, else ``/tmp/bequest-UID``; made if need be."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and _is_own_directory(Path(runtime)):
        base = Path(runtime) / "bequest"
    else:
        base = Path(f"/tmp/bequest-{os.getuid()}")
    _make_base(base)
    if stat.S_IMODE(base.stat().st_mode) & 0o077:
        base.chmod(0o700)
    return base


def claim(name: str) -> ClaimedDirectory:
    """A fresh directory for a rack of this name; sweeps the stale ones. Raises `NameTaken`."""
    base = base_directory()
    with _locked(base):
        sweep(base)
        path = base / name
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            raise NameTaken(
                f"a rack {name!r} of yours is running already ({path}); `bequest down` ends it"
            ) from None
        return ClaimedDirectory(path, _take_lock(path))


def sweep(base: Path) -> list[str]:
    """Removes the directories of racks that have ended; their names."""
    swept = []
    for path in sorted(base.iterdir()):
        if _is_own_directory(path) and not RackDirectory(path).is_live():
            _remove(path)
            swept.append(path.name)
    return swept


def find(name: str | None = None) -> RackDirectory | None:
    """The running rack of this name or path, else of $BEQUEST_RACK, else this user's default rack, if it runs.

    Raises `NoRack` if one was named that does not run; but an embedded rack that has ended counts as not named, since
    programs find its name in the environment that they were started with.
    """
    wanted = name if name is not None else os.environ.get(ENVIRONMENT_VARIABLE) or None
    directory = RackDirectory(_path_of(wanted or DEFAULT_NAME))
    if directory.is_live():
        _check_trusted(directory.path)
        return directory
    if wanted is None or directory.name.startswith(EMBEDDED_PREFIX):
        return None
    said = "" if name is not None else f" (from ${ENVIRONMENT_VARIABLE})"
    raise NoRack(f"no rack {wanted!r}{said} is running; start it with `bequest up`, or name another")


def running() -> list[RackDirectory]:
    """All running racks of this user."""
    paths = sorted(path for path in base_directory().iterdir() if path.is_dir())
    return [directory for directory in map(RackDirectory, paths) if directory.is_live()]


# --- within -----------------------------------------------------------------------------------------------


def _path_of(wanted: str) -> Path:
    return Path(wanted).absolute() if "/" in wanted else base_directory() / wanted


def _check_trusted(path: Path) -> None:
    owner = path.stat().st_uid
    if owner not in (os.getuid(), 0) and os.getuid() != 0:
        raise BadDirectory(f"the rack in {path} is run by user {owner}; only your own or root's can be used")


def _make_base(base: Path) -> None:
    with suppress(FileExistsError):
        base.mkdir(mode=0o700)
    if not _is_own_directory(base):
        raise BadDirectory(
            f"{base} is not a directory of user {os.getuid()}'s own; have it removed, then try again"
        )


def _take_lock(path: Path) -> int:
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def _is_own_directory(path: Path) -> bool:
    """Not a link, as somebody else might have put one into /tmp."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


@contextmanager
def _locked(base: Path, *, wait: bool = True) -> Iterator[None]:
    """Raises BlockingIOError if it is not to wait for another."""
    lock = os.open(base / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def _remove(path: Path) -> None:
    """A rack's directory is flat. The lock file goes last, so that half a directory is still recognised as stale."""
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name == "lock"):
        with suppress(FileNotFoundError):
            entry.unlink()
    with suppress(FileNotFoundError):
        path.rmdir()
