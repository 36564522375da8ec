"""A local cluster that has it all: the scheduler here, workers in processes of their own, and a rack under them."""

from __future__ import annotations

from typing import Any

from distributed import LocalCluster

from bequest.dask.plugin import Rack


class RackCluster(LocalCluster):
    """`distributed.LocalCluster` on a rack: ``RackCluster(n_workers=4)``.

    It takes what that takes, and ``rack`` as `Rack` does. A context manager, as that is. Raises `UnsupportedDask`.
    """

    def __init__(
        self, *, rack: str | None = None, scheduler_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        of_scheduler = dict(scheduler_kwargs or {})
        of_scheduler["plugins"] = [*of_scheduler.get("plugins", ()), Rack(rack)]
        super().__init__(scheduler_kwargs=of_scheduler, **kwargs)  # type: ignore[no-untyped-call]
