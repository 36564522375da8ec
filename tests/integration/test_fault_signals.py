"""The fault handler and whoever else has an interest in SIGSEGV and SIGBUS."""

from __future__ import annotations

import platform
import signal
from pathlib import Path

import pytest

import actors
import fault_users as users
import watchers
from racks import RackUnderTest, Yard


def test_faulthandler_that_came_first_hears_of_nothing_and_of_everything_else(
    yard: Yard, rack: RackUnderTest, private_place: Path
) -> None:
    user = yard.actor(None, rack)
    log = private_place / "log"
    user.do(users.enable_faulthandler, str(log))
    user.do(actors.attach, "user")
    user.do(users.lose, "region")
    assert user.do(users.touch, "region", 3) == "MemoryFailure MemoryFailure MemoryFailure"
    assert user.do(users.touch_in_a_thread, "region") == "MemoryFailure"
    assert log.read_text() == ""
    user.start(users.read_nowhere)
    assert user.wait() == -signal.SIGSEGV
    assert "read_nowhere" in log.read_text()


def test_faulthandler_that_came_later_is_passed_by_at_the_next_act(
    yard: Yard, rack: RackUnderTest, private_place: Path
) -> None:
    user = yard.actor("user", rack)
    log = private_place / "log"
    user.do(users.enable_faulthandler, str(log))
    user.do(users.lose, "region")
    assert user.do(users.touch, "region", 3) == "MemoryFailure MemoryFailure MemoryFailure"
    assert user.do(users.touch_in_a_thread, "region") == "MemoryFailure"
    user.start(users.read_nowhere)
    assert user.wait() == -signal.SIGSEGV
    assert "read_nowhere" in log.read_text()


def test_faulthandler_may_go_again(yard: Yard, rack: RackUnderTest, private_place: Path) -> None:
    user = yard.actor("user", rack)
    user.do(users.enable_faulthandler, str(private_place / "log"))
    user.do(users.lose, "region")
    assert user.do(users.touch, "region") == "MemoryFailure"
    user.do(users.disable_faulthandler)
    assert user.do(users.touch, "region", 2) == "MemoryFailure MemoryFailure"
    user.start(users.read_nowhere)
    assert user.wait() == -signal.SIGSEGV


@pytest.mark.parametrize(
    ("act", "arguments", "number"),
    [
        (users.read_nowhere, (), signal.SIGSEGV),
        (users.cut_own_mapping, (), signal.SIGBUS),
        (users.send_itself, (signal.SIGSEGV,), signal.SIGSEGV),
        (users.send_itself, (signal.SIGBUS,), signal.SIGBUS),
    ],
)
def test_other_faults_kill_as_ever(
    yard: Yard, rack: RackUnderTest, act: object, arguments: tuple[int, ...], number: int
) -> None:
    user = yard.actor("user", rack)
    user.do(users.lose, "region")
    assert user.do(users.touch, "region") == "MemoryFailure"
    user.start(act, *arguments)
    assert user.wait() == -number


def test_memory_that_was_detached_from_kills(yard: Yard, rack: RackUnderTest) -> None:
    user = yard.actor("user", rack)
    address = user.do(actors.alloc, "region", 4096, 5)
    user.do(actors.detach)
    user.start(actors.peek, address)
    assert user.wait() == -signal.SIGSEGV


def test_a_forked_child_has_nothing_of_it(yard: Yard, rack: RackUnderTest) -> None:
    user = yard.actor("user", rack)
    address = user.do(users.lose, "region")
    assert user.do(users.touch_in_a_child, address) == -signal.SIGSEGV
    assert user.do(users.touch, "region") == "MemoryFailure"
    assert user.do(users.touch_in_a_child, address) == -signal.SIGSEGV
    assert user.do(users.touch, "region") == "MemoryFailure"


def test_the_raw_signal_kills_who_has_no_handler(yard: Yard, rack: RackUnderTest) -> None:
    user = yard.actor("user", rack)
    user.do(users.lose, "region")
    user.do(users.want_raw_signals, False)
    user.start(users.touch, "region")
    assert user.wait() == -signal.SIGBUS


def test_the_raw_signal_reaches_a_handler(yard: Yard, rack: RackUnderTest) -> None:
    user = yard.actor("user", rack)
    user.do(users.want_raw_signals, True)
    user.do(users.lose, "region")
    assert user.do(users.touch, "region") == "nothing"
    assert user.do(users.handled_signals) == [signal.SIGBUS]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of a system call")
def test_an_early_warning_of_the_hardware_reaches_a_handler_as_a_raw_signal(
    yard: Yard, rack: RackUnderTest
) -> None:
    user = yard.actor("user", rack)
    user.do(users.want_raw_signals, True)
    address = user.do(actors.alloc, "region", 4096, 5)
    user.do(watchers.machine_check, address, watchers.MCEERR_AO)
    assert user.do(users.handled_signals) == [signal.SIGBUS]


def test_the_raw_signal_reaches_a_handler_that_came_later(yard: Yard, rack: RackUnderTest) -> None:
    user = yard.actor("user", rack)
    user.do(users.lose, "region")
    user.do(users.want_raw_signals, False)
    user.do(users.handle_signals)
    assert user.do(users.touch, "region") == "nothing"
    assert set(user.do(users.handled_signals)) == {signal.SIGBUS}


@pytest.mark.parametrize("how", [users.touch_anew, users.wait_and_touch])
def test_faulthandler_that_came_later_is_passed_by(
    yard: Yard, rack: RackUnderTest, private_place: Path, how: object
) -> None:
    """At the next view, and for views that were there before, a moment later."""
    user = yard.actor("user", rack)
    log = private_place / "log"
    user.do(users.lose, "region")
    user.do(users.enable_faulthandler, str(log))
    assert user.do(how, "region") == "MemoryFailure"
    assert log.read_text() == ""
