"""``bequest paxos``: a replicated lock and key-value service whose dead replicas are reincarnated.

``up`` runs one on this machine; on real hosts each runs ``site`` with the service's TOML file, and a rack. ``status``
asks every replica how it is; ``down`` ends what ``up`` has started.
"""

from __future__ import annotations

import logging
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bequest.cli.output import Output, json_option
from bequest.cli.paxos_place import DEFAULT_NAME, Place

if TYPE_CHECKING:
    from collections.abc import Callable

    from bequest.paxos.config import Service, Site
    from bequest.paxos.holder import Sockets

_VERBS = {"up": "bequest.cli.paxos_up", "status": "bequest.cli.paxos_status"}


class _Group(click.Group):
    """Imports the larger verbs on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return ["up", "site", "status", "down"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _VERBS:
            found: click.Command = import_module(_VERBS[cmd_name]).command
            return found
        return super().get_command(ctx, cmd_name)


@click.group("paxos", cls=_Group)
def command() -> None:
    """A replicated lock and key-value service. Clients speak the Redis protocol."""


config_option = click.option(
    "--config",
    "config_file",
    metavar="FILE.toml",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The service's file.",
)


def replica_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Those of `up` that are each site's: what a replica begins with, and how its failures are dealt with."""
    options = [
        click.option(
            "--heap",
            metavar="SIZE",
            default="16MiB",
            show_default=True,
            help="What a fresh replica's heap begins with.",
        ),
        click.option(
            "--no-reincarnation", is_flag=True, help="No standbys: the dead are replaced by fresh replicas."
        ),
        click.option(
            "--no-failure-notices",
            is_flag=True,
            help="Lost memory is told nobody: it is noticed by time-outs.",
        ),
    ]
    for option in reversed(options):
        function = option(function)
    return function


@command.command("site", short_help="Run one site of a service, on its host.")
@click.argument("site_name", metavar="SITE")
@click.option(
    "--config", "config_file", metavar="FILE.toml", required=True, help="The service's file.",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)  # fmt: skip
@click.option(
    "--founding", is_flag=True, help="The service is new: all its sites are started with this, once."
)
@click.option(
    "--standbys", type=click.IntRange(0, 8), default=1, show_default=True, help="How many stand by."
)
@replica_options
@click.option("--sockets", hidden=True, help="Descriptors of sockets that listen already.")
@click.option(
    "--place", "place_name", hidden=True, help="The service of `bequest paxos up` that it belongs to."
)
def site_command(
    site_name: str,
    config_file: Path,
    founding: bool,
    standbys: int,
    heap: str,
    no_reincarnation: bool,
    no_failure_notices: bool,
    sockets: str | None,
    place_name: str | None,
) -> int:
    """Run a site of a service until Ctrl-C: its replica, and its standbys.

    The site's rack must run (`bequest up`). A service is founded once, by starting all its sites with --founding. A
    site that is started without joins the service as a fresh replica, unless the rack still has its memory.
    """
    from bequest.paxos.config import read_service
    from bequest.paxos.holder import Holder, Options
    from bequest.paxos.worker import work
    from bequest.runtime.config import parse_size

    service = read_service(config_file)
    site = service.site(site_name)
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format=f"%(asctime)s {site.name} %(process)d %(message)s"
    )
    if place_name is not None:
        Place(place_name).lock(site.name)
    options = Options(
        founding=founding,
        heap_bytes=parse_size(heap),
        standbys=standbys,
        reincarnation=not no_reincarnation,
        failure_notices=not no_failure_notices,
    )
    return Holder(service, site, _sockets(site, sockets), options, work).run()


def _sockets(site: Site, inherited: str | None) -> Sockets:
    from bequest.paxos.holder import Sockets, listen

    if inherited is None:
        return Sockets(listen(site.peers), listen(site.clients))
    peers, clients = (socket.socket(fileno=int(fd)) for fd in inherited.split(","))
    return Sockets(peers, clients)


@command.command("down", short_help="End the service that `up` has started.")
@click.argument("name", default=DEFAULT_NAME)
@json_option
@click.pass_obj
def down(output: Output, name: str) -> int:
    """End the service of this NAME on this machine, and its racks. All that it knows is gone then."""
    from bequest.cli.down import end_rack
    from bequest.runtime.directory import running

    place = Place(name)
    service = place.read()
    ended = place.end()
    racks = {site.rack for site in service.sites}
    for rack in running():
        if rack.name in racks:
            end_rack(rack)
    place.remove()
    if output.json:
        output.document({"ended": name, "os_pids": ended})
    else:
        output.console.print(f"Service {name} has ended.", markup=False)
    return 0


def find_service(name: str, config_file: Path | None) -> Service:
    """From its file, or that of `bequest paxos up`."""
    from bequest.paxos.config import read_service

    return Place(name).read() if config_file is None else read_service(config_file)
