"""Ids and names of the rack, and the address plan that ties them together.

An id says who: 1…511 are processes, 512…1022 mailboxes (an inbox without addresses), 1023 is the Rack MMU, 0 nobody.
The top bits of an offset in the rack window are the id of the process that allocated it (paper, section 3.1), so an
address alone tells its *home*.
"""

from __future__ import annotations

from bequest.errors import BadName
from bequest.limits import (
    FIRST_MAILBOX_ID,
    LAST_MAILBOX_ID,
    MAX_PROCESS_ID,
    NAME_BYTES_MAX,
    PATH_BYTES_MAX,
    PATH_DEPTH_MAX,
    PROCESS_SPACE_BITS,
    PROCESS_SPACE_BYTES,
    WINDOW_BASE,
)

ProcessId = int
GroupId = int
SlabId = int

NOBODY: ProcessId = 0


def is_process_id(number: int) -> bool:
    """Whether a process may bear it, and own addresses."""
    return 1 <= number <= MAX_PROCESS_ID


def is_mailbox_id(number: int) -> bool:
    """Whether a mailbox may bear it."""
    return FIRST_MAILBOX_ID <= number <= LAST_MAILBOX_ID


def home_of(address: int) -> ProcessId:
    """The process in whose part of the window the address lies."""
    return (address - WINDOW_BASE) >> PROCESS_SPACE_BITS


def space_of(process: ProcessId) -> tuple[int, int]:
    """First address of a process's part of the window, and the first beyond it."""
    if not is_process_id(process):
        raise ValueError(f"{process} is no process id (1…{MAX_PROCESS_ID}): it owns no addresses")
    start = WINDOW_BASE + (process << PROCESS_SPACE_BITS)
    return start, start + PROCESS_SPACE_BYTES


def check_name(name: str, what: str = "name") -> str:
    """The name, if it may be one; raises `BadName` otherwise. Names show up in terminals, paths and logs."""
    if not isinstance(name, str):
        raise TypeError(f"a {what} is a str, not {type(name).__name__}")
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise BadName(f"the {what} {name!r} cannot be written in UTF-8") from error
    if not encoded:
        raise BadName(f"the {what} is empty; it must have 1 to {NAME_BYTES_MAX} bytes")
    if len(encoded) > NAME_BYTES_MAX:
        raise BadName(f"the {what} {name!r} has {len(encoded)} bytes of UTF-8; {NAME_BYTES_MAX} are allowed")
    if "/" in name or not name.isprintable():
        raise BadName(f"the {what} {name!r} contains '/' or a character that cannot be printed")
    return name


def check_path(path: str) -> str:
    """A path of the namespace, in its one spelling ("/a//b/" is "/a/b"); raises `BadName` if it cannot be one."""
    if not isinstance(path, str):
        raise TypeError(f"a path is a str, not {type(path).__name__}")
    if not path.startswith("/"):
        raise BadName(f"the path {path!r} does not begin with '/'")
    parts = [part for part in path.split("/") if part]
    if len(parts) > PATH_DEPTH_MAX:
        raise BadName(f"the path {path[:99]!r}… has {len(parts)} parts; {PATH_DEPTH_MAX} are allowed")
    for part in parts:
        if part in (".", ".."):
            raise BadName(f"the path {path!r} has a part {part!r}, which means nothing here")
        check_name(part, f"part of the path {path[:99]!r}")
    normal = "/" + "/".join(parts)
    if (length := len(normal.encode())) > PATH_BYTES_MAX:
        raise BadName(f"the path {path[:99]!r}… has {length} bytes of UTF-8; {PATH_BYTES_MAX} are allowed")
    return normal
