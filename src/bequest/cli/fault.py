"""``bequest fault``: makes a part of a rack fail for real, so that users can test their programs with it.

Nothing is simulated: memory is given up, processes are stopped or killed by signals. Each verb asks nothing, and says
exactly what it did.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import click

from bequest.cli.output import Output, json_option
from bequest.cli.racks import open_rack, processes, rack_option, rack_report
from bequest.cli.units import format_bytes, plural
from bequest.errors import UnknownProcess
from bequest.limits import TICKET_BYTES

if TYPE_CHECKING:
    from bequest.memory.rack import Rack

_KINDS = {
    "process": "Process",
    "element": "The server of memory element",
    "agent": "The agent of compute element",
    "mmu": "The Rack MMU",
    "monitor": "The rack monitor",
}
_WHOM = {"element": "memory element", "agent": "compute element"}
_HAPPENS = {signal.SIGKILL: "killed", signal.SIGSTOP: "stopped", signal.SIGCONT: "continued"}


@click.group("fault")
def command() -> None:
    """Make a part of a rack fail, for real: memory, processes, or the rack's own daemons."""


@command.command("memory", short_help="Lose the memory of an element, or a part of it.")
@click.argument("element")
@click.option(
    "--range",
    "run",
    metavar="START:LENGTH",
    help="Only these addresses, as 0x200000000000:64KiB; rounded outwards to whole pages.",
)
@click.option(
    "--flip",
    "place",
    metavar="ADDRESS",
    help="Lose nothing, but flip one bit of the byte at this address, as 0x200000000000.",
)
@rack_option
@json_option
@click.pass_obj
def memory(output: Output, element: str, run: str | None, place: str | None, rack_name: str | None) -> None:
    """Lose the memory of an element, or the part of it at some addresses.

    Who touches it gets MemoryFailure; its owners are told, or else their emergency contacts. An element that has lost
    all of its memory stays without: the rack allocates elsewhere.

    A flipped bit nobody is told of. If the memory is sealed, its checksums show it: to `Region.verify`, and soon to
    the element itself, which then takes the page away.
    """
    from bequest.memory.connections import expect
    from bequest.wire import messages as wire

    if run is not None and place is not None:
        raise click.UsageError("--range loses memory, --flip changes it: choose one")
    if place is not None:
        _flip(output, element, _address(place), rack_name)
        return
    start, nbytes = (0, 0) if run is None else _range(run)
    with open_rack(rack_name) as rack:
        reply = expect(
            rack.request(wire.BreakMemory(element, start, nbytes, os.urandom(TICKET_BYTES))),
            wire.MemoryBroken,
        )
    _say(
        output,
        {"fault": "memory", "element": element, "slabs": reply.slabs, "lost_bytes": reply.nbytes}
        | {"owners": reply.owners},
        f"Memory element {element} has lost {format_bytes(reply.nbytes)} in {plural(reply.slabs, 'slab')}, "
        f"owned by {', '.join(reply.owners) or 'nobody'}.",
    )


@command.command("compute", short_help="Kill a compute element, with its processes.")
@click.argument("element")
@rack_option
@json_option
@click.pass_obj
def compute(output: Output, element: str, rack_name: str | None) -> None:
    """Kill a compute element: its agent, and every process that is attached there."""
    with open_rack(rack_name) as rack:
        known = rack_report(rack).computes
        if element not in known:
            raise click.UsageError(f"this rack has no compute element {element!r}; it has {', '.join(known)}")
        there = [
            p
            for p in processes(rack)
            if p.compute == element and p.state in ("attached", "lost") and p.os_pid
        ]
        victims = sorted({p.os_pid for p in there if p.os_pid != os.getpid()})
        agent = _daemon(rack, "agent", element)
    killed = [pid for pid in (*victims, agent) if _send(pid, signal.SIGKILL)]
    _say(
        output,
        {"fault": "compute", "element": element, "signal": "SIGKILL", "os_pids": killed}
        | {"processes": [p.name for p in there]},
        f"Compute element {element}: killed {plural(len(victims), 'process')} and its agent "
        f"(os pids {', '.join(map(str, killed))}).",
    )


