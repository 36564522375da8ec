"""Tables that fit: columns of numbers keep their width, names give way.

rich shrinks all columns alike when a table is too wide, so that numbers are cut off; here only the columns named as
flexible shrink, the widest first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Column, Table
    from rich.text import Text

GAP = 2
_NAME_MIN = 7


def new_table(*, footer: bool = False) -> Table:
    """A table without lines."""
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", show_footer=footer)


def add_names(table: Table, header: str) -> None:
    """A column of names: flexible."""
    table.add_column(header, no_wrap=True, overflow="ellipsis")


def add_numbers(table: Table, header: str, footer: str = "", style: str = "") -> None:
    """A column of numbers: as wide as they are."""
    table.add_column(header, footer, justify="right", no_wrap=True, style=style, footer_style="bold")


def name(text: str) -> Text:
    """A name as it is: what looks like markup in it is none."""
    from rich.text import Text

    return Text(text)


def fit(table: Table, width: int, flexible: Sequence[str]) -> Table:
    """The table, with its flexible columns (by header) so narrow that it fits."""
    widths = {id(column): _natural_width(column) for column in table.columns}
    names = [column for column in table.columns if column.header in flexible]
    excess = sum(widths.values()) + GAP * (len(table.columns) - 1) - width
    while excess > 0:
        widest = max(names, key=lambda column: widths[id(column)], default=None)
        if widest is None or widths[id(widest)] <= _NAME_MIN:
            break
        widths[id(widest)] -= 1
        excess -= 1
    for column in table.columns:
        column.width = widths[id(column)]
    return table


def _natural_width(column: Column) -> int:
    from rich.cells import cell_len
    from rich.text import Text

    cells = [column.header, column.footer, *column.cells]
    natural = max(cell_len(cell.plain if isinstance(cell, Text) else str(cell)) for cell in cells)
    return column.width or natural
