"""The main job: it counts right, copies nothing, and ends well when it is interrupted or a worker is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bequest._examples.word_count_support import corpus
from pages import ROOT

EXAMPLE = ROOT / "examples" / "word_count.py"
WORKERS = 6  # 4 mappers and 2 reducers, started in this order

TEXT = "Grüße aus 3 Städten: x1, _y and naïve café — don't\n\n  self.self\r\nlast line without end"


# --- cutting text -------------------------------------------------------------------------------------------


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("piece_bytes", [1, 7, 64, 10_000])
@pytest.mark.parametrize("round_bytes", [1, 50, 10_000])
def test_pieces_and_rounds_lose_and_cut_no_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece_bytes: int, round_bytes: int
) -> None:
    monkeypatch.setattr(corpus, "PIECE_BYTES", piece_bytes)
    monkeypatch.setattr(corpus, "ROUND_BYTES", round_bytes)
    contents = [
        TEXT.encode(),
        (TEXT + "\n").encode("latin-1", errors="replace"),
        b"\n\n\n",
        b"",
        b"\0\xff\n" * 9,
    ]
    files = [write(tmp_path / f"{number}.txt", data) for number, data in enumerate(contents)]
    shares = corpus.shared_out(corpus.pieces_of(files), 3)
    texts = [text for share in shares for text in corpus.rounds(share)]
    counted = Counter(word for text in texts for word in corpus.words_of(text))
    whole = Counter(word for data in contents for word in corpus.words_of(data))
    assert counted == whole
    assert [counted[word] for word in (b"self", b"x1", b"_y", b"last", b"\xff")] == [4, 2, 2, 2, 9]


def test_words_of_any_encoding_stay_whole() -> None:
    assert corpus.words_of("Grüße, café!".encode()) == ["Grüße".encode(), "café".encode()]
    assert corpus.words_of("Grüße".encode("latin-1")) == ["Grüße".encode("latin-1")]
    assert corpus.words_of(memoryview(b"a1 2b _c")) == [b"a1", b"b", b"_c"]


def test_a_word_always_goes_to_the_same_reducer() -> None:
    words = [b"a", b"b", b"c", b"a", b"d", b"a"]
    parts = corpus.partition(words, 3)
    assert sorted(b" ".join(parts).split()) == sorted(words)
    assert [part for part in parts if b"a" in part.split()] == [parts[corpus.crc32(b"a") % 3]]


# --- the whole job ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_counts_right_and_copies_nothing(tmp_path: Path) -> None:
    write(tmp_path / "one.txt", (TEXT + "\n").encode() * 3000)
    write(tmp_path / "two.txt", TEXT.encode("utf-16"))
    inputs = ["--input", str(tmp_path / "one.txt"), "--input", str(tmp_path)]
    with started(*inputs, "--json", log=tmp_path / "log") as job:
        assert job.wait(50) == 0
    outcome = json.loads((tmp_path / "log").read_text())
    assert outcome["exact"] and outcome["words"] > 40_000
    granted, piped = outcome["ways"]["granted"], outcome["ways"]["over pipes"]
    assert granted["copied"] == 0 and piped["copied"] == 2 * piped["nbytes"]
    assert granted["rack_bytes"] >= granted["nbytes"] > 100_000


@pytest.mark.slow
def test_it_is_the_demo(tmp_path: Path) -> None:
    text = write(tmp_path / "text", TEXT.encode())
    command = [sys.executable, "-m", "bequest.cli", "demo", "--input", str(text), "--mappers", "1"]
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(command, stdout=log, stderr=log, timeout=50, check=False)
    output = (tmp_path / "log").read_text()
    assert done.returncode == 0, output
    assert "bytes copied between processes" in output and "agree on every one" in output


@pytest.mark.parametrize("content", [None, b""])
def test_input_without_text_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with started("--input", str(path), log=tmp_path / "log") as job:
        assert job.wait(20) == 2
    assert (tmp_path / "log").read_text().startswith("word_count: ")


@pytest.mark.slow
def test_ctrl_c_ends_everything_quietly(tmp_path: Path) -> None:
    with started("--json", log=tmp_path / "log") as job:
        workers = workers_of(job.pid)
        os.killpg(job.pid, signal.SIGINT)
        assert job.wait(5) == 130
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    assert (tmp_path / "log").read_text() == ""


@pytest.mark.slow
@pytest.mark.parametrize(("victim", "name"), [(0, "mapper-0"), (3, "mapper-3"), (5, "reducer-1")])
def test_a_killed_worker_is_named(tmp_path: Path, victim: int, name: str) -> None:
    with started("--json", log=tmp_path / "log") as job:
        os.kill(workers_of(job.pid)[victim], signal.SIGKILL)
        assert job.wait(10) == 1
    assert (tmp_path / "log").read_text() == f"word_count: {name} was killed by SIGKILL\n"


@contextmanager
def started(*arguments: str, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The example in a process group of its own, as a terminal would have it."""
    with log.open("w") as output:
        job = subprocess.Popen(
            [sys.executable, str(EXAMPLE), *arguments], stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield job
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()


def command_of(pid: str) -> bytes:
    """Empty if it has just ended, as helpers of multiprocessing do."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def workers_of(master: int) -> list[int]:
    """Its worker processes, once all are there, in the order in which they were started."""
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        workers = [int(pid) for pid in children if b"spawn_main" in command_of(pid)]
        if len(workers) == WORKERS:
            return workers
        time.sleep(0.01)
    raise AssertionError("the workers did not start")
