"""``bequest run -- CMD``: runs a program where the rack places it.

The program finds the rack and its compute element in its environment; `bequest.connect` and `Rack.attach` look there.
If a rack runs, this process becomes the program. If none does, it starts an embedded rack and stays beside the program,
holding the connection that keeps that rack alive, passes signals on, and ends as the program did.
"""

from __future__ import annotations

import os
import signal
import subprocess
from typing import TYPE_CHECKING, NoReturn

import click

from bequest.cli.output import Output, json_option

if TYPE_CHECKING:
    from bequest.memory.rack import Rack

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as every shell has it
_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)  # the program gets these from the terminal itself


@click.command("run", context_settings={"allow_interspersed_args": False})
@click.option(
    "--rack",
    "rack_name",
    metavar="NAME",
    help="The rack [default: $BEQUEST_RACK, yours, or a new one].",
)
@click.option("--compute", metavar="NAME", help="The compute element [default: the rack places it].")
@click.argument("arguments", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@json_option
@click.pass_obj
def command(output: Output, rack_name: str | None, compute: str | None, arguments: tuple[str, ...]) -> int:
    """Run a program on a compute element of the rack.

    Sets BEQUEST_RACK and BEQUEST_COMPUTE for it; the exit code is the program's. Without a running rack, it gets an
    embedded one for as long as it runs. With --json, errors of bequest itself are JSON; the rest is the program's.
    """
    from bequest.memory.rack import COMPUTE_VARIABLE, RACK_VARIABLE, Rack
    from bequest.runtime.directory import find
    from bequest.runtime.embedded import start_embedded

    found = find(rack_name)
    with Rack((found or start_embedded()).path) as rack:
        environment = os.environ | {
            RACK_VARIABLE: str(rack.directory),
            COMPUTE_VARIABLE: _place(rack, compute),
        }
        try:
            if found is None:
                return _run_beside(list(arguments), environment)
            _become(list(arguments), environment)
        except OSError as error:
            output.error(type(error).__name__, f"cannot run {arguments[0]!r}: {error.strerror}")
            return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE


def _place(rack: Rack, compute: str | None) -> str:
    """The compute element asked for, which must be there, or the one that the rack chooses."""
    from bequest.cli.racks import rack_report
    from bequest.memory.connections import expect
    from bequest.wire import messages as wire

    if compute is None:
        return expect(rack.request(wire.PlaceProcess()), wire.Placed).compute
    known = rack_report(rack).computes
    if compute not in known:
        raise click.UsageError(
            f"rack {rack.name!r} has no compute element {compute!r}; it has {', '.join(known)}"
        )
    return compute


def _become(arguments: list[str], environment: dict[str, str]) -> NoReturn:
    """Turns this process into the program, with the signals that Python ignores at their defaults again."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    os.execvpe(arguments[0], arguments, environment)


def _run_beside(arguments: list[str], environment: dict[str, str]) -> int:
    """Runs the program as a child, and ends as it does."""
    early: list[int] = []  # for the program, which may have begun by then
    child: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: object) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for number in _PASSED_ON:
        signal.signal(number, pass_on)
    for number in _FROM_TERMINAL:
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(arguments, env=environment, close_fds=False)
    for missed in early:
        child.send_signal(missed)
    status = child.wait()
    if status >= 0:
        return status
    if -status != signal.SIGKILL:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)  # so that a shell sees what has happened
    return 128 - status
