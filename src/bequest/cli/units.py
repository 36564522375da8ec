"""Numbers as people read them: bytes, rates, times and shares, each short enough for a column."""

from __future__ import annotations

_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def format_bytes(nbytes: float) -> str:
    """``0``, ``512 B``, ``4.0 KiB``, ``64.0 MiB``: at most nine characters."""
    if nbytes <= 0:
        return "0"
    value, unit = float(nbytes), 0
    while value >= 1023.95 and unit < len(_BYTE_UNITS) - 1:
        value /= 1024
        unit += 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {_BYTE_UNITS[unit]}"


def format_count(value: float) -> str:
    """``0``, ``7``, ``12,345``, ``1.2 M``: a count or a rate."""
    if value >= 999_950:
        return f"{value / 1e6:.1f} M"
    if 0 < value < 9.95:
        return f"{value:.1f}".removesuffix(".0")
    return f"{value:,.0f}"


def format_seconds(seconds: float) -> str:
    """``12 s``, ``3 min``, ``2 h 5 min``, ``4 d 1 h``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min" if minutes else f"{rest} s"


def format_share(share: float) -> str:
    """``0 %``, ``<1 %``, ``37 %``, ``100 %``: never rounded to a whole that it is not."""
    if 0 < share < 0.01:
        return "<1 %"
    if 0.99 < share < 1:
        return ">99 %"
    return f"{share:.0%}".replace("%", " %")


def plural(count: int, noun: str) -> str:
    """``1 process``, ``2 processes``, ``0 slabs``."""
    if count == 1:
        return f"1 {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith(('s', 'x')) else 's'}"
