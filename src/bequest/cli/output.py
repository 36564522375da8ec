"""How verbs speak: to people through rich, to programs as JSON, to both about what went wrong.

A verb gets an `Output` as its context object (``@click.pass_obj``). It says either `document` or prints to `console`,
never both. rich is imported with the first `console`, so that ``--json`` does without it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

_F = TypeVar("_F", bound=Callable[..., Any])
_PIPED_COLUMNS = 160  # nobody looks at a pipe's edge; names should not be cut off there


class Output:
    """Where a verb's answer goes; ``json`` is set by the ``--json`` option."""

    def __init__(self) -> None:
        self.json = False

    @cached_property
    def console(self) -> Console:
        """For people: as wide as the terminal, in colour only if it is one (and $NO_COLOR is not set)."""
        from rich.console import Console

        width = _PIPED_COLUMNS if not sys.stdout.isatty() and "COLUMNS" not in os.environ else None
        return Console(width=width, highlight=False, soft_wrap=False)

    def document(self, value: Mapping[str, Any]) -> None:
        """The one JSON document of a verb."""
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))

    def line(self, value: Mapping[str, Any]) -> None:
        """One of several JSON documents, each on a line."""
        click.echo(json.dumps(value, ensure_ascii=False, separators=(",", ":")))

    def error(self, kind: str, message: str) -> None:
        """What went wrong: one line on standard error, or ``{"error": …}`` on standard output."""
        text = " ".join(message.split())
        if self.json:
            self.document({"error": {"kind": kind, "message": text}})
        else:
            click.echo(f"{click.style('bequest:', fg='red', bold=True)} {text}", err=True)


def json_option(function: _F) -> _F:
    """``--json``; it sets `Output.json` and is no argument of the verb."""

    def note(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
        ctx.ensure_object(Output).json = wanted

    return click.option(
        "--json", is_flag=True, is_eager=True, expose_value=False, callback=note, help="Answer as JSON."
    )(function)
