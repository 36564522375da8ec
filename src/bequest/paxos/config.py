"""What a service consists of: its sites, from a TOML file.

>>> name = "locks"
>>> [[site]]
>>> name = "a"
>>> rack = "rack-a"                 # by name or directory, as for bequest.connect
>>> peers = "10.0.0.1:7400"         # where the other sites reach it
>>> clients = "10.0.0.1:6379"       # where clients do
>>> [timing]                        # in seconds; all of it may be left out (`bequest.paxos.timing`)
>>> lease = 1.0

All sites of a service have the same file. Sites are added and taken away by starting all of them with another file;
which replicas vote is not written there: the service itself decides that, and remembers it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from bequest.errors import BadConfig, BadName
from bequest.ids import check_name
from bequest.paxos.timing import Timing

SITES_MAX = 9  # more voters only make each write slower
_MAY_BE_ZERO = ("drift", "lease_reads", "remove_after")


class Address(msgspec.Struct, frozen=True):
    """Where a socket listens: a host's name or number, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Site(msgspec.Struct, frozen=True):
    """A place where a replica runs: its rack, and its two addresses."""

    name: str
    rack: str
    peers: Address
    clients: Address


class Service(msgspec.Struct, frozen=True):
    """A service's name, its sites and its timing; checked."""

    name: str
    sites: tuple[Site, ...]
    timing: Timing = Timing()

    def site(self, name: str) -> Site:
        """The site of this name. Raises BadConfig."""
        for site in self.sites:
            if site.name == name:
                return site
        known = ", ".join(site.name for site in self.sites)
        raise BadConfig(f"service {self.name!r} has no site {name!r}; it has {known}")


class _SiteTable(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    rack: str
    peers: str
    clients: str


class _File(msgspec.Struct, forbid_unknown_fields=True):
    """As it is written."""

    name: str
    site: list[_SiteTable]
    timing: dict[str, float | bool] = {}


def read_service(path: Path) -> Service:
    """From a TOML file. Raises BadConfig, which says what is wrong with which."""
    try:
        text = path.read_text()
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadConfig(f"{path} is not TOML: {error}") from error
    try:
        return parse_service(text)
    except BadConfig as error:
        raise BadConfig(f"{path}: {error}") from error


def parse_service(text: str) -> Service:
    """From the text of such a file. Raises BadConfig."""
    try:
        written = msgspec.toml.decode(text, type=_File)
    except msgspec.MsgspecError as error:
        raise BadConfig(str(error)) from error
    sites = tuple(
        Site(table.name, table.rack, parse_address(table.peers), parse_address(table.clients))
        for table in written.site
    )
    return check_service(Service(written.name, sites, _timing(written.timing)))


def write_service(service: Service) -> str:
    """The text of a file that `parse_service` reads as this."""
    timing: dict[str, Any] = msgspec.structs.asdict(service.timing)
    lines = [f"name = {_quoted(service.name)}", "[timing]"]
    lines += [f"{key} = {msgspec.json.encode(value).decode()}" for key, value in timing.items()]
    for site in service.sites:
        lines += [
            "[[site]]",
            *(f"{key} = {_quoted(str(getattr(site, key)))}" for key in _SiteTable.__struct_fields__),
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()  # a JSON string is one in TOML, too


def parse_address(text: str) -> Address:
    """``host:port``, or ``[::1]:port``. Raises BadConfig."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 0 <= int(port) <= 65535:
        raise BadConfig(f"{text!r} is no address; write HOST:PORT, as in 127.0.0.1:7400 or [::1]:7400")
    return Address(host, int(port))


def check_service(service: Service) -> Service:
    """The service, if it can be one. Raises BadConfig."""
    try:
        check_name(service.name, "service's name")
        for site in service.sites:
            check_name(site.name, "site's name")
    except BadName as error:
        raise BadConfig(str(error)) from error
    if not 1 <= len(service.sites) <= SITES_MAX:
        raise BadConfig(f"a service has 1 to {SITES_MAX} sites, not {len(service.sites)}")
    for what, values in (
        ("sites are called", [site.name for site in service.sites]),
        ("sites use the rack", [site.rack for site in service.sites]),
        (
            "sockets have the address",
            [str(at) for site in service.sites for at in (site.peers, site.clients)],
        ),
    ):
        for value in values:
            if values.count(value) > 1 and not value.endswith(":0"):
                raise BadConfig(f"two {what} {value!r}")
    _check_timing(service.timing)
    return service


def _timing(written: dict[str, float | bool]) -> Timing:
    known = Timing.__struct_fields__
    for name in written:
        if name not in known:
            raise BadConfig(f"timing has no {name!r}; it has {', '.join(known)}")
    try:
        return msgspec.convert(written, Timing)
    except msgspec.ValidationError as error:
        raise BadConfig(f"timing: {error}") from error


def _check_timing(timing: Timing) -> None:
    for name, value in msgspec.structs.asdict(timing).items():
        if not 0 <= value <= 3600 or (value == 0 and name not in _MAY_BE_ZERO):
            raise BadConfig(f"{name} is {value}; it must be more than 0 s, and at most 3600 s")
    if timing.lease < 2 * timing.heartbeat:
        raise BadConfig(
            f"a lease of {timing.lease} s is renewed with heartbeats, every {timing.heartbeat} s: it must be worth at"
            " least two of them"
        )
