"""``bequest demo``: the word count of the examples, as `make demo` runs it."""

from __future__ import annotations

import click

from bequest.cli.passing import SETTINGS, arguments, pass_to


@click.command("demo", context_settings=SETTINGS)
@arguments
def command(arguments: tuple[str, ...]) -> int:
    """MapReduce over real text, handed over without a copy. Arguments are those of the example."""
    return pass_to("bequest._examples.word_count", arguments, "demo", "test")