@command.command("process", short_help="Kill, stop or continue a process.")
@click.argument("name")
@click.option(
    "--kill",
    "number",
    flag_value=int(signal.SIGKILL),
    type=int,
    default=int(signal.SIGKILL),
    help="It ends: SIGKILL.",
)
@click.option("--stop", "number", flag_value=int(signal.SIGSTOP), type=int, help="It hangs: SIGSTOP.")
@click.option("--cont", "number", flag_value=int(signal.SIGCONT), type=int, help="It goes on: SIGCONT.")
@rack_option
@json_option
@click.pass_obj
def process(output: Output, name: str, number: int, rack_name: str | None) -> None:
    """Kill (the default), stop or continue the process of this name."""
    with open_rack(rack_name) as rack:
        bearers = [p for p in processes(rack) if p.name == name and p.kind == "process" and p.os_pid]
    alive = [p for p in bearers if p.state in ("attached", "lost")]
    if not alive:
        states = ", ".join(p.state for p in bearers)
        raise UnknownProcess(
            f"no process {name!r} runs in this rack" + (f" (it is {states})" if states else "")
        )
    _signal(output, "process", name, alive[0].os_pid, signal.Signals(number))


@command.command("element", short_help="Kill the server of a memory element.")
@click.argument("name")
@rack_option
@json_option
@click.pass_obj
def element(output: Output, name: str, rack_name: str | None) -> None:
    """Kill the server of a memory element. Its memory stays: the rack starts another server over it."""
    _kill_daemon(output, "element", name, rack_name)


@command.command("mmu", short_help="Kill the Rack MMU.")
@rack_option
@json_option
@click.pass_obj
def mmu(output: Output, rack_name: str | None) -> None:
    """Kill the Rack MMU. The rack starts another, which restores what this one knew."""
    _kill_daemon(output, "mmu", "mmu", rack_name)


@command.command("monitor", short_help="Kill the rack monitor.")
@rack_option
@json_option
@click.pass_obj
def monitor(output: Output, rack_name: str | None) -> None:
    """Kill the rack monitor. Until the rack has started another, hangs are not noticed, and deaths later."""
    _kill_daemon(output, "monitor", "monitor", rack_name)


# --- how ---------------------------------------------------------------------------------------------------------


def _kill_daemon(output: Output, kind: str, name: str, rack_name: str | None) -> None:
    with open_rack(rack_name) as rack:
        pid = _daemon(rack, kind, name)
    _signal(output, kind, name, pid, signal.SIGKILL)


def _daemon(rack: Rack, kind: str, name: str) -> int:
    """The operating-system pid of one of the rack's own processes."""
    known = [daemon for daemon in rack_report(rack).daemons if daemon.kind == kind]
    for daemon in known:
        if daemon.name == name:
            return daemon.os_pid
    names = ", ".join(daemon.name for daemon in known) or "none"
    raise click.UsageError(f"this rack has no {_WHOM.get(kind, kind)} {name!r}; it has {names}")


def _signal(output: Output, kind: str, name: str, pid: int, number: signal.Signals) -> None:
    if not _send(pid, number):
        raise UnknownProcess(f"{name!r} (os pid {pid}) has gone already")
    document = {"fault": kind, "name": name, "signal": number.name, "os_pid": pid}
    who = f"{_KINDS[kind]} {name}" if kind in ("process", "element") else _KINDS[kind]
    _say(output, document, f"{who} (os pid {pid}) was {_HAPPENS[number]} ({number.name}).")


def _send(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _say(output: Output, document: dict[str, Any], text: str) -> None:
    if output.json:
        output.document(document)
    else:
        output.console.print(text, markup=False, soft_wrap=True)


def _flip(output: Output, element: str, address: int, rack_name: str | None) -> None:
    from bequest.memory.connections import expect
    from bequest.wire import messages as wire

    with open_rack(rack_name) as rack:
        expect(rack.request(wire.FlipBit(element, address, os.urandom(TICKET_BYTES))), wire.Done)
    _say(
        output,
        {"fault": "memory", "element": element, "flipped": address},
        f"One bit of the byte at {address:#x} in memory element {element} was flipped. Nobody was told.",
    )


def _address(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise click.UsageError(f"--flip {text!r}: write an address, as in 0x200000000000") from None


def _range(text: str) -> tuple[int, int]:
    from bequest.errors import BadConfig
    from bequest.runtime.config import parse_size

    start, colon, length = text.partition(":")
    try:
        address, nbytes = int(start, 0), parse_size(length)
    except (ValueError, BadConfig):
        address = nbytes = -1
    if not colon or address < 0 or nbytes <= 0:
        raise click.UsageError(f"--range {text!r}: write START:LENGTH, as in 0x200000000000:64KiB")
    return address, nbytes
