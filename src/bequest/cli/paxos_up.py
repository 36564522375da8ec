"""``bequest paxos up``: a replicated service on this machine, each site with a rack of its own.

The launcher binds all sockets, so it knows all addresses; it starts the racks, and for each site a holder that
inherits the site's sockets. It watches over them: a holder that was killed is started again, on the same sockets, and
so is a rack. When it ends, it ends the holders first and then the racks, so nothing is left. If it is killed itself,
the service goes on, and ``bequest paxos down`` ends it.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import click

from bequest.cli.down import end_rack
from bequest.cli.output import Output, json_option
from bequest.cli.paxos import replica_options
from bequest.cli.paxos_place import DEFAULT_NAME, Place
from bequest.errors import RackFault

if TYPE_CHECKING:
    import socket

    from bequest.paxos.config import Service, Site
    from bequest.paxos.status import Report
    from bequest.runtime.directory import RackDirectory

_LETTERS = "abcdefghi"
_ELEMENTS = 2  # in each rack: a replica whose memory has failed with its element finds other memory
_READY_SECONDS = 120.0  # making gigabytes of memory ready takes some
_PAUSE_SECONDS = 5.0  # before a site is started again that has given up
_ASK_SECONDS = 1.0
_LOOK_INTERVAL = 0.5  # seconds between looks whether the racks are there
_END_SECONDS = 10.0
_NO_KEEP_SECONDS = 0.05


@click.command("up")
@click.option("--name", default=DEFAULT_NAME, show_default=True, help="The service's name.")
@click.option(
    "--replicas", type=click.IntRange(1, len(_LETTERS)), default=3, show_default=True, help="How many sites."
)
@click.option(
    "--port", type=click.IntRange(0, 65000), default=7379, show_default=True,
    help="Clients' port of the first site; the others have the next ones. 0: any.",
)  # fmt: skip
@click.option(
    "--memory", metavar="SIZE", help="Of each rack [default: a share of half of what is available]."
)
@replica_options
@json_option
@click.pass_obj
def command(
    output: Output,
    name: str,
    replicas: int,
    port: int,
    memory: str | None,
    heap: str,
    no_reincarnation: bool,
    no_failure_notices: bool,
) -> int:
    """Run a replicated service on this machine, until Ctrl-C or `bequest paxos down`.

    Each site has a rack of its own, a replica and a standby. Clients speak the Redis protocol to any of them.
    """
    flags = (
        ["--heap", heap]
        + ["--no-reincarnation"] * no_reincarnation
        + ["--no-failure-notices"] * no_failure_notices
    )
    with ExitStack() as stack:
        launcher = Launcher(Place(name), replicas, port, _share(memory, replicas), flags)
        stack.callback(launcher.close)
        launcher.start()
        _announce(output, launcher)
        launcher.watch()
    if not output.json:
        output.console.print(f"Service {name} has ended.", markup=False)
    return 0


def _share(memory: str | None, replicas: int) -> int:
    from bequest.runtime.config import default_size, parse_size

    return default_size() // replicas if memory is None else parse_size(memory)


class Launcher:
    """The service's racks and holders."""

    def __init__(self, place: Place, replicas: int, port: int, memory: int, flags: list[str]) -> None:
        from bequest.paxos.config import Address, Service, Site, check_service

        self._place = place
        self._memory = memory
        self._flags = flags
        names = _LETTERS[:replicas]
        self.service: Service = check_service(
            Service(
                place.name,
                tuple(
                    Site(
                        site,
                        f"{place.name}-{site}",
                        Address("127.0.0.1", 0),
                        Address("127.0.0.1", port + number if port else 0),
                    )
                    for number, site in enumerate(names)
                ),
            )
        )
        self._sockets: dict[str, tuple[socket.socket, socket.socket]] = {}
        self._racks: dict[str, RackDirectory] = {}
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._selector = selectors.DefaultSelector()
        self._gave_up: dict[str, float] = {}  # sites, and when
        self._is_ending = False
        self._is_made = False

    # --- the beginning ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Everything, until there is a leader. Raises BequestError or OSError, which says why not."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._end)
        self._place.make()
        self._is_made = True
        self._bind()
        self._place.write(self.service)
        for site in self.service.sites:
            self._start_rack(site)
        for site in self.service.sites:
            self._start_holder(site, founding=True)
        self._wait_for_leader()

    def _bind(self) -> None:
        """Any port 0 becomes the one that the kernel has chosen."""
        import msgspec

        from bequest.paxos.config import Address
        from bequest.paxos.holder import listen

        sites = []
        for site in self.service.sites:
            peers, clients = self._sockets[site.name] = (listen(site.peers), listen(site.clients))
            bound = [Address(*one.getsockname()[:2]) for one in (peers, clients)]
            sites.append(msgspec.structs.replace(site, peers=bound[0], clients=bound[1]))
        self.service = msgspec.structs.replace(self.service, sites=tuple(sites))

    def _start_rack(self, site: Site) -> None:
        from bequest.limits import ORPHAN_KEEP
        from bequest.runtime.config import make_config
        from bequest.runtime.embedded import start_detached

        elements = [f"dram{number}:{self._memory}" for number in range(_ELEMENTS)]
        # Without reincarnation nobody is to inherit: the memory of the dead need not be kept for them.
        keep = _NO_KEEP_SECONDS if "--no-reincarnation" in self._flags else ORPHAN_KEEP
        config = make_config(name=site.rack, memory=elements, orphan_keep=keep)
        self._racks[site.name] = start_detached(config)

    def _start_holder(self, site: Site, *, founding: bool) -> None:
        sockets = [one.fileno() for one in self._sockets[site.name]]
        arguments = [
            sys.executable, "-m", "bequest.cli", "paxos", "site", site.name,
            "--config", str(self._place.file), "--place", self._place.name,
            "--sockets", ",".join(map(str, sockets)),
            *self._flags, *["--founding"] * founding,
        ]  # fmt: skip
        holder = self._holders[site.name] = subprocess.Popen(
            arguments, pass_fds=sockets, stdin=subprocess.DEVNULL
        )
        self._selector.register(os.pidfd_open(holder.pid), selectors.EVENT_READ, site)

    def _wait_for_leader(self) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while not self._is_ending and not any(report.role == "leader" for report in self.reports()):
            self._look()
            if time.monotonic() > deadline:
                raise RackFault(
                    f"the service has no leader within {_READY_SECONDS:g} s; what was logged may say why"
                )
            time.sleep(0.02)

    def reports(self) -> list[Report]:
        """What the replicas that answer say."""
        from bequest.paxos.status import ask

        found = []
        for site in self.service.sites:
            with suppress(OSError, RackFault):
                found.append(ask(self.service.name, site.peers, _ASK_SECONDS))
        return found

    # --- watching ---------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Until it is to end."""
        while not self._is_ending:
            self._look(_LOOK_INTERVAL)

    def _look(self, seconds: float = 0) -> None:
        for key, _ in self._selector.select(seconds):
            if not self._is_ending:
                self._replace(key.data, key.fd)
        for site in self.service.sites:
            if not self._is_ending and not self._racks[site.name].is_live():
                click.echo(f"The rack of site {site.name} has ended; it is started again.", err=True)
                self._start_rack(site)
            if site.name in self._gave_up and time.monotonic() - self._gave_up[site.name] > _PAUSE_SECONDS:
                del self._gave_up[site.name]
                self._start_holder(site, founding=False)

    def _replace(self, site: Site, pidfd: int) -> None:
        """Its holder has ended."""
        self._selector.unregister(pidfd)
        os.close(pidfd)
        code = self._holders.pop(site.name).wait()
        if code < 0:
            click.echo(f"The holder of site {site.name} was killed; it is started again.", err=True)
            self._start_holder(site, founding=False)
        else:
            click.echo(f"Site {site.name} has given up (exit code {code}); it will be tried again.", err=True)
            self._gave_up[site.name] = time.monotonic()

    # --- the end ----------------------------------------------------------------------------------------------------

    def _end(self, *_: object) -> None:
        self._is_ending = True

    def close(self) -> None:
        """Ends everything that was started."""
        for holder in self._holders.values():
            holder.terminate()
        for holder in self._holders.values():
            try:
                holder.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                holder.kill()
                holder.wait()
        for key in list(self._selector.get_map().values()):
            os.close(key.fd)
        self._selector.close()
        for rack in self._racks.values():
            if rack.is_live():
                end_rack(rack)
        for pair in self._sockets.values():
            for one in pair:
                one.close()
        if self._is_made:
            self._place.remove()


def _announce(output: Output, launcher: Launcher) -> None:
    service = launcher.service
    if output.json:
        output.document(
            {
                "service": service.name,
                "pid": os.getpid(),
                "sites": [
                    {
                        "site": site.name,
                        "rack": site.rack,
                        "peers": str(site.peers),
                        "clients": str(site.clients),
                    }
                    for site in service.sites
                ],
            }
        )
        return
    from rich.text import Text

    console = output.console
    console.print(
        Text.assemble(
            ("● ", "green"), "Service ", (service.name, "bold"), f" is ready (process {os.getpid()})"
        )
    )
    for site in service.sites:
        console.print(
            f"site {site.name}  clients {site.clients}  rack {site.rack}", markup=False, highlight=False
        )
    first = service.sites[0].clients
    named = "" if service.name == DEFAULT_NAME else f" {service.name}"
    console.print(
        f"to use it   redis-cli -p {first.port}, or any other Redis client", markup=False, highlight=False
    )
    console.print(f"to see it   bequest paxos status{named}", markup=False, highlight=False)
    console.print(f"to end it   Ctrl-C, or bequest paxos down{named}", markup=False, highlight=False)
    console.file.flush()
