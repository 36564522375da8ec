"""The text, and what both ways of counting it share: cutting it into work, into words, and into the reducers' parts.

Everything works on bytes. A word is a letter or underscore and what follows of letters, digits and underscores; every
byte beyond ASCII counts as a letter. So words of UTF-8 and of Latin-1 text stay whole, nothing has to be decoded, and
bytes that are no text at all do no harm.
"""

from __future__ import annotations

import os
import re
import sysconfig
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

ROUND_BYTES = (
    2 << 20
)  # text that a mapper works on at a time: large enough that each part fills a 2 MiB page or so
PIECE_BYTES = 8 << 20  # larger files are cut, so that several mappers can share one

_WORD = re.compile(rb"[A-Za-z_\x80-\xff][0-9A-Za-z_\x80-\xff]*")


class Piece(NamedTuple):
    """The lines of a file that begin at offsets from ``start`` up to ``stop``."""

    path: Path
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """About: it ends with a whole line."""
        return self.stop - self.start


# --- the input --------------------------------------------------------------------------------------------------------


class NoText(Exception):
    """There is nothing to count in what was given."""


def standard_library() -> list[Path]:
    """The source files of the Python standard library on this machine."""
    root = Path(sysconfig.get_path("stdlib"))
    return [path for path in _files_below(root) if path.suffix == ".py"]


def files_of(inputs: Iterable[Path]) -> list[Path]:
    """The files given, and all files in the directories given. Raises `NoText`."""
    files: list[Path] = []
    for path in inputs:
        if not os.access(path, os.R_OK):
            raise NoText(f"{path} does not exist or cannot be read")
        files += _files_below(path) if path.is_dir() else [path]
    return files


def _files_below(root: Path) -> list[Path]:
    """In a stable order. Leaves out hidden directories, and what others have installed into Python's."""
    found = []
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = [name for name in subdirectories if name[0] != "." and name != "site-packages"]
        found += [Path(directory, name) for name in names]
    return sorted(path for path in found if path.is_file() and os.access(path, os.R_OK))


def pieces_of(files: Iterable[Path]) -> list[Piece]:
    """The files as pieces of at most `PIECE_BYTES`. Raises `NoText` if all are empty."""
    pieces = []
    for path in files:
        size = path.stat().st_size
        starts = range(0, size, PIECE_BYTES)
        pieces += [Piece(path, start, min(start + PIECE_BYTES, size)) for start in starts]
    if not pieces:
        raise NoText("there is no text to count")
    return pieces


def shared_out(pieces: Iterable[Piece], mappers: int) -> list[list[Piece]]:
    """Pieces for each mapper, about the same number of bytes for all: the largest first, each to who has least."""
    shares: list[list[Piece]] = [[] for _ in range(mappers)]
    loads = [0] * mappers
    for piece in sorted(pieces, key=lambda piece: -piece.nbytes):
        least = loads.index(min(loads))
        shares[least].append(piece)
        loads[least] += piece.nbytes
    return shares


def rounds(pieces: Iterable[Piece]) -> Iterator[bytes]:
    """The text of the pieces, about `ROUND_BYTES` at a time; no word is cut."""
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        for text in _lines(piece):
            gathered.append(text)
            size += len(text)
            if size >= ROUND_BYTES:
                yield b"\n".join(gathered)
                gathered, size = [], 0
    if gathered:
        yield b"\n".join(gathered)


def _lines(piece: Piece) -> Iterator[bytes]:
    with piece.path.open("rb") as file:
        if piece.start > 0:  # the line that this offset cuts is the piece before's
            file.seek(piece.start - 1)
            file.readline()
        while (left := piece.stop - file.tell()) > 0:
            text = file.read(min(left, ROUND_BYTES))
            if not text:
                return
            yield text if text.endswith(b"\n") else text + file.readline()


# --- words ------------------------------------------------------------------------------------------------------------


def words_of(text: bytes | memoryview) -> list[bytes]:
    """All words, in order. Reads memory in place: of a region, nothing but the words themselves is copied out."""
    words: list[bytes] = _WORD.findall(text)
    return words


def partition(words: Iterable[bytes], reducers: int) -> list[bytes]:
    """The words for each reducer, with spaces between: a word goes to the same one, whoever saw it."""
    parts: list[list[bytes]] = [[] for _ in range(reducers)]
    for word in words:
        parts[crc32(word) % reducers].append(word)
    return [b" ".join(part) for part in parts]


def count_in_one_process(files: Sequence[Path]) -> Generator[int | dict[bytes, int], None, None]:
    """What the job must agree with: one `Counter` over file after file. Yields bytes read, at last the counts."""
    yield 0
    counts: Counter[bytes] = Counter()
    for path in files:
        with path.open("rb") as file:
            while lines := file.readlines(ROUND_BYTES):
                text = b"".join(lines)
                counts.update(words_of(text))
                yield len(text)
    yield dict(counts)
