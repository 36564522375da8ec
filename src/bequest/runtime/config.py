"""What a rack consists of: from flags, from a TOML file, or by default.

As flags, ``bequest up --element dram0:4GiB --element pmem0:8GiB:file:/mnt/pmem --policy spread``; in TOML:

>>> name = "default"
>>> policy = "spread"
>>> orphan_keep = 60                # seconds
>>> compute = ["host0", "host1"]
>>> [[memory]]
>>> name = "dram0"
>>> size = "4GiB"
>>> kind = "dram"                   # or "huge", or "file:/mnt/pmem"
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from bequest.errors import BadConfig, BadName
from bequest.ids import check_name
from bequest.limits import HUGE_PAGE_BYTES, MIB, ORPHAN_KEEP
from bequest.protocol.placement import POLICIES
from bequest.protocol.rack_state import ElementInfo, MmuConfig
from bequest.runtime.directory import DEFAULT_NAME

ELEMENTS_MAX = 64
COMPUTES_MAX = 64
_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
_UNITS |= {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


class ElementConfig(msgspec.Struct, frozen=True):
    name: str
    size: int
    kind: str = "dram"


class RackConfig(msgspec.Struct, frozen=True):
    """Checked; `linger` is set for an embedded rack: seconds that it outlives its last client."""

    name: str = DEFAULT_NAME
    elements: tuple[ElementConfig, ...] = ()
    computes: tuple[str, ...] = ("host0",)
    policy: str = "best-fit"
    orphan_keep: float = ORPHAN_KEEP
    linger: float | None = None

    def for_mmu(self) -> MmuConfig:
        """Called once, when the rack starts."""
        elements = tuple(
            ElementInfo(number, element.name, element.kind, element.size, f"element-{element.name}.sock")
            for number, element in enumerate(self.elements)
        )
        agents = tuple(f"agent-{name}.sock" for name in self.computes)
        return MmuConfig(
            name=self.name,
            uid=os.getuid(),
            elements=elements,
            computes=self.computes,
            agent_paths=agents,
            policy=self.policy,
            orphan_keep=self.orphan_keep,
            linger=self.linger,
            started=time.monotonic(),
        )


def make_config(
    *,
    name: str = DEFAULT_NAME,
    memory: Iterable[str] = (),
    compute: Iterable[str] = (),
    policy: str = "best-fit",
    orphan_keep: float = ORPHAN_KEEP,
    linger: float | None = None,
) -> RackConfig:
    """From the values of flags. Raises `BadConfig`, which says what is wrong with which."""
    elements = tuple(parse_element(text) for text in memory)
    return _checked(RackConfig(name, elements, tuple(compute) or ("host0",), policy, orphan_keep, linger))


def read_config(path: Path) -> RackConfig:
    """From a TOML file. Raises `BadConfig`."""
    import tomllib  # only who has such a file pays for it

    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise BadConfig(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path} is not TOML: {error}") from error
    try:
        return _from_table(values)
    except BadConfig as error:
        raise BadConfig(f"{path}: {error}") from error


def parse_element(text: str) -> ElementConfig:
    """``NAME:SIZE``, ``NAME:SIZE:huge`` or ``NAME:SIZE:file:PATH``."""
    name, colon, rest = text.partition(":")
    size, _, kind = rest.partition(":")
    if not colon or not size:
        examples = "dram0:4GiB, huge0:1GiB:huge or pmem0:8GiB:file:/mnt/pmem"
        raise BadConfig(f"memory element {text!r}: write NAME:SIZE[:KIND], as in {examples}")
    return ElementConfig(name, parse_size(size), kind or "dram")


def parse_size(text: str) -> int:
    """``512MiB``, ``4G``, ``1.5GiB`` or plain bytes."""
    stripped = text.strip()
    digits = stripped.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = stripped[len(digits) :].strip().upper()
    try:
        number = float(digits)
    except ValueError:
        number = -1.0
    if unit not in _UNITS or not 0 <= number < float("inf"):
        raise BadConfig(f"{text!r} is no size; write 512MiB, 4GiB or a number of bytes")
    return int(number * _UNITS[unit])


def default_size() -> int:
    """Half of the memory that this machine, or this container, has available."""
    available = min([_meminfo("MemAvailable"), *_cgroup_room(Path("/sys/fs/cgroup"))])
    return max(available // 2 // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES, 64 * MIB)


# --- checks -----------------------------------------------------------------------------------------------


def _checked(config: RackConfig) -> RackConfig:
    if not config.elements:
        config = msgspec.structs.replace(config, elements=(ElementConfig("dram0", default_size()),))
    _check_names(config)
    if config.policy not in POLICIES:
        raise BadConfig(f"policy {config.policy!r} is not known; there are {', '.join(POLICIES)}")
    if not 0 <= config.orphan_keep <= 1e9:
        raise BadConfig(f"orphan_keep is {config.orphan_keep}; it must be a number of seconds from 0 on")
    elements = tuple(_checked_element(element) for element in config.elements)
    return msgspec.structs.replace(config, elements=elements)


def _check_names(config: RackConfig) -> None:
    try:
        check_name(config.name, "rack's name")
        for element in config.elements:
            check_name(element.name, "memory element's name")
        for compute in config.computes:
            check_name(compute, "compute element's name")
    except BadName as error:
        raise BadConfig(str(error)) from error
    if config.name.startswith("."):
        raise BadConfig(f"the rack's name {config.name!r} begins with a dot")
    for what, names, most in (
        ("memory element", [element.name for element in config.elements], ELEMENTS_MAX),
        ("compute element", list(config.computes), COMPUTES_MAX),
    ):
        if len(names) > most:
            raise BadConfig(f"{len(names)} {what}s are too many; {most} are allowed")
        for name in names:
            if names.count(name) > 1:
                raise BadConfig(f"two {what}s are called {name!r}")


def _checked_element(element: ElementConfig) -> ElementConfig:
    """With its size in whole 2 MiB pages, and its path absolute."""
    if element.size < HUGE_PAGE_BYTES:
        raise BadConfig(f"memory element {element.name!r} has {element.size} bytes; the least is 2MiB")
    kind = element.kind
    if kind.startswith("file:"):
        directory = Path(kind.removeprefix("file:")).expanduser().absolute()
        if not directory.is_dir():
            raise BadConfig(f"memory element {element.name!r}: {directory} is no directory")
        kind = f"file:{directory}"
    elif kind not in ("dram", "huge"):
        raise BadConfig(
            f"memory element {element.name!r}: kind {kind!r} is not known; use dram, huge or file:PATH"
        )
    size = element.size // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
    if kind == "huge" and (total := _meminfo("HugePages_Total", unit=HUGE_PAGE_BYTES)) < size:
        raise BadConfig(
            f"memory element {element.name!r} wants {size >> 20} MiB of reserved huge pages, but the kernel has"
            f" {total >> 20} MiB: run `sysctl vm.nr_hugepages={size // HUGE_PAGE_BYTES}` as root, or use kind dram,"
            " which has 2 MiB pages without a reservation"
        )
    return ElementConfig(element.name, size, kind)


def _from_table(values: Mapping[str, Any]) -> RackConfig:
    known = ("name", "policy", "orphan_keep", "compute", "memory")
    for key in values:
        if key not in known:
            raise BadConfig(f"{key!r} is not known; there are {', '.join(known)}")
    compute = values.get("compute", ["host0"])
    if not isinstance(compute, list) or not compute or not all(isinstance(name, str) for name in compute):
        raise BadConfig('compute must be a list of names, as in ["host0"]')
    memory = values.get("memory", [])
    if not isinstance(memory, list):
        raise BadConfig("memory must be a list of tables; write [[memory]]")
    orphan_keep = values.get("orphan_keep", ORPHAN_KEEP)
    if isinstance(orphan_keep, bool) or not isinstance(orphan_keep, int | float):
        raise BadConfig("orphan_keep must be a number of seconds")
    config = RackConfig(
        name=_text(values, "name", DEFAULT_NAME),
        elements=tuple(_element_from_table(entry) for entry in memory),
        computes=tuple(compute),
        policy=_text(values, "policy", "best-fit"),
        orphan_keep=float(orphan_keep),
    )
    return _checked(config)


def _element_from_table(entry: object) -> ElementConfig:
    if not isinstance(entry, dict) or not {"name", "size"} <= entry.keys() <= {"name", "size", "kind"}:
        raise BadConfig("each [[memory]] has a name, a size and perhaps a kind")
    size = entry["size"]
    if isinstance(size, bool) or not isinstance(size, int | str):
        raise BadConfig(f'size = {size!r} is no size; write "4GiB" or a number of bytes')
    nbytes = size if isinstance(size, int) else parse_size(size)
    return ElementConfig(_text(entry, "name", ""), nbytes, _text(entry, "kind", "dram"))


def _text(values: Mapping[str, Any], key: str, default: str) -> str:
    value = values.get(key, default)
    if not isinstance(value, str):
        raise BadConfig(f"{key} must be a string, not {value!r}")
    return value


# --- how much memory there is -----------------------------------------------------------------------------


def _meminfo(field: str, unit: int = 1024) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * unit
    return 0


def _cgroup_room(root: Path) -> list[int]:
    """What the memory cgroups of this process, version 2 or 1, leave."""
    room = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            start, names = root / path.lstrip("/"), ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            start, names = (
                root / "memory" / path.lstrip("/"),
                ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            )
        else:
            continue
        for directory in (start, *start.parents):
            if not directory.is_relative_to(root):
                break
            limit, usage = (_number(directory / name) for name in names)
            if limit is not None and usage is not None:
                room.append(max(0, limit - usage))
    return room


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # not there, or "max"
        return None
