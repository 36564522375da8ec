"""What the objects' repr says: never an exception, for it is looked at when something is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bequest.errors import BequestError

if TYPE_CHECKING:
    from collections.abc import Callable


def outline(thing: object, name: str, contents: Callable[[], str]) -> str:
    """``<Map 'jobs' of 3 entries>``, or why that cannot be told. Its name is the attribute that is called so."""
    words = [type(thing).__name__]
    try:
        words.append(repr(getattr(thing, name)))
        words.append(contents())
    except BequestError as trouble:
        words.append(f"that cannot be read: {trouble}")
    return f"<{' '.join(words)}>"
