"""``bequest standby --for NAME -- CMD``: a process that waits for another to die, and becomes CMD then.

It has imported everything and stands by in the rack, so nothing has to be started when it matters but CMD itself. CMD
finds in its environment whom it replaces, and attaches and steals by itself.
"""

from __future__ import annotations

import os
import shlex
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NoReturn

import click

from bequest.cli.output import Output, json_option
from bequest.cli.racks import open_rack, rack_option
from bequest.errors import RackGone

if TYPE_CHECKING:
    from bequest.memory.rack import Rack
    from bequest.memory.standby import Death

VICTIM_VARIABLE = "BEQUEST_VICTIM"
INCARNATION_VARIABLE = "BEQUEST_VICTIM_INCARNATION"
CAPABILITY_VARIABLE = "BEQUEST_CAPABILITY"
_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as every shell has it
_LOOK_INTERVAL = 0.5  # seconds after which it looks whether the rack is still there


@click.command("standby", context_settings={"allow_interspersed_args": False})
@click.option("--for", "victim", metavar="NAME", required=True, help="The process to stand by for.")
@click.option("--capability", metavar="HEX", help="What stealing from it needs; checked at once.")
@click.option("--group", metavar="HEX", help="The secret of its group [default: your default group].")
@click.option("--hung", is_flag=True, help="Run CMD also when it is only suspected to hang.")
@click.argument("arguments", metavar="-- CMD...", nargs=-1, required=True, type=click.UNPROCESSED)
@rack_option
@json_option
@click.pass_obj
def command(
    output: Output,
    victim: str,
    capability: str | None,
    group: str | None,
    hung: bool,
    arguments: tuple[str, ...],
    rack_name: str | None,
) -> int:
    """Wait until a process dies, then run CMD.

    CMD gets BEQUEST_VICTIM, BEQUEST_VICTIM_INCARNATION, BEQUEST_CAPABILITY (in hex) and BEQUEST_RACK in its
    environment. The process need not be attached yet. With --json, says in one line each that it stands by, and for
    whom CMD is run; what follows is CMD's.
    """
    from bequest.memory.rack import RACK_VARIABLE

    deaths: SimpleQueue[Death] = SimpleQueue()
    key, secret = hexadecimal(capability, "--capability"), hexadecimal(group, "--group")
    with open_rack(rack_name) as rack:
        standby = rack.standby(
            for_=victim,
            capability=key,
            then=deaths.put,
            on_suspicion=deaths.put if hung else None,
            group=secret,
        )
        with standby:
            _say(output, {"standing_by_for": victim}, f"Standing by for {victim}.")
            death = _wait(rack, deaths)
        told = {"victim": victim, "incarnation": death.incarnation, "hung": death.is_suspicion}
        _say(
            output, told, f"{victim} {'hangs' if death.is_suspicion else 'has died'}: {shlex.join(arguments)}"
        )
        environment = os.environ | {
            RACK_VARIABLE: str(rack.directory),
            VICTIM_VARIABLE: victim,
            INCARNATION_VARIABLE: str(death.incarnation),
        }
        if capability is not None:
            environment[CAPABILITY_VARIABLE] = capability
    try:
        _become(list(arguments), environment)
    except OSError as error:
        output.error(type(error).__name__, f"cannot run {arguments[0]!r}: {error.strerror}")
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE


def _wait(rack: Rack, deaths: SimpleQueue[Death]) -> Death:
    """The first death. Raises `RackGone` when the rack ends: nobody would tell of one any more."""
    while True:
        try:
            return deaths.get(timeout=_LOOK_INTERVAL)
        except Empty:
            if not rack.is_alive():
                raise RackGone(
                    "the rack has ended; whoever was stood by for is not watched any more"
                ) from None


def _become(arguments: list[str], environment: dict[str, str]) -> NoReturn:
    import signal
    import sys

    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    sys.stdout.flush()
    os.execvpe(arguments[0], arguments, environment)


def _say(output: Output, document: dict[str, object], text: str) -> None:
    if output.json:
        output.line(document)
    else:
        click.echo(text, err=True)


def hexadecimal(text: str | None, option: str) -> bytes | None:
    """A capability or secret, as it is written on the command line."""
    if text is None:
        return None
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise click.UsageError(f"{option} is hexadecimal, as in 00112233445566778899aabbccddeeff") from None
