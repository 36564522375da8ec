"""A memory element's file as the world sees it: what each page holds, and who has it open."""

from __future__ import annotations

from bequest.sim.fake_shard import PAGE


class SimFile:
    def __init__(self, element: str, number: int, nbytes: int) -> None:
        self.element = element
        self.number = number
        self.nbytes = nbytes
        self.pages: dict[int, int] = {}  # page -> the stamp of the last store into it
        self.lost: dict[int, None] = {}  # pages
        self.is_closed = False  # at the element; whoever has it mapped still writes into it

    def close(self) -> None:
        self.is_closed = True

    def punch(self, offset: int, nbytes: int) -> None:
        for page in range(offset // PAGE, (offset + nbytes) // PAGE):
            self.pages.pop(page, None)

    def lose(self, offset: int, nbytes: int) -> None:
        self.punch(offset, nbytes)
        self.lost |= dict.fromkeys(range(offset // PAGE, (offset + nbytes) // PAGE))

    def copy(self, offset: int, target: SimFile, target_offset: int, nbytes: int) -> None:
        for index in range(nbytes // PAGE):
            stamp = self.pages.get(offset // PAGE + index, 0)
            target.pages[target_offset // PAGE + index] = stamp
