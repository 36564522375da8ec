"""The page about the racks, as a browser and a program get it, while a cluster works."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest

import bequest.dask
from actors import until
from bequest.dask.figures import COUNTED, Figures
from bequest.dask.page import course
from bequest.dask.recovery import Member
from clusters import cluster_of
from steps import wait_for_steps, walk, walked

MIB = 1 << 20


def fetched(client: distributed.Client, path: str) -> str:
    host = client.scheduler_info()["address"].rpartition("://")[2].rpartition(":")[0]
    with urllib.request.urlopen(
        f"http://{host}:{client.scheduler_info()['services']['dashboard']}/{path}"
    ) as answer:
        return str(answer.read().decode())


def document(client: distributed.Client) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fetched(client, "rack.json"))
    return found


def shown(client: distributed.Client, what: str) -> str:
    """The large figure below this title."""
    found = re.search(rf"<dt>{what}</dt><dd>(.*?)</dd>", fetched(client, "rack"))
    assert found is not None, what
    return found[1]


def kept(client: distributed.Client) -> list[int]:
    """By worker, ascending. Where two have a result, Dask drops one of them after a while."""
    return sorted(worker["kept_bytes"] for worker in document(client)["workers"])


def test_its_figures_follow_what_the_cluster_does(client: distributed.Client) -> None:
    first, second = sorted(client.scheduler_info()["workers"])
    until(lambda: len(document(client)["workers"]) == 2, "both workers")
    before = document(client)
    made = client.submit(np.ones, 8 * MIB, workers=[first], pure=False)
    assert client.submit(np.sum, made, workers=[second]).result() == 8 * MIB

    until(lambda: kept(client) == [0, 64 * MIB], "what is kept, by one of the two")
    until(
        lambda: document(client)["not_copied_bytes"] >= before["not_copied_bytes"] + 64 * MIB,
        "what is not copied",
    )
    after = document(client)
    assert max(after["not_copied_bytes_per_second_history"]) > 0
    assert shown(client, "kept in the rack") == "64.00 MiB" and shown(client, "not copied so far") != "0 B"
    del made
    until(lambda: shown(client, "kept in the rack") == "0 B", "that it is given back")


def test_a_death_and_what_follows_is_seen(client: distributed.Client, tmp_path: Path) -> None:
    scattered = client.scatter(np.ones(MIB), workers=sorted(client.scheduler_info()["workers"])[:1])
    future = client.submit(walk, tmp_path / "notes", 40)
    os.kill(wait_for_steps(tmp_path / "notes", 20), signal.SIGKILL)
    assert future.result() == walked(40)
    until(lambda: shown(client, "tasks resumed") == "1", "the resumed task")
    until(lambda: int(shown(client, "steals")) >= 1, "the steal")
    client.wait_for_workers(2, timeout=30)
    assert document(client)["results_inherited"] in (0, 1)  # whether it was on the one that died
    assert scattered.result().sum() == MIB


def test_without_the_plugin_it_is_not_there() -> None:
    with cluster_of(1, distributed.LocalCluster) as client:
        with pytest.raises(urllib.error.HTTPError, match="404"):
            fetched(client, "rack")
        client.register_plugin(bequest.dask.Rack())
        assert "<title>Rack</title>" in fetched(client, "rack") == fetched(client, "with/prefix/rack/")
        client.unregister_scheduler_plugin("bequest-rack")
        with pytest.raises(urllib.error.HTTPError, match=r"404.*not a plugin of this cluster any more"):
            fetched(client, "rack")


def test_it_says_that_dasks_own_pages_need_bokeh_or_is_in_their_bar(client: distributed.Client) -> None:
    try:
        import bokeh  # noqa: F401
    except ImportError:
        assert "pip install bokeh" in fetched(client, "rack")
    else:
        assert "pip install bokeh" not in fetched(client, "rack")
        assert 'href="rack"' in fetched(client, "status")


# --- the sums --------------------------------------------------------------------------------------------------------


class Scheduler:
    """As much of one as figures look at."""

    def __init__(self) -> None:
        self.workers: dict[str, Any] = {}
        self.members: dict[str, Member] = {}
        self.results_inherited = 0

    def tells(self, address: str, count: int) -> None:
        counts = {"kept_bytes": 1, **dict.fromkeys(COUNTED, count)}
        self.workers[address] = type("W", (), {"metrics": {"bequest": counts}, "name": address})
        self.members[address] = Member("/rack", address)


def test_what_the_dead_have_done_stays_counted_and_who_comes_to_their_address_begins_anew() -> None:
    world = Scheduler()
    figures = Figures(world, world, 0.0)  # type: ignore[arg-type]
    world.tells("a", 10)
    figures.look(1.0)
    world.tells("b", 5)
    figures.look(2.0)
    assert figures.document()["steals"] == 15
    del world.workers["a"], world.members["a"]
    figures.look(3.0)
    assert figures.document()["steals"] == 15 and len(figures.document()["workers"]) == 1
    world.tells("a", 3)
    world.tells("b", 1)  # another one
    figures.look(4.0)
    assert figures.document()["steals"] == 19
    assert figures.document()["grants_per_second"] == pytest.approx(19 / 4)


def test_the_line_goes_from_left_to_right_and_up() -> None:
    assert course([0.0, 1.0, 2.0], 20, 10) == "0.0,10.0 10.0,5.0 20.0,0.0"
    assert course([0.0, 0.0], 10, 10) == "0.0,10.0 10.0,10.0"
