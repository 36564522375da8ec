"""A worker's data: what Dask has it keep, over Dask's own mapping, with a record of each value on the shelf.

Dask puts every result and every replica into ``worker.data`` as its task ends, just before it tells the scheduler. So
what the scheduler takes for finished is on the shelf. The mapping underneath (a dict, or the one that spills to disk)
still decides what is kept in memory: a value that it spills leaves the shelf, and its memory is freed.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, MutableMapping
from typing import TYPE_CHECKING, Any

from distributed.protocol.pickle import dumps

if TYPE_CHECKING:
    from dask.typing import Key

    from bequest.dask.shelf import Shelf


class RackData(MutableMapping["Key", object]):
    """Stands as ``worker.data``. What it does not know is asked of the mapping underneath."""

    def __init__(self, inner: MutableMapping[Key, object], shelf: Shelf) -> None:
        self.inner = inner
        self._shelf = shelf
        self._spills = hasattr(inner, "fast_to_slow_callbacks")
        if self._spills:
            inner.fast_to_slow_callbacks.append(self._spilled)  # type: ignore[attr-defined]

    def __setitem__(self, key: Key, value: object) -> None:
        self._shelf.drop(key)
        value = self._shelf.put(key, value)
        try:
            self.inner[key] = value
        except BaseException:
            self._shelf.drop(key)
            raise

    def __delitem__(self, key: Key) -> None:
        del self.inner[key]
        self._shelf.drop(key)

    def __getitem__(self, key: Key) -> object:
        return self.inner[key]

    def __contains__(self, key: object) -> bool:
        return key in self.inner

    def __iter__(self) -> Iterator[Key]:
        return iter(self.inner)

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def _spilled(self, key: Key, value: object) -> None:
        self._shelf.drop(key)

    def give_back(self, *, is_closing: bool) -> MutableMapping[Key, object]:
        """The mapping underneath, with nothing in it that is over rack memory: copies of that, unless it all goes."""
        if self._spills:
            self.inner.fast_to_slow_callbacks.remove(self._spilled)  # type: ignore[attr-defined]
        for key in self._shelf.large_keys():
            if is_closing:
                del self.inner[key]
            else:
                self.inner[key] = pickle.loads(dumps(self.inner[key]))  # type: ignore[no-untyped-call]
        return self.inner
