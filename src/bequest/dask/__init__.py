"""Dask on a rack: the data of jobs changes hands uncopied, and outlives the workers (paper, section 5).

    client = distributed.Client(…)
    client.register_plugin(bequest.dask.Rack())

Dask stays the engine. On each host, its workers keep their results in rack memory; whoever needs one on that host
reads it where it is, and when a worker dies, another has what it had finished. `plugin` is what is installed;
`rack_worker` a worker's place in the rack.

It needs Dask: ``pip install 'bequest[dask]'``. This module only re-exports.
"""

from __future__ import annotations

try:
    import distributed as _distributed  # noqa: F401 - to tell its absence in plain words
except ImportError as _missing:
    raise ImportError("bequest.dask needs Dask distributed: pip install 'bequest[dask]'") from _missing

from bequest.dask.client import Seat, join
from bequest.dask.cluster import RackCluster
from bequest.dask.compat import UnsupportedDask
from bequest.dask.plugin import Rack, dask_setup
from bequest.dask.resumable import PlainArray, Progress, resumable

__all__ = [
    "PlainArray",
    "Progress",
    "Rack",
    "RackCluster",
    "Seat",
    "UnsupportedDask",
    "dask_setup",
    "join",
    "resumable",
]
