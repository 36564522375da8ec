"""``bequest bench``: the benchmarks, as `make bench` runs them."""

from __future__ import annotations

import click

from bequest.cli.passing import SETTINGS, arguments, pass_to


@click.command("bench", context_settings=SETTINGS)
@arguments
def command(arguments: tuple[str, ...]) -> int:
    """Bequest beside its peers, in one run. Arguments are those of the benchmarks."""
    return pass_to("bequest._benchmarks.__main__", arguments, "benchmark", "bench")
