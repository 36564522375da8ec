"""Requests are cut right wherever the stream breaks; what no client should send ends in an error, at no cost."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys

import pytest

from bequest.paxos.resp import Bounds, Requests

SMALL = Bounds(arguments=8, bulk_bytes=64, request_bytes=128)


def request(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


STREAM = [
    [b"SET", b"a", b"1"],
    [b"PING"],
    [b"SET", b"*3\r\n$1", b"\r\n*9\r\n"],
    [b"GET", b""],
    [b"X" * 64, b"\0\xff"],
]


def test_requests_come_out_wherever_the_stream_is_cut() -> None:
    wire = b"".join(request(*words) for words in STREAM)
    for cut in range(len(wire) + 1):
        requests = Requests(SMALL)
        found = requests.feed(wire[:cut]) + requests.feed(wire[cut:])
        assert (found, len(requests), requests.error) == (STREAM, 0, ""), cut
    requests = Requests(SMALL)
    found = list(itertools.chain(*(requests.feed(wire[at : at + 1]) for at in range(len(wire)))))
    assert (found, len(requests)) == (STREAM, 0)


def test_random_words_in_random_pieces() -> None:
    chance = random.Random(7)
    alphabet = [b"\r", b"\n", b"*", b"$", b"1", b"0", b"a"]
    words = [
        [b"".join(chance.choices(alphabet, k=chance.randrange(9))) for _ in range(chance.randrange(1, 8))]
        for _ in range(300)
    ]
    wire, requests, found = b"".join(request(*one) for one in words), Requests(Bounds()), []
    while wire:
        size = chance.randrange(1, 40)
        found += requests.feed(wire[:size])
        wire = wire[size:]
    assert found == words


def test_commands_typed_by_hand() -> None:
    requests = Requests(SMALL)
    assert requests.feed(b"PING\r\n\r\n  set a  1 \n" + request(b"GET", b"a") + b"echo x") == [
        [b"PING"], [b"set", b"a", b"1"], [b"GET", b"a"],
    ]  # fmt: skip
    assert requests.feed(b"y\r\n" + request(b"PING")) == [[b"echo", b"xy"], [b"PING"]]


@pytest.mark.parametrize(
    ("wire", "error"),
    [
        (b"*1000000000\r\n", "invalid multibulk length: at most 8 are taken"),
        (b"*9\r\n", "invalid multibulk length"),
        (b"*-1\r\n", "invalid multibulk length"),
        (b"*x\r\n", "invalid multibulk length"),
        (b"*\r\n", "invalid multibulk length"),
        (b"*1\r\n$536870912\r\n", "invalid bulk length: at most 64 bytes are taken"),
        (b"*1\r\n$65\r\n", "invalid bulk length"),
        (b"*1\r\n$-1\r\n", "invalid bulk length"),
        (b"*1\r\n$01\r\n", "invalid bulk length"),
        (b"*2\r\n*1\r\n", r"expected '\$', got '\*'"),
        (b"*1\r\n:1\r\n", r"expected '\$', got ':'"),
        (b"*1\r\n+OK\r\n", r"expected '\$', got '\+'"),
        (b"*4\r\n" + b"$40\r\n" + b"x" * 40 + b"\r\n$60\r\n" + b"x" * 60 + b"\r\n$60\r\n", "request of more than 128"),
        (b"*" + b"1" * 40, "invalid multibulk length: no line ends"),
        (b"*1\r\n$" + b"1" * 40, "invalid bulk length: no line ends"),
        (b"x" * 5000, "too big inline request"),
    ],
)  # fmt: skip
def test_what_is_bad_is_refused_by_its_header(wire: bytes, error: str) -> None:
    requests = Requests(SMALL)
    before = request(b"SET", b"a", b"1")
    assert requests.feed(before + wire + request(b"PING")) == [[b"SET", b"a", b"1"]], (
        "what came before stands"
    )
    with pytest.raises(ValueError, match=error):
        raise ValueError(requests.error)
    assert requests.feed(request(b"PING")) == [], "nothing is understood after it"
    assert len(requests) == 0


def test_bytes_one_by_one_cost_no_more() -> None:
    """The walk resumes where it stopped: what has been stepped over is not looked at again."""
    requests = Requests(Bounds())
    requests.feed(b"*500\r\n" + b"$1\r\nx\r\n" * 499)
    position = requests._position
    assert requests._left == 1
    for byte in b"$1024\r":
        assert requests.feed(bytes([byte])) == []
        assert requests._position == position
    requests.feed(b"\n")
    assert (requests._position, requests._left) == (position + 7 + 1024 + 2, 0)
    assert requests.feed(b"y" * 1024 + b"\r") == []
    assert [len(words) for words in requests.feed(b"\n")] == [500]


def test_without_hiredis_it_is_said_what_to_install() -> None:
    without = "import sys; sys.modules['hiredis'] = None; import bequest.paxos.front"
    done = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=False)
    assert "install 'bequest[paxos]'" in done.stderr.splitlines()[-1]
