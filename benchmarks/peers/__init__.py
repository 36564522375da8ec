"""The ways to hand a buffer over that are compared: one file each, one small interface (`peer.Peer`).

They are named here as `module:Class` and imported only where they are needed, and the software behind them
only in the process that runs it, so that a peer which is not installed costs nothing and can be reported as
such.
"""

from __future__ import annotations

from importlib import import_module

from .peer import Peer

PEERS: dict[str, str] = {
    "reading_alone": "reading_alone:ReadingAlone",
    "multiprocessing_queue": "multiprocessing_queue:MultiprocessingQueue",
    "shared_memory": "shared_memory:SharedMemoryByName",
    "dask": "dask_transfer:DaskTransfer",
    "ray": "ray_transfer:RayTransfer",
    "iceoryx2": "iceoryx2_pubsub:Iceoryx2PubSub",
    "bequest_spinning": "bequest_grant:BequestSpinning",
    "bequest_default": "bequest_grant:BequestDefault",
    "bequest_receiver_sleeping": "bequest_grant:BequestReceiverSleeping",
    "bequest_sleeping": "bequest_grant:BequestSleeping",
    "bequest_first_byte": "bequest_grant:BequestFirstByte",
    "bequest_first_byte_small_pages": "bequest_grant:BequestFirstByteSmallPages",
}


def peer_class(name: str) -> type[Peer]:
    """The class of a peer in `PEERS`."""
    module, _, class_name = PEERS[name].partition(":")
    found = getattr(import_module(f".{module}", __package__), class_name)
    assert isinstance(found, type)
    assert issubclass(found, Peer)
    return found
