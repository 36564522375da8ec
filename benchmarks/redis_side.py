"""A Redis server of our own, as Debian packages it: filled, written to disk, killed, started again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PATIENCE_SECONDS = 300.0
POLL_SECONDS = 0.001


def missing() -> str:
    """Why there is no Redis to measure against; empty if there is one."""
    if shutil.which("redis-server") is None:
        rights = "make bench installs it" if os.geteuid() == 0 else "only root can install it"
        return f"no redis-server (Debian: apt-get install redis-server; {rights})"
    return "" if find_spec("redis") else "the Python package redis is not installed"


def server_version() -> str:
    """The version of the redis-server that would be run."""
    if shutil.which("redis-server") is None:
        return "not installed"
    said = subprocess.run(["redis-server", "--version"], check=True, capture_output=True, text=True).stdout
    return next((word.removeprefix("v=") for word in said.split() if word.startswith("v=")), said.strip())


def redis_client(socket: str) -> Any:
    """A client of the server at that socket."""
    return import_module("redis").Redis(unix_socket_path=socket)


class RedisServer:
    """It keeps its file and its socket in a directory that the caller removes."""

    def __init__(self, directory: Path, *options: str) -> None:
        self._directory = directory
        self._options = options
        self._socket = directory / "redis.sock"
        self._redis: Any = import_module("redis")
        self.client: Any = redis_client(self.socket)
        self._start()

    def _start(self) -> None:
        """Neither side compresses: the values are alike, and would shrink to nothing."""
        options = ["--port", "0", "--save", "", "--rdbcompression", "no", "--enable-debug-command", "yes"]
        where = ["--unixsocket", str(self._socket), "--dir", str(self._directory)]
        with (self._directory / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["redis-server", *options, *self._options, *where], stdout=log, stderr=log
            )

    @property
    def socket(self) -> str:
        """For clients in other processes."""
        return str(self._socket)

    def wait(self) -> None:
        """Until it answers."""
        self._first_answer("none")

    def fill(self, values: int, value_bytes: int) -> None:
        """So many values, in memory and in its file."""
        self._first_answer("none")
        self.client.execute_command("DEBUG", "POPULATE", values, "value", value_bytes)
        self.client.save()

    def restart_seconds(self) -> float:
        """From SIGKILL until a GET has been answered by a server that was started as soon as the first had gone."""
        started = time.perf_counter()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._start()
        value = self._first_answer("value:1")
        seconds = time.perf_counter() - started
        assert value is not None, "Redis has lost what it had saved"
        return seconds

    def _first_answer(self, key: str) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return self.client.get(key)
            except (self._redis.BusyLoadingError, self._redis.ConnectionError):
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(POLL_SECONDS)

    def close(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()
