"""An etcd cluster of three local members with its default settings, as Debian packages it: started, killed, asked."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .measure import moment_of
from .writers import EtcdMember

MEMBERS = 3
POLL_SECONDS = 0.005
ASK_SECONDS = 1.0


def missing() -> str:
    """Why there is no etcd to measure against; empty if there is one."""
    if shutil.which("etcd") is not None:
        return ""
    rights = "make bench installs it" if os.geteuid() == 0 else "only root can install it"
    return f"no etcd (Debian: apt-get install etcd-server; {rights})"


def server_version() -> str:
    """The version of the etcd that would be run."""
    if missing():
        return "not installed"
    said = subprocess.run(["etcd", "--version"], check=True, capture_output=True, text=True).stdout
    return said.splitlines()[0].removeprefix("etcd Version: ")


class EtcdCluster:
    """Its members keep what they have in a directory that the caller removes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.ports = free_ports(MEMBERS)
        self._peers = free_ports(MEMBERS)
        self._processes = [self._start(member, "new") for member in range(MEMBERS)]

    def _start(self, member: int, state: str) -> subprocess.Popen[bytes]:
        client = f"http://127.0.0.1:{self.ports[member]}"
        peer = f"http://127.0.0.1:{self._peers[member]}"
        cluster = ",".join(f"m{number}=http://127.0.0.1:{port}" for number, port in enumerate(self._peers))
        options = {
            "name": f"m{member}",
            "data-dir": str(self._directory / f"m{member}"),
            "listen-client-urls": client,
            "advertise-client-urls": client,
            "listen-peer-urls": peer,
            "initial-advertise-peer-urls": peer,
            "initial-cluster": cluster,
            "initial-cluster-state": state,
        }
        arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
        with (self._directory / f"m{member}.log").open("ab") as log:
            return subprocess.Popen(["etcd", *arguments], stdout=log, stderr=log)

    def members(self) -> list[EtcdMember]:
        """Ways in, for a writer."""
        return [EtcdMember("127.0.0.1", port) for port in self.ports]

    # --- how it is --------------------------------------------------------------------------------------------------

    def _ask(self, member: int, path: str, question: dict[str, Any]) -> dict[str, Any]:
        url = f"http://127.0.0.1:{self.ports[member]}/v3/{path}"
        with urllib.request.urlopen(url, json.dumps(question).encode(), ASK_SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def leader(self) -> int:
        """The member that leads. Raises LookupError if there is none at the moment."""
        for member in range(MEMBERS):
            try:
                status = self._ask(member, "maintenance/status", {})
            except (OSError, urllib.error.URLError):
                continue
            if status.get("leader", "0") == status["header"]["member_id"]:
                return member
        raise LookupError("no member of etcd says that it leads")

    def is_healthy(self) -> bool:
        """Whether all members follow one leader, and have what it has."""
        try:
            states = [self._ask(member, "maintenance/status", {}) for member in range(MEMBERS)]
        except (OSError, urllib.error.URLError):
            return False
        leaders = {state.get("leader", "0") for state in states}
        indices = {state.get("raftAppliedIndex") for state in states}
        return len(leaders) == 1 and leaders != {"0"} and len(indices) == 1

    def wait_until_healthy(self) -> float:
        """When that was so."""
        return moment_of(self.is_healthy, "etcd is not healthy", POLL_SECONDS)

    def count(self, prefix: str) -> int:
        """How many keys there are below a prefix; asked of a majority, as etcd's reads are."""
        key, end = prefix.encode(), prefix[:-1].encode() + bytes([prefix.encode()[-1] + 1])
        question = {"key": _base64(key), "range_end": _base64(end), "count_only": True}
        return int(self._ask(self.leader(), "kv/range", question).get("count", 0))

    # --- what is done to it -----------------------------------------------------------------------------------------

    def kill_leader(self) -> tuple[int, float]:
        """Which member that was, and when it was killed."""
        leader = self.leader()
        killed = time.perf_counter()
        self._processes[leader].send_signal(signal.SIGKILL)
        return leader, killed

    def restart(self, member: int) -> None:
        """As an operator or a service manager would, with its data still there."""
        self._processes[member].wait()
        self._processes[member] = self._start(member, "existing")

    def close(self) -> None:
        """Ends it at once."""
        for process in self._processes:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def _base64(text: bytes) -> str:
    return base64.b64encode(text).decode()


# --- load -----------------------------------------------------------------------------------------------------------


def put_request(key: bytes, value: bytes) -> bytes:
    """etcdserverpb.PutRequest as it travels: two fields of bytes, each shorter than 128."""
    return b"\x0a%c%b\x12%c%b" % (len(key), key, len(value), value)


def no_grpc() -> str:
    """Why etcd cannot be loaded as its own clients do; empty if it can."""
    return "" if find_spec("grpc") else "the Python package grpcio is not installed"


def pipelined_rate(ports: list[int], clients: int, depth: int, writes: int, value: bytes) -> float:
    """Acknowledged puts a second of so many clients, each with so many under way, through etcd's own gRPC."""
    grpc: Any = import_module("grpc")

    own = [("grpc.use_local_subchannel_pool", 1)]  # else clients of one process share a connection
    channels = [
        grpc.insecure_channel(f"127.0.0.1:{ports[number % len(ports)]}", options=own)
        for number in range(clients)
    ]
    puts = [_put_call(channel) for channel in channels]
    puts[0](put_request(b"load:warm", value), wait_for_ready=True)
    started = time.perf_counter()
    under_way: list[list[Any]] = [[] for _ in puts]
    for number in range(writes):
        queue = under_way[number % clients]
        if len(queue) == depth:
            queue.pop(0).result()
        queue.append(puts[number % clients].future(put_request(b"load:%d" % number, value)))
    for queue in under_way:
        for call in queue:
            call.result()
    seconds = time.perf_counter() - started
    for channel in channels:
        channel.close()
    return writes / seconds


def latencies(port: int, count: int, value: bytes) -> list[float]:
    """Seconds of one client's puts, one after the other."""
    grpc: Any = import_module("grpc")

    found = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        put = _put_call(channel)
        put(put_request(b"alone:warm", value), wait_for_ready=True)
        for number in range(count):
            started = time.perf_counter()
            put(put_request(b"alone:%d" % number, value))
            found.append(time.perf_counter() - started)
    return found


def _put_call(channel: Any) -> Any:
    return channel.unary_unary("/etcdserverpb.KV/Put")
