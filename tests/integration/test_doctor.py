"""`bequest doctor`: what it finds on this machine, in a container that forbids things, and in a rack."""

from __future__ import annotations

import ctypes
import errno
import json
import platform
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from screen import Screen, fits


def test_doctor_without_a_rack(bequest: Screen) -> None:
    answer = bequest.document("doctor")
    assert answer["works"] and answer["audit"] is None
    checks = {check["id"]: check for check in answer["checks"]}
    assert checks.keys() >= {
        "platform", "kernel", "native_core", "memfd", "collapse", "populate", "userfaultfd", "pidfd", "robust_futex",
        "futex_waitv", "mappings", "descriptors", "cgroup", "hugetlb", "overcommit", "shm", "ptrace", "window",
    }  # fmt: skip
    for check in checks.values():
        assert check.keys() == {"id", "name", "status", "required", "found", "affects", "remedy"}
        assert check["status"] in {"ok", "degraded", "missing"} and check["found"]
    told = bequest.says("doctor", columns=80)
    assert fits(told, 80) and "Bequest works here." in told and "No rack is running" in told


def test_doctor_audits_the_rack(
    bequest: Screen, attached: AbstractContextManager[Callable[[], None]]
) -> None:
    with attached:
        audit = bequest.document("doctor")["audit"]
        assert audit.keys() == {"rack", "error", "findings", "groups", "slabs"}
        assert (audit["rack"], audit["error"], audit["findings"]) == ("default", None, [])
        assert audit["slabs"] > 0
        assert "has exactly one owner" in bequest.says("doctor")


def test_doctor_sees_a_window_that_cannot_be_had(bequest: Screen) -> None:
    done = bequest(
        "doctor", "--json", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    )
    assert done.returncode == 1
    answer = json.loads(done.stdout)
    window = next(check for check in answer["checks"] if check["id"] == "window")
    assert not answer["works"] and window["status"] == "missing" and "8192 MiB" in window["found"]


def forbid(*system_calls: int) -> None:
    """As a container does it, for this process and its children: they fail with EPERM."""
    load, equal, answer = 0x20, 0x15, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    program = [(load, 0, 0, 0), *((equal, len(system_calls) - i, 0, n) for i, n in enumerate(system_calls))]
    packed = b"".join(
        struct.pack("HBBI", *line) for line in [*program, (answer, 0, 0, allow), (answer, 0, 0, refuse)]
    )
    kept = ctypes.create_string_buffer(packed)
    filter_ = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(packed) // 8, ctypes.addressof(kept)))
    library = ctypes.CDLL(None, use_errno=True)
    no_new_privileges, set_filter, by_program = 38, 22, 2
    assert library.prctl(no_new_privileges, 1, 0, 0, 0) == 0
    assert library.prctl(set_filter, by_program, filter_, 0, 0) == 0


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")
def test_doctor_sees_what_a_container_forbids(bequest: Screen) -> None:
    forbidden = {"ptrace": 101, "userfaultfd": 323, "futex_waitv": 449, "robust_futex": 274}
    done = bequest("doctor", "--json", preexec_fn=lambda: forbid(*forbidden.values()))
    answer = json.loads(done.stdout)
    assert answer["works"]
    degraded = {check["id"]: check for check in answer["checks"] if check["status"] == "degraded"}
    assert degraded.keys() >= forbidden.keys()
    assert all("Operation not permitted" in degraded[id_]["found"] for id_ in forbidden)


def test_doctor_says_clearly_that_it_is_the_wrong_platform(bequest: Screen) -> None:
    elsewhere = "import sys; from bequest.cli import main; sys.platform = 'darwin'; main(['doctor'])"
    done = subprocess.run(
        [sys.executable, "-c", elsewhere],
        env=bequest.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "Bequest runs on Linux only" in done.stdout
