"""What holds for every test: a private place for racks, one printed seed, and nothing left behind.

A test run gets a runtime directory of its own, so that it meets neither the racks of whoever runs it nor
another test run beside it, and marks its environment, so that every process that it starts can be found again in
/proc. When the last test has ended, a rack directory, a file in /dev/shm or a process of ours that is still there
after the time that an embedded rack may linger is an error: Bequest promises to leave nothing behind, whatever
was killed.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import soaking

LINGER_SECONDS = (
    8.0  # an embedded rack outlives its last client for a second; a loaded machine stretches that
)
MARK = "BEQUEST_TEST_RUN"
HELPERS_OF_PYTHON = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell without job control starts what runs in the background so, and our programs would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--hypothesis-seed", None) is None:
        # Hypothesis's plugin reads the option when its own configure hook runs, after or before this one.
        seed = random.SystemRandom().getrandbits(32)
        config.option.hypothesis_seed = str(seed)
        from hypothesis import core

        core.global_force_seed = seed


def pytest_report_header(config: pytest.Config) -> str:
    return f"hypothesis seed: {config.getoption('--hypothesis-seed')} (replay with --hypothesis-seed=…)"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if not soaking.SCALE:
        return
    stats = terminalreporter.stats
    reports = [report for outcome in ("passed", "failed", "error") for report in stats.get(outcome, [])]
    terminalreporter.section("soak")
    for line in soaking.table([report for report in reports if report.user_properties or not report.passed]):
        terminalreporter.line(line)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("root") is not None and os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails the run when rack directories, shared-memory files or processes outlive it."""
    mark = secrets.token_hex(8)
    runtime = Path(tempfile.mkdtemp(prefix="bqt-", dir="/tmp"))  # short: a socket's path ends at 107 bytes
    files_before = shared_memory_files()
    with pytest.MonkeyPatch.context() as environment:
        for name in [name for name in os.environ if name.startswith("BEQUEST_")]:
            environment.delenv(name)
        environment.setenv("XDG_RUNTIME_DIR", str(runtime))
        environment.setenv(MARK, mark)
        yield
        deadline = time.monotonic() + LINGER_SECONDS
        while (litter := find_litter(runtime, mark, files_before)) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.environ.pop("BEQUEST_RACK", None)  # set by connect(), for the children of whoever calls it
    shutil.rmtree(runtime, ignore_errors=True)
    assert not litter, "left behind by the tests:\n  " + "\n  ".join(litter)


def find_litter(runtime: Path, mark: str, files_before: frozenset[str]) -> list[str]:
    """Everything of this test run that is still there, one line each."""
    kept = {runtime / "bequest", runtime / "bequest" / ".lock"}  # the base directory: the next rack needs it
    litter = [
        f"{path} (whoever kills a supervisor sweeps)" for path in sorted(set(runtime.glob("**/*")) - kept)
    ]
    litter += [f"/dev/shm/{name}" for name in sorted(shared_memory_files() - files_before)]
    litter += [f"process {pid}: {command}" for pid, command in processes_of(mark)]
    return litter


def shared_memory_files() -> frozenset[str]:
    return frozenset(name for name in os.listdir("/dev/shm") if "bequest" in name.lower())


def processes_of(mark: str) -> list[tuple[int, str]]:
    """Processes started by this run: they carry its mark in their environment, or are children of pytest itself."""
    found = []
    wanted = f"{MARK}={mark}".encode()
    for pid in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):
        if pid == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
            state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # gone meanwhile, or another user's
        if any(helper in command for helper in HELPERS_OF_PYTHON):
            continue
        if wanted in environment or (int(parent) == os.getpid() and state != "Z"):
            found.append((pid, command.replace(b"\0", b" ").decode(errors="replace").strip()))
    return found
