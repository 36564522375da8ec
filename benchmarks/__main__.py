"""`python -m benchmarks [BENCHMARK ...]`: Bequest beside its peers, every figure held to its target."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from . import report
from .handoff import SIZES
from .isolation import BENCHMARKS, DASK_BENCHMARKS, isolated
from .measure import KIB
from .peers import PEERS

LOG_WIDTH = 160
DOCS_PAGE = Path("docs/benchmarks.md")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "benchmarks",
        nargs="*",
        metavar="BENCHMARK",
        help=f"{', '.join(BENCHMARKS)} (default: all of these), {', '.join(DASK_BENCHMARKS)}",
    )
    parser.add_argument(
        "--quick", action="store_true", help="few repeats: shows that all works, and rough figures"
    )
    parser.add_argument("--peers", metavar="NAME,...", help=f"only these in handoff: {', '.join(PEERS)}")
    parser.add_argument("--sizes", metavar="KIB,...", help="only these sizes in handoff, in KiB")
    parser.add_argument("--job", type=float, metavar="SECONDS", help="how long a job of dask_failures is")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument(
        "--write-docs",
        type=Path,
        nargs="?",
        const=DOCS_PAGE,
        metavar="FILE",
        help=f"write the page with the tables (default: {DOCS_PAGE})",
    )
    options = parser.parse_args(arguments)
    for chosen, known, what in (
        (options.benchmarks, BENCHMARKS + DASK_BENCHMARKS, "benchmark"),
        (options.peers.split(",") if options.peers else [], PEERS, "peer"),
    ):
        for name in chosen:
            if name not in known:
                parser.error(f"there is no {what} {name!r}; choose from {', '.join(known)}")
    return options


def options_of(benchmark: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a benchmark is asked for beyond the usual."""
    if benchmark == "dask_failures":
        return {"seconds": options.job}
    if benchmark != "handoff":
        return {}
    return {
        "peers": tuple(options.peers.split(",")) if options.peers else tuple(PEERS),
        "sizes": tuple(int(size) * KIB for size in options.sizes.split(",")) if options.sizes else SIZES,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs what was chosen; 0 if every benchmark came to its end, whatever the figures are."""
    options = parse(arguments)
    outcomes = [
        isolated(benchmark, options.quick, options_of(benchmark, options))
        for benchmark in options.benchmarks or BENCHMARKS
    ]
    given = shlex.join(sys.argv[1:] if arguments is None else arguments)
    run = report.describe(f"python -m benchmarks {given}".rstrip(), outcomes)
    console = Console()
    report.print_report(run, console if console.is_terminal else Console(width=LOG_WIDTH))
    if options.json:
        options.json.write_text(report.as_json(run), encoding="utf-8")
    if options.write_docs:
        options.write_docs.parent.mkdir(parents=True, exist_ok=True)
        options.write_docs.write_text(report.as_markdown(run), encoding="utf-8")
    return 1 if any(outcome.failure for outcome in outcomes) else 0


if __name__ == "__main__":
    raise SystemExit(main())
