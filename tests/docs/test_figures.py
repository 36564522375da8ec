"""README's figures are those of the last benchmark: each is what docs/benchmarks.md says, rounded."""

from __future__ import annotations

import re

import pytest

from pages import ROOT, table_rows

README = ROOT / "README.md"
BENCHMARKS = ROOT / "docs" / "benchmarks.md"
MEASURED_AS = {  # README's rows, and what the benchmark calls them
    "Bequest, both spin": "Bequest grant, both spin",
    "Bequest, the receiver sleeps": "Bequest grant, the receiver sleeps",
    "iceoryx2, both spin (read-only, nothing is revoked)": "iceoryx2 publish-subscribe",
    "multiprocessing.SimpleQueue": "multiprocessing.SimpleQueue",
    "multiprocessing.shared_memory, filled beforehand": "multiprocessing.shared_memory",
    "Ray, put and actor get": "Ray put + actor get",
    "Dask, task to task": "Dask task to task",
}
UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "/s": 1.0}
FIGURE = r"(\d[\d,]*(?:\.(\d+))?) ?(ns|µs|ms|s|/s)?"


def value(figure: str) -> float:
    match = re.fullmatch(FIGURE, figure)
    assert match is not None, f"{figure!r} is no figure"
    return float(match[1].replace(",", "")) * UNITS[match[3] or ""]


def is_rounded(figure: str, measured: float) -> bool:
    match = re.fullmatch(FIGURE, figure)
    assert match is not None, f"{figure!r} is no figure"
    zeros = len(match[1]) - len(match[1].rstrip("0,")) - match[1][len(match[1].rstrip("0,")) :].count(",")
    last_place = 10.0 ** (-len(match[2]) if match[2] else zeros)
    return abs(value(figure) - measured) <= last_place * UNITS[match[3] or ""] * 0.5001


def medians() -> list[float]:
    """Everything that stands first in a cell of the benchmarks' tables and is a figure."""
    cells = re.findall(rf"(?<=\| ){FIGURE}(?=<br>| \|)", BENCHMARKS.read_text())
    return [value(" ".join(filter(None, (number, unit)))) for number, _, unit in cells]


def prose() -> str:
    section = README.read_text().partition("<!-- figures -->")[2].partition("<!-- /figures -->")[0]
    return " ".join(line for line in section.splitlines() if not line.startswith("|"))


READMES = {row[0]: row[1:] for row in table_rows(README, "Figures")}
MEASURED = {row[0]: row[1:] for row in table_rows(BENCHMARKS, "handoff")}
SENTENCES = re.findall(r"[\d.]+ (?:ns|µs|ms|s)\b|\d{1,3}(?:,\d{3})+", prose())


@pytest.mark.parametrize("row", READMES)
def test_a_row_says_what_was_measured(row: str) -> None:
    measured = [cell.split("<br>")[0] for cell in MEASURED[MEASURED_AS[row]]]
    for said, figure in zip(READMES[row], measured, strict=True):
        assert is_rounded(said, value(figure)), f"{row}: {said} was measured as {figure}"


@pytest.mark.parametrize("figure", SENTENCES)
def test_a_sentence_says_what_was_measured(figure: str) -> None:
    assert any(is_rounded(figure, measured) for measured in medians())


def test_figures_are_rounded_to_the_places_that_they_have() -> None:
    assert is_rounded("7 ms", 0.00749) and not is_rounded("7.0 ms", 0.00706)
    assert is_rounded("260 µs", 264e-6) and not is_rounded("261 µs", 262e-6)
    assert is_rounded("1,970,000", 1_972_727) and not is_rounded("1,970,000", 1_976_000)
    assert len(READMES) >= 7 and len(SENTENCES) >= 10
