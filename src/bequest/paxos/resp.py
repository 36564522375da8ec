"""Requests: the bytes that a client sends, cut into commands. No I/O.

hiredis turns requests into objects, quickly; but it believes what a header says. ``*1000000000`` and a line's end, 13
bytes, make it set up a list of a thousand million elements, whose end takes forty seconds, in which nobody is served;
and arrays within arrays it follows without end. So it is given only what has been walked over before: `Requests` steps
from header to header, each sane and each known to be of a request's own array, and hands on those requests of which
all bytes are there. What is incomplete waits here, where it is counted. The walk resumes where it stopped: a client
that sends byte by byte costs no more than one that sends all at once.

A line that begins with no ``*`` is a command typed by hand (Redis's inline commands): words between spaces.
"""

from __future__ import annotations

from typing import NamedTuple

try:
    import hiredis
except ModuleNotFoundError:
    raise ModuleNotFoundError(
        "the replicated service reads its clients' requests with hiredis, which is not installed: install"
        " 'bequest[paxos]'",
        name="hiredis",
    ) from None

_LINE_BYTES_MAX = 32  # a header: a mark, a number, and a line's end
_INLINE_BYTES_MAX = 4096
_ARRAY = ord("*")
_KNOWN_BYTES = 1024
_STEPS = {b"$%d" % nbytes: nbytes + 4 for nbytes in range(_KNOWN_BYTES)}  # from these headers to the next
_COUNTS = {b"*%d" % count: count for count in range(1, 8)}


class _BadRequest(Exception):
    """The client does not speak the protocol, or asks for more than it may."""


class Bounds(NamedTuple):
    """What one request may be: ``arguments`` in number, ``bulk_bytes`` for each, ``request_bytes`` for all."""

    arguments: int = 65_536
    bulk_bytes: int = 8 << 20
    request_bytes: int = 16 << 20


class Requests:
    """What has come of one connection: `feed` it, and take the commands that are complete.

    ``error`` says what was bad, if anything was: nothing can be understood after that, and the connection is to end.
    """

    __slots__ = ("_bounds", "_left", "_position", "_reader", "_rest", "_steps", "error")

    def __init__(self, bounds: Bounds) -> None:
        self.error = ""
        self._bounds = bounds
        self._steps = _STEPS if bounds.bulk_bytes >= _KNOWN_BYTES else {}
        self._reader = hiredis.Reader()  # between two calls there is nothing in it
        self._rest = bytearray()  # begins with the request that is under way
        self._position = 0  # in it: where the next header is, or will be
        self._left = 0  # how many bulk strings that request still has

    def __len__(self) -> int:
        """The bytes that wait for the rest of their request."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[list[bytes]]:
        """The commands that are complete with these bytes, each the list of its words."""
        if self.error:
            return []
        buffer: bytes | bytearray = data
        if self._rest:
            self._rest += data
            buffer = self._rest
        commands: list[list[bytes]] = []
        begin = 0
        while True:
            whole = self._walk(buffer, begin)
            if whole > begin:
                self._reader.feed(buffer, begin, whole - begin)  # type: ignore[arg-type] # it takes any buffer
                commands += filter(None, iter(self._reader.gets, False))
                begin = whole
            if self.error or self._left or begin >= len(buffer) or buffer[begin] == _ARRAY:
                break
            end = buffer.find(b"\n", begin, begin + _INLINE_BYTES_MAX)
            if end < 0:
                if len(buffer) - begin >= _INLINE_BYTES_MAX:
                    self.error = "too big inline request"
                break
            if words := bytes(buffer[begin:end]).split():
                commands.append(words)
            begin = self._position = end + 1
        self._keep(buffer, len(buffer) if self.error else begin)
        return commands

    def _keep(self, buffer: bytes | bytearray, begin: int) -> None:
        self._position -= begin
        if buffer is self._rest:
            del self._rest[:begin]
        elif begin < len(buffer):
            self._rest += memoryview(buffer)[begin:]

    def _walk(self, buffer: bytes | bytearray, whole: int) -> int:
        """Steps over headers and what they announce, as far as there are any; returns the end of the last request.

        It stops at an inline command. ``whole`` is where the request under way began.
        """
        position, left, size = self._position, self._left, len(buffer)
        find, steps = buffer.find, self._steps
        if not left and position <= size:
            whole = position  # the end of a long string has come
        try:
            while position < size:
                end = find(b"\r\n", position, position + _LINE_BYTES_MAX)
                if left:
                    if end < 0:
                        self._check_line(size - position, "bulk")
                        break
                    line = bytes(buffer[position:end])
                    position = end + (steps.get(line) or self._step(line))
                    left -= 1
                    if position - whole > self._bounds.request_bytes:
                        raise _BadRequest(f"a request of more than {self._bounds.request_bytes} bytes")
                elif buffer[position] == _ARRAY:
                    if end < 0:
                        self._check_line(size - position, "multibulk")
                        break
                    line = bytes(buffer[position:end])
                    left = _COUNTS.get(line) or self._count(line)
                    position = end + 2
                else:
                    break
                if not left and position <= size:
                    whole = position
        except _BadRequest as bad:
            self.error = str(bad)
        self._position, self._left = position, left
        return whole

    @staticmethod
    def _check_line(nbytes: int, what: str) -> None:
        if nbytes >= _LINE_BYTES_MAX:
            raise _BadRequest(f"invalid {what} length: no line ends within {_LINE_BYTES_MAX} bytes")

    def _count(self, line: bytes) -> int:
        count = _number(line[1:])
        if not 0 <= count <= self._bounds.arguments:
            raise _BadRequest(f"invalid multibulk length: at most {self._bounds.arguments} are taken")
        return count

    def _step(self, line: bytes) -> int:
        """From the end of a bulk string's header to the next header."""
        if line[:1] != b"$":
            raise _BadRequest(f"expected '$', got '{line[:1].decode(errors='replace')}'")
        nbytes = _number(line[1:])
        if not 0 <= nbytes <= self._bounds.bulk_bytes:
            raise _BadRequest(f"invalid bulk length: at most {self._bounds.bulk_bytes} bytes are taken")
        return nbytes + 4


def _number(digits: bytes) -> int:
    """Written as hiredis takes it, without signs and leading zeros; else -1."""
    if not digits.isdigit() or (digits[0] == 0x30 and len(digits) > 1):
        return -1
    return int(digits)
