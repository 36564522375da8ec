"""Racks from flags and TOML: what is understood, and that every wrong value is told plainly."""

from __future__ import annotations

from pathlib import Path

import pytest

from bequest.errors import BadConfig
from bequest.runtime import config as module
from bequest.runtime.config import (
    ElementConfig,
    default_size,
    make_config,
    parse_element,
    parse_size,
    read_config,
)

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("4GiB", 4 * GIB),
        ("1.5g", GIB * 3 // 2),
        ("512 MiB", GIB // 2),
        ("2MB", 2_000_000),
        ("4096", 4096),
        ("1TiB", 1024 * GIB),
    ],
)
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "GiB", "4 gigs", "-1GiB", "1e999", "nan", "inf", "4GiB4"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(BadConfig, match="is no size"):
        parse_size(text)


def test_elements(tmp_path: Path) -> None:
    assert parse_element("dram0:4GiB") == ElementConfig("dram0", 4 * GIB, "dram")
    config = make_config(
        memory=["dram0:3MiB", f"pmem0:8GiB:file:{tmp_path}"], compute=["a", "b"], policy="spread"
    )
    assert config.elements == (
        ElementConfig("dram0", 2 << 20, "dram"),  # whole 2 MiB pages
        ElementConfig("pmem0", 8 * GIB, f"file:{tmp_path}"),
    )
    assert config.computes == ("a", "b")


def test_defaults() -> None:
    config = make_config()
    assert [element.kind for element in config.elements] == ["dram"]
    assert config.elements[0].size == pytest.approx(default_size(), rel=0.2)
    assert config.computes == ("host0",)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"memory": ["dram0"]}, "NAME:SIZE"),
        ({"memory": ["dram0:"]}, "NAME:SIZE"),
        ({"memory": [":4GiB"]}, "empty"),
        ({"memory": ["a/b:4GiB"]}, "'/'"),
        ({"memory": ["dram0:1MiB"]}, "the least is 2MiB"),
        ({"memory": ["dram0:4GiB:tape"]}, "use dram, huge or file:PATH"),
        ({"memory": ["pmem0:4GiB:file:/no/such/place"]}, "is no directory"),
        ({"memory": ["dram0:4GiB", "dram0:4GiB"]}, "two memory elements are called 'dram0'"),
        ({"memory": [f"d{n}:2MiB" for n in range(65)]}, "64 are allowed"),
        ({"compute": ["a", "a"]}, "two compute elements"),
        ({"compute": [""]}, "empty"),
        ({"name": "x" * 64}, "63 are allowed"),
        ({"name": ".hidden"}, "begins with a dot"),
        ({"policy": "first-fit"}, "best-fit, worst-fit, spread"),
        ({"orphan_keep": -1.0}, "orphan_keep"),
        ({"orphan_keep": float("nan")}, "orphan_keep"),
    ],
)
def test_wrong_flags(flags: dict[str, object], says: str) -> None:
    with pytest.raises(BadConfig, match=says):
        make_config(**flags)  # type: ignore[arg-type]


def test_huge_pages_must_be_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_meminfo", lambda field, unit=1: 0)
    with pytest.raises(BadConfig, match=r"vm\.nr_hugepages=512"):
        make_config(memory=["huge0:1GiB:huge"])


def test_toml(tmp_path: Path) -> None:
    path = tmp_path / "rack.toml"
    path.write_text(
        f"""
        name = "lab"
        policy = "worst-fit"
        orphan_keep = 5
        compute = ["host0", "host1"]
        [[memory]]
        name = "dram0"
        size = "1GiB"
        [[memory]]
        name = "pmem0"
        size = 4194304
        kind = "file:{tmp_path}"
        """
    )
    config = read_config(path)
    assert (config.name, config.policy, config.orphan_keep) == ("lab", "worst-fit", 5.0)
    assert [element.name for element in config.elements] == ["dram0", "pmem0"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name = ", "is not TOML"),
        ('nmae = "x"', "'nmae' is not known"),
        ("name = 3", "name must be a string"),
        ('compute = "host0"', "must be a list"),
        ("compute = []", "must be a list"),
        ("memory = 4", "memory must be a list"),
        ('[[memory]]\nname = "a"', "has a name, a size"),
        ('[[memory]]\nname = "a"\nsize = true', "is no size"),
        ('[[memory]]\nname = "a"\nsize = "big"', "is no size"),
        ('[[memory]]\nname = "a"\nsize = 1\nspeed = 2', "has a name, a size"),
        ('[[memory]]\nname = 1\nsize = "1GiB"', "name must be a string"),
        ("orphan_keep = true", "orphan_keep must be a number"),
        ("orphan_keep = -3", "orphan_keep is -3"),
    ],
)
def test_wrong_toml(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "rack.toml"
    path.write_text(text)
    with pytest.raises(BadConfig, match=says) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_no_toml(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="cannot be read"):
        read_config(tmp_path / "none.toml")


def test_the_default_respects_a_containers_limit(tmp_path: Path) -> None:
    group = Path("/proc/self/cgroup").read_text().splitlines()[-1].split(":", 2)[2]
    for directory, limit in ((tmp_path, "max"), (tmp_path / group.lstrip("/"), str(300 << 20))):
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "memory.max").write_text(limit)
        (directory / "memory.current").write_text(str(100 << 20))
    room = module._cgroup_room(tmp_path)
    assert room in ([200 << 20], [])  # [] where only version 1 is in use
