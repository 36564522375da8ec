"""A filled buffer goes from process A to process B, by Bequest and by each of its peers.

A fills the buffer beforehand. Timed: A hands it over, B reads one byte of every 4 KiB, A holds B's answer.
All peers are measured in one run, in rounds: each has a short turn, then the next, in an order that rotates,
so that a machine that slows down slows everybody. Between the turns the noise of the machine is sampled. See
`peers.peer` for what one hand-off is made of, and `seat` for the processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from . import bequest_side
from .measure import GIB, KIB, MIB, Figure, Noise, Outcome, Summary, Target, quantity, size_name, summarize
from .peers import PEERS, peer_class
from .seat import PeerFailed, Seat, missing_modules

SIZES = (64 * KIB, 1 * MIB, 64 * MIB, 1 * GIB)
ROUNDS = {64 * KIB: 20, 1 * MIB: 20, 64 * MIB: 10, 1 * GIB: 7}
QUICK_ROUNDS = 3
TURN_SECONDS = 0.1
HAND_OFFS_PER_TURN = 50
WARM_UP_BELOW_SECONDS = 0.05
"""A peer slower than this gets no warm-up hand-off per turn: it would double the run and change nothing."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A promise: Bequest's median over the peer's at a size is at most `bound`."""

    ours: str
    peer: str
    nbytes: int
    bound: float


@dataclass(frozen=True, slots=True)
class TimesFaster:
    """A promise: Bequest is at least `factor` times faster than the peer at a size."""

    ours: str
    peer: str
    nbytes: int
    factor: float


PROMISES: tuple[Ratio | TimesFaster, ...] = (
    Ratio("bequest_spinning", "iceoryx2", 64 * KIB, 1.0),
    Ratio("bequest_spinning", "iceoryx2", 1 * MIB, 1.2),
    Ratio("bequest_spinning", "iceoryx2", 64 * MIB, 1.0),
    Ratio("bequest_spinning", "iceoryx2", 1 * GIB, 1.0),
    TimesFaster("bequest_receiver_sleeping", "multiprocessing_queue", 64 * KIB, 4),
    TimesFaster("bequest_spinning", "multiprocessing_queue", 64 * MIB, 1000),
    TimesFaster("bequest_spinning", "multiprocessing_queue", 1 * GIB, 2000),
    TimesFaster("bequest_spinning", "shared_memory", 64 * MIB, 20),
    TimesFaster("bequest_spinning", "ray", 64 * MIB, 100),
    TimesFaster("bequest_spinning", "dask", 64 * MIB, 200),
)
FIRST_BYTE_TARGET = Target("at most", 0.5e-3)
ASLEEP = {"as it comes": "bequest_default", "both asleep": "bequest_sleeping"}
"""Ways of waiting that leave a core to others; a promise that is kept by spinning is told for these as well."""
FLIPPED = "bequest_spinning", "iceoryx2", 64 * KIB
"""Ours, a peer that revokes nothing, and the size at which taking the memory away is most of the difference."""


@dataclass(slots=True)
class Measured:
    """Everything the run found: timings per peer and size, and why a peer has none."""

    timings: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    def summary(self, peer: str, nbytes: int) -> Summary | None:
        samples = self.timings.get(peer, {}).get(nbytes)
        return summarize(samples) if samples else None


def measure(peers: Sequence[str], sizes: Sequence[int], quick: bool, noise: Noise, say: Say) -> Measured:
    """Seats the peers and lets them take turns at each size."""
    measured = Measured()
    with seated(peers, measured, say) as seats:
        for nbytes in sizes:
            say(f"handoff: {size_name(nbytes)}")
            rounds = QUICK_ROUNDS if quick else ROUNDS.get(nbytes, QUICK_ROUNDS)
            at_this_size = [s for s in seats if s.kind.sizes is None or nbytes in s.kind.sizes]
            _measure_size(at_this_size, nbytes, rounds, measured, noise)
    return measured


@contextmanager
def seated(peers: Sequence[str], measured: Measured, say: Say) -> Iterator[list[Seat]]:
    """The seats of the peers that are installed and start; the others are noted, with the reason."""
    seats: list[Seat] = []
    try:
        for name in peers:
            missing = missing_modules(name)
            if missing:
                measured.absent[name] = f"not installed ({', '.join(missing)})"
                continue
            say(f"handoff: starting {name}")
            seat = Seat(name)
            seats.append(seat)
            _attempt(seat, measured, "start")
        yield seats
    finally:
        for seat in seats:
            seat.close()


