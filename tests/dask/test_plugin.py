"""How a cluster's workers come to be in a rack, and what happens when they cannot."""

from __future__ import annotations

import subprocess
import sys

import distributed
import pytest

import bequest.dask
from actors import until
from bequest.dask import compat
from bequest.dask.rack_worker import here, name_of
from bequest.limits import NAME_BYTES_MAX
from clusters import cluster_of
from racks import RackUnderTest


def neighbours(addresses: list[str]) -> tuple[str, list[str | None]]:
    place = here()
    assert place is not None
    return str(place.rack.directory), [place.peer(address) for address in addresses]


def has_place() -> bool:
    return here() is not None


def test_workers_of_a_host_are_in_one_rack_and_know_it(client: distributed.Client) -> None:
    workers = list(client.scheduler_info()["workers"])
    answers = client.run(neighbours, [*workers, "tcp://10.1.2.3:4567"])
    assert len({rack for rack, _ in answers.values()}) == 1
    for _, peers in answers.values():
        assert peers == [name_of(workers[0]), name_of(workers[1]), None]


def test_the_scheduler_knows_who_is_where(client: distributed.Client) -> None:
    members = client.run_on_scheduler(
        lambda dask_scheduler: dask_scheduler.plugins["bequest-rack"].estates.members
    )
    assert {address: member.name for address, member in members.items()} == {
        address: name_of(address) for address in client.scheduler_info()["workers"]
    }


def test_the_plugin_is_added_to_a_cluster_that_runs_and_workers_that_come_later_have_it() -> None:
    with cluster_of(1, distributed.LocalCluster) as client:
        client.register_plugin(bequest.dask.Rack())
        client.register_plugin(bequest.dask.Rack())  # once is enough, and twice no harm
        client.cluster.scale(2)
        client.wait_for_workers(2, timeout=30)
        workers = list(client.scheduler_info()["workers"])
        answers = client.run(neighbours, workers)
        assert len({rack for rack, _ in answers.values()}) == 1
        assert all(None not in peers for _, peers in answers.values())


def test_a_worker_that_preloads_it_brings_it_to_the_whole_cluster() -> None:
    with cluster_of(2, distributed.LocalCluster, preload=["bequest.dask"]) as client:
        assert all(client.run(has_place).values())


def test_without_the_rack_that_was_named_workers_work_as_without_bequest() -> None:
    with cluster_of(1, rack="no-such-rack") as client:
        assert client.submit(sum, [1, 2]).result() == 3
        assert not any(client.run(has_place).values())
        (log,) = client.get_worker_logs().values()
        assert [line for _, line in log if "no rack for" in line and "no-such-rack" in line] != []


def test_a_rack_cluster_joins_the_rack_that_is_named_and_keeps_its_caller_s_plugins(
    rack: RackUnderTest,
) -> None:
    class Another(distributed.SchedulerPlugin):
        name = "another"

    with cluster_of(1, rack=str(rack.directory), scheduler_kwargs={"plugins": [Another()]}) as client:
        (worker,) = client.scheduler_info()["workers"]
        assert client.run(neighbours, [worker])[worker] == (str(rack.directory), [name_of(worker)])
        assert name_of(worker) in rack.processes()
        plugins = client.run_on_scheduler(lambda dask_scheduler: sorted(dask_scheduler.plugins))
        assert {"another", "bequest-rack"} <= set(plugins)


def test_a_nanny_that_the_plugin_is_not_on_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(nanny: distributed.Nanny) -> None:
        raise LookupError("for this test")

    monkeypatch.setattr(compat, "spare_readers", refuse)  # nannies of such a cluster are in this process
    with cluster_of(1, distributed.LocalCluster) as client:
        client.register_plugin(bequest.dask.Rack())
        (worker,) = client.scheduler_info()["workers"]

        def told() -> list[str]:
            return [line for level, line in client.get_scheduler_logs() if level == "ERROR"]

        (line,) = until(told, "a word about the nanny")
        assert f"the nanny of {worker} may end it" in line and "for this test" in line


def test_workers_that_share_a_process_need_no_rack() -> None:
    with cluster_of(2, processes=False) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        assert here() is None


def test_a_worker_s_name_in_the_rack_is_one() -> None:
    assert name_of("tcp://127.0.0.1:40123") == "dask 127.0.0.1:40123"
    for odd in ("tls://[2001:0db8:85a3:0000:0000:8a2e:0370:7334%eth0]:40123", "ucx://" + "x" * 99):
        assert len(name_of(odd).encode()) <= NAME_BYTES_MAX


@pytest.mark.parametrize("version", ["2024.8.0", "2025.12.1", "2026.9.0", "2027.1.0", "2026.10.0"])
def test_a_release_that_was_not_tested_is_refused(version: str) -> None:
    with pytest.raises(compat.UnsupportedDask, match=f"this is {version}"):
        compat.check(version)


@pytest.mark.parametrize("version", [compat.OLDEST, compat.NEWEST, f"{compat.NEWEST}.7", compat.VERSION])
def test_releases_in_the_range_are_not(version: str) -> None:
    compat.check(version)


def test_a_release_whose_inside_differs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def remove_worker(self: object, address: str) -> None: ...

    monkeypatch.setattr(compat, "_NEEDED", ((remove_worker, ("address", "stimulus_id")),))
    with pytest.raises(compat.UnsupportedDask, match="remove_worker without stimulus_id"):
        compat.check()


def test_without_dask_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['distributed'] = None; import bequest.dask"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'bequest[dask]'" in ended.stderr


def test_bequest_alone_does_not_import_dask() -> None:
    program = (
        "import sys, bequest; bequest.connect; print('dask' in sys.modules, 'distributed' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["False", "False"]
