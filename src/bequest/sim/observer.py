"""What the world tells whoever checks it. The checkers themselves live outside (tests/sim/checkers.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bequest.sim.daemon import Daemon
    from bequest.sim.file import SimFile
    from bequest.sim.library import Handle, Library
    from bequest.sim.os_process import OsProcess
    from bequest.sim.world import World
    from bequest.wire import messages as wire


class Observer:
    """Each method may raise `Finding`; none changes anything."""

    def begun(self, world: World) -> None: ...

    def turn_ended(self, daemon: Daemon) -> None: ...

    def attached(self, process: OsProcess, library: Library) -> None: ...

    def detaching(self, process: OsProcess, library: Library) -> None: ...

    def process_ended(self, process: OsProcess) -> None: ...

    def allocated(self, process: OsProcess, library: Library, handle: Handle) -> None:
        """Fresh memory, whose contents nobody may count on."""

    def opened(self, process: OsProcess, library: Library, handle: Handle) -> None:
        """Its pages can be written by the process from now on."""

    def granting(self, process: OsProcess, library: Library, handle: Handle, serial: int) -> None: ...

    def received(self, process: OsProcess, library: Library, handle: Handle, serial: int) -> None: ...

    def subscribed(self, process: OsProcess, library: Library) -> None:
        """It is told of what happens from now on."""

    def told(self, process: OsProcess, library: Library, notice: wire.Message) -> None: ...

    def suspected(self, process: OsProcess) -> None:
        """By the rack monitor."""

    def stole(self, process: OsProcess, library: Library, stolen: wire.Stolen) -> None:
        """It has been answered so."""

    def lost(self, process: OsProcess, library: Library, handle: Handle) -> None:
        """The process finds that a region is not its own any more."""

    def stored(self, process: OsProcess, address: int, file: SimFile, page: int, stamp: int) -> None:
        """The store has landed in the page."""

    def loaded(self, process: OsProcess, library: Library, address: int, stamp: int) -> None: ...

    def ended(self, world: World) -> None:
        """All has healed, everybody has gone, and time enough has passed."""