def _measure_size(seats: Sequence[Seat], nbytes: int, rounds: int, measured: Measured, noise: Noise) -> None:
    counts: dict[str, int] = {}
    slow: set[str] = set()
    for seat in seats:
        _attempt(seat, measured, "prepare", nbytes)
        trial = _attempt(seat, measured, "turn", 2, 1)
        if trial:
            estimate = trial[-1] + seat.kind.rest_seconds
            counts[seat.name] = max(1, min(HAND_OFFS_PER_TURN, int(TURN_SECONDS / estimate)))
            if estimate > WARM_UP_BELOW_SECONDS:
                slow.add(seat.name)
    for turn in range(rounds):
        shift = turn % max(1, len(seats))
        for seat in (*seats[shift:], *seats[:shift]):
            noise.sample()
            warm_up = 0 if seat.name in slow else 1
            timings = _attempt(seat, measured, "turn", counts.get(seat.name, 1), warm_up)
            measured.timings.setdefault(seat.name, {}).setdefault(nbytes, []).extend(timings)


def _attempt(seat: Seat, measured: Measured, order: str, *arguments: int) -> list[float]:
    """Asks the seat, unless its peer has failed before; a failure is noted and the run goes on."""
    if seat.failure:
        return []
    try:
        return seat.ask(order, *arguments) or []
    except PeerFailed as failure:
        measured.absent[seat.name] = f"failed: {failure}"
        return []


def run(
    quick: bool, noise: Noise, say: Say, peers: Sequence[str] = tuple(PEERS), sizes: Sequence[int] = SIZES
) -> Outcome:
    """The whole benchmark."""
    measured = measure(peers, sizes, quick, noise, say)
    outcome = Outcome("handoff", figures=_figures(measured, sizes))
    outcome.raw["absent"] = measured.absent
    outcome.raw["titles"] = {name: peer_class(name).title for name in peers}
    outcome.raw["seconds"] = {
        name: {str(nbytes): asdict(summarize(samples)) for nbytes, samples in by_size.items() if samples}
        for name, by_size in measured.timings.items()
    }
    return outcome


def _figures(measured: Measured, sizes: Sequence[int]) -> list[Figure]:
    figures = [_promise_figure(promise, measured) for promise in PROMISES if promise.nbytes in sizes]
    if FLIPPED[2] in sizes:
        figures += _bound_figures(measured)
    if GIB in sizes:
        for peer, pages, target in (
            ("bequest_first_byte", "2 MiB", FIRST_BYTE_TARGET),
            ("bequest_first_byte_small_pages", "4 KiB", None),
        ):
            found = measured.summary(peer, GIB)
            name = f"1 GiB on {pages} pages: grant to first byte read"
            note = "" if found else measured.absent.get(peer, "not chosen")
            figures.append(Figure(name, found.median if found else None, "s", target, note))
    return figures


def _promise_figure(promise: Ratio | TimesFaster, measured: Measured) -> Figure:
    title, size = peer_class(promise.peer).title, size_name(promise.nbytes)
    ours = measured.summary(promise.ours, promise.nbytes)
    peer = measured.summary(promise.peer, promise.nbytes)
    manner = promise.ours.removeprefix("bequest_").replace("_", " ")
    if isinstance(promise, Ratio):
        name = f"{size} ({manner}): our time over that of {title}"
        target, unit = Target("at most", promise.bound), ""
    else:
        name = f"{size} ({manner}): times faster than {title}"
        target, unit = Target("at least", promise.factor), "times"
    if ours is None or peer is None:
        lacking = promise.ours if ours is None else promise.peer
        return Figure(name, None, unit, target, f"{lacking}: {measured.absent.get(lacking, 'not chosen')}")
    ratio = ours.median / peer.median if isinstance(promise, Ratio) else peer.median / ours.median
    return Figure(name, ratio, unit, target, _asleep_note(promise, measured))


def _asleep_note(promise: Ratio | TimesFaster, measured: Measured) -> str:
    """The same promise without spinning, where both would sleep: for peers that do."""
    peer = measured.summary(promise.peer, promise.nbytes)
    if isinstance(promise, Ratio) or peer is None:
        return ""
    asleep = ((manner, measured.summary(ours, promise.nbytes)) for manner, ours in ASLEEP.items())
    return "; ".join(
        f"{manner}: {quantity(peer.median / found.median, 'times')}" for manner, found in asleep if found
    )


def _bound_figures(measured: Measured) -> list[Figure]:
    """What taking the memory away costs in the kernel, and how near to a peer's time plus that we are."""
    ours, peer, nbytes = FLIPPED
    size, title = size_name(nbytes), peer_class(peer).title
    flips = bequest_side.table_bench(nbytes)
    flip = None if flips is None else flips["close_seconds"] + flips["open_seconds"]
    our_time, peer_time = measured.summary(ours, nbytes), measured.summary(peer, nbytes)
    bound = None if flip is None or peer_time is None else peer_time.median + flip
    note = "" if flip is not None else bequest_side.NO_TABLE_BENCH
    over = None if bound is None or our_time is None else our_time.median / bound
    return [
        Figure(f"{size}: closing and opening it by mprotect, native", flip, "s", None, note),
        Figure(f"{size}: the bound, {title} and that", bound, "s", None, note),
        Figure(f"{size} (spinning): our time over the bound", over, "", None, note),
    ]
