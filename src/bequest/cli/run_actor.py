"""``bequest run-actor MODULE:CLASS``: runs an actor, with ``--standby`` in one process and a standby in another.

With a standby, this process is neither: it starts both, and another standby whenever one of them has died, for the one
that is left becomes the actor. They are the same command again; what they have become they say through a pipe. If this
process is killed, they go on, without anybody who would replace them.

An actor that hangs is ended if the user has said so: this process has started it, so it may. The rest is as with any
other death, and its inbox, which nobody may empty for a process that lives, is inherited too.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import selectors
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import click

from bequest.cli.output import Output, json_option
from bequest.cli.racks import rack_option
from bequest.cli.standby import hexadecimal

if TYPE_CHECKING:
    from bequest.actors.actor import Actor

_ENDING = (signal.SIGINT, signal.SIGTERM)
_FAILURES_MAX = 3  # processes that ended with an error of their own; the next one would, too


@click.command("run-actor")
@click.argument("target", metavar="MODULE:CLASS")
@click.option("--name", help="What the actor is called [default: the class's name, in lower case].")
@click.option("--standby", is_flag=True, help="Have another process stand by and go on when the actor dies.")
@click.option("--hung", is_flag=True, help="With --standby: also end an actor that is suspected to hang.")
@click.option("--capability", metavar="HEX", help="What inheriting needs in its group.")
@click.option("--group", metavar="HEX", help="The secret of its group [default: your default group].")
@click.option("--role", type=click.Choice(["actor", "standby"]), hidden=True)
@click.option("--report", type=int, hidden=True)
@rack_option
@json_option
@click.pass_obj
def command(
    output: Output,
    target: str,
    name: str | None,
    standby: bool,
    hung: bool,
    capability: str | None,
    group: str | None,
    role: str | None,
    report: int | None,
    rack_name: str | None,
) -> int:
    """Run an actor until Ctrl-C, or inherit it if it has died.

    MODULE:CLASS is a subclass of bequest.Actor, or a function made with bequest.function; the module is looked for in
    the current directory, too. Ctrl-C ends the actor, and its state with it. With --json, says in one line each what
    has become of its processes.
    """
    from bequest.memory.rack import RACK_VARIABLE, connect

    actor = _load(target)
    if hung and not standby:
        raise click.UsageError("--hung is about the actor of a --standby; alone, nobody would go on with it")
    called = name or actor.__name__.lower()
    key, secret = hexadecimal(capability, "--capability"), hexadecimal(group, "--group")
    with connect(rack_name) as rack:
        os.environ[RACK_VARIABLE] = str(rack.directory)
        if standby and role is None:
            return _Pair(output, called).run()
        from bequest.actors import running

        said = _Report(output, called, report)
        if role == "standby":
            running.stand_by(
                actor,
                name=called,
                rack=rack,
                group=secret,
                capability=key,
                ready=lambda: said("standing by"),
                inherited=lambda: said("inherited"),
                suspected=(lambda: said("hung")) if hung else None,
            )
        else:
            running.run(
                actor, name=called, rack=rack, group=secret, capability=key, ready=lambda: said("running")
            )
    return 0


def _load(target: str) -> type[Actor]:
    from bequest.actors.actor import Actor
    from bequest.actors.function import Function

    module, separator, name = target.partition(":")
    if not (module and separator and name):
        raise click.UsageError(f"{target!r} is not MODULE:CLASS, as in shop.stock:Counter")
    sys.path.insert(0, "")  # as `python -m` does
    try:
        found = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0] and error.name != module:
            raise
        raise click.UsageError(f"there is no module {module!r} here, or where Python looks") from None
    except AttributeError:
        raise click.UsageError(f"module {module!r} has no {name!r}") from None
    if isinstance(found, Function):
        return found.actor
    if not (isinstance(found, type) and issubclass(found, Actor)):
        raise click.UsageError(f"{target} is neither a subclass of bequest.Actor nor a bequest.function")
    return found


class _Report:
    """Says what this process has become: to who has started it, or to the user."""

    def __init__(self, output: Output, name: str, fd: int | None) -> None:
        self._output, self._name, self._fd = output, name, fd
        self._last = ""

    def __call__(self, state: str) -> None:
        if state == self._last:
            return
        self._last = state
        if self._fd is not None:
            with contextlib.suppress(OSError):  # it has gone; the actor goes on
                os.write(self._fd, state.encode() + b"\n")
        else:
            _say(self._output, self._name, state, os.getpid())


def _say(output: Output, name: str, state: str, pid: int) -> None:
    if output.json:
        output.line({"actor": name, "state": state, "pid": pid})
        return
    text = {
        "running": f"Actor {name} runs, in process {pid}.",
        "standing by": f"Process {pid} stands by for {name}.",
        "inherited": f"Process {pid} goes on as {name}.",
        "hung": f"Process {pid} of {name} hangs, and is killed.",
        "died": f"Process {pid} of {name} has died.",
    }[state]
    click.echo(text, err=True)


class _Member:
    """One of the two processes."""

    def __init__(self, role: str) -> None:
        reader, writer = os.pipe()
        arguments = [
            sys.executable,
            "-m",
            "bequest.cli",
            *sys.argv[1:],
            "--role",
            role,
            "--report",
            str(writer),
        ]
        self.process = subprocess.Popen(arguments, pass_fds=[writer])
        os.close(writer)
        self.reader = reader
        self.has_got_somewhere = False
        self.is_actor = False

    def close(self) -> int:
        os.close(self.reader)
        return self.process.wait()


class _Pair:
    """The actor and its standby, as long as there is one of them."""

    def __init__(self, output: Output, name: str) -> None:
        self._output, self._name = output, name
        self._is_ending = False
        self._failures = 0
        self._members: dict[int, _Member] = {}
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        for number in _ENDING:
            signal.signal(number, self._end)
        code = 0
        self._start("actor")
        while self._members:
            for ready, _ in self._selector.select(0.5):
                code = max(code, self._hear(self._members[ready.fd]))
        return code

    def _start(self, role: str) -> None:
        member = _Member(role)
        self._members[member.reader] = member
        self._selector.register(member.reader, selectors.EVENT_READ)
        if self._is_ending:
            member.process.terminate()

    def _hear(self, member: _Member) -> int:
        """What one of them has become. An exit code, if nothing can come of them any more."""
        said = os.read(member.reader, 1024).decode().split("\n")[:-1]
        for state in said:
            member.has_got_somewhere = True
            if state == "hung":
                self._kill_actor(member)
                continue
            member.is_actor = state in ("running", "inherited")
            if state == "running":
                self._start("standby")
            _say(self._output, self._name, state, member.process.pid)
        if said:
            return 0
        self._selector.unregister(member.reader)
        del self._members[member.reader]
        status = member.close()
        if status == 0:  # the actor has ended in good order; its standby finds that out
            return 0
        if status > 0:
            self._failures += 1
            if self._failures == _FAILURES_MAX or not member.has_got_somewhere:
                self._end()
                return status
        if not self._is_ending:
            _say(self._output, self._name, "died", member.process.pid)
            self._start("standby")
        return 0

    def _kill_actor(self, teller: _Member) -> None:
        """It is said to hang, by its standby; which may have become the actor meanwhile, and is not killed."""
        for member in self._members.values():
            if member.is_actor and member is not teller and member.process.poll() is None:
                _say(self._output, self._name, "hung", member.process.pid)
                member.process.kill()

    def _end(self, *_: object) -> None:
        self._is_ending = True
        for member in self._members.values():
            member.process.terminate()
