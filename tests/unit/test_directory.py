"""Racks' directories: private, found by name or path, told live from stale by a lock alone."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bequest.errors import BadDirectory, NameTaken, NoRack
from bequest.runtime import directory
from bequest.runtime.directory import ClaimedDirectory, RackDirectory, RackNotes, base_directory, claim, find


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("BEQUEST_RACK", raising=False)
    return tmp_path / "bequest"


@pytest.fixture
def rack() -> Iterator[ClaimedDirectory]:
    claimed = claim("lab")
    yield claimed
    claimed.remove()
    os.close(claimed.lock)


def test_the_base_is_private(base: Path) -> None:
    assert base_directory() == base
    base.chmod(0o755)
    assert base_directory().stat().st_mode & 0o777 == 0o700


def test_a_link_in_its_place_is_refused(base: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    base.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadDirectory):
        base_directory()


@pytest.mark.root
def test_anothers_directory_is_refused(base: Path) -> None:
    base.mkdir()
    os.chown(base, 65534, 65534)
    with pytest.raises(BadDirectory):
        base_directory()


@pytest.mark.root
def test_anothers_runtime_directory_is_not_used(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    assert base_directory() == Path(f"/tmp/bequest-{os.getuid()}")
    os.chown(tmp_path, 0, 0)


def test_a_claimed_rack_is_found_by_name_path_and_environment(
    rack: ClaimedDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lab", str(rack.path)):
        found = find(name)
        assert found is not None and found.path == rack.path
        monkeypatch.setenv("BEQUEST_RACK", name)
        found = find()
        assert found is not None and found.path == rack.path
    assert [other.name for other in directory.running()] == ["lab"]


def test_none_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find() is None
    with pytest.raises(NoRack, match="'lab'"):
        find("lab")
    monkeypatch.setenv("BEQUEST_RACK", "lab")
    with pytest.raises(NoRack, match="BEQUEST_RACK"):
        find()
    for ended in ("embedded-77", str(base_directory() / "embedded-77")):
        monkeypatch.setenv("BEQUEST_RACK", ended)
        assert find() is None
        assert find(ended) is None


def test_a_name_is_claimed_once(rack: ClaimedDirectory) -> None:
    with pytest.raises(NameTaken):
        claim("lab")
    other = claim("lab2")
    other.remove()
    os.close(other.lock)
    assert rack.is_live() and not other.is_live()


def test_a_lock_that_nobody_holds_is_stale(base: Path) -> None:
    first = claim("lab")
    (first.path / "mmu.sock").touch()
    os.close(first.lock)
    assert not first.is_live()
    second = claim("lab")
    assert not (second.path / "mmu.sock").exists()
    (base / "half").mkdir()  # made by somebody killed before it had a lock
    third = claim("other")
    assert not (base / "half").exists()
    for claimed in (second, third):
        claimed.remove()
        os.close(claimed.lock)
    assert sorted(path.name for path in base.iterdir()) == [".lock"]


def test_nobody_removes_what_is_anothers_by_now(base: Path) -> None:
    first = claim("lab")
    directory._remove(first.path)
    second = claim("lab")
    first.remove()
    assert second.path.exists() and second.is_live()
    second.remove()
    assert not second.path.exists()
    os.close(first.lock)
    os.close(second.lock)


def test_a_child_holds_the_lock_too(rack: ClaimedDirectory) -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(read_end)
    duplicate = os.dup(rack.lock)
    os.close(rack.lock)
    rack.lock = duplicate
    assert RackDirectory(rack.path).is_live()
    os.close(write_end)
    os.waitpid(child, 0)


def test_notes(rack: ClaimedDirectory) -> None:
    notes = RackNotes("lab", 4711, "1.1", embedded=False)
    rack.write_notes(notes)
    assert RackDirectory(rack.path).notes() == notes
    with pytest.raises(NoRack):
        RackDirectory(Path("/")).notes()


def test_a_directory_that_was_deleted_is_made_again(rack: ClaimedDirectory) -> None:
    rack.write_notes(RackNotes("lab", 1, "v", embedded=False))
    assert not rack.restore(), "nothing is missing"
    shutil.rmtree(rack.path)
    assert not rack.is_live()
    assert rack.restore()
    assert rack.is_live() and rack.notes().supervisor == 1
    assert not rack.restore()


def test_it_is_not_waited_for_those_who_are_at_the_base(rack: ClaimedDirectory, base: Path) -> None:
    shutil.rmtree(rack.path)
    with open(base / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BlockingIOError):
            rack.restore()
    assert rack.restore()
