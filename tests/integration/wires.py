"""Connections between the sites of a service that can be cut: each site reaches each other by a wire of its own.

A wire is a proxy. While it is cut nothing passes in either direction, and nobody is told: what was sent stays in the
kernel's buffers, as on a network that has lost its route, and arrives when the wire is mended.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterable

_CHUNK = 1 << 16
Address = tuple[str, int]


class Wire:
    """From one site to another."""

    def __init__(self, loop: asyncio.AbstractEventLoop, to: Address) -> None:
        self._loop = loop
        self._to = to
        self._is_whole = asyncio.Event()
        self._is_whole.set()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address: Address = self._listening.getsockname()

    async def serve(self) -> None:
        self._server = await asyncio.start_server(self._carry, sock=self._listening)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await self._is_whole.wait()
            far_reader, far_writer = await asyncio.open_connection(*self._to)
            pumps = [
                asyncio.ensure_future(self._pump(*ends))
                for ends in ((reader, far_writer), (far_reader, writer))
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in pumps:
                pump.cancel()
            far_writer.close()
        writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                await self._is_whole.wait()
                writer.write(data)
                await writer.drain()

    def close(self) -> None:
        self._server.close()

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(self._is_whole.clear)

    def mend(self) -> None:
        self._loop.call_soon_threadsafe(self._is_whole.set)


class Wires:
    """Between all sites, by their names: from whom to whom."""

    def __init__(self, peers: dict[str, Address]) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="wires", daemon=True)
        self._thread.start()
        self._wires = {
            (here, there): Wire(self._loop, address)
            for here in peers
            for there, address in peers.items()
            if here != there
        }
        for wire in self._wires.values():
            asyncio.run_coroutine_threadsafe(wire.serve(), self._loop).result()

    def address(self, here: str, there: str) -> Address:
        """Where the one site reaches the other."""
        return self._wires[here, there].address

    def isolate(self, sites: Iterable[str]) -> None:
        """These sites have no way to the others, nor those to them."""
        apart = set(sites)
        for (here, there), wire in self._wires.items():
            if (here in apart) != (there in apart):
                wire.cut()

    def mend(self) -> None:
        for wire in self._wires.values():
            wire.mend()

    def close(self) -> None:
        async def end() -> None:
            for wire in self._wires.values():
                wire.close()
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
