"""Verbs that hand their arguments to a program of the package: ``demo`` and ``bench``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

# Everything after the verb, --help included, is for the program.
SETTINGS: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}
arguments = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)


def pass_to(module: str, given: tuple[str, ...], what: str, extra: str) -> int:
    """Calls the module's ``main`` with these arguments; the exit code. What it lacks is said, and how to install it."""
    try:
        program = import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        advice = (
            f"pip install 'bequest[{extra}]'" if not missing.startswith("bequest") else "reinstall bequest"
        )
        raise click.ClickException(f"the {what} needs {missing}, which is not installed: {advice}") from error
    try:
        code = program.main(list(given))
    except SystemExit as end:  # argparse ends so
        code = end.code
    return code if isinstance(code, int) else 0
