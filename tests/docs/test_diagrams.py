"""The state diagrams in the documentation have exactly the transitions that the native code knows."""

from __future__ import annotations

import re

from pages import ROOT, table_rows

PAGE = ROOT / "docs" / "reference" / "address-plan.md"
TABLE = ROOT / "native" / "v2p_table.cpp"
INBOX = ROOT / "native" / "inbox.cpp"
STATES = ["EMPTY", "EMBRYO", "FREE", "OWNED", "IN_FLIGHT", "FROZEN", "THAWING"]
Transition = tuple[str, str]


def legal_transitions() -> set[Transition]:
    """From the table kLegal: a row for each state, a column for each state that may follow."""
    source = TABLE.read_text()
    columns = re.search(r"From \(row\) to \(column\)\.\s+(.*)", source)
    assert columns is not None and columns[1].split() == STATES
    rows = re.findall(r"/\* (\w+) +\*/ \{([_X, ]+)\}", source)
    assert [name for name, _ in rows] == STATES
    return {
        (name, after)
        for name, marks in rows
        for after, mark in zip(STATES, re.findall("[_X]", marks), strict=True)
        if mark == "X"
    }


def drawn(heading: str) -> set[Transition]:
    """The arrows of the Mermaid diagram below a heading, without its beginning and end."""
    below = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    diagram = re.search(r"```mermaid\nstateDiagram-v2\n(.*?)```", below, re.DOTALL)
    assert diagram is not None, heading
    arrows = [match.groups() for match in re.finditer(r"^ +(\w+) --> (\w+)", diagram[1], re.MULTILINE)]
    assert arrows and len(arrows) == len(set(arrows))
    return {(before, after) for before, after in arrows}


def told(heading: str) -> set[Transition]:
    return {(before, after) for before, after, *_ in table_rows(PAGE, heading)}


def test_the_owner_words_diagram_is_the_table_in_the_code() -> None:
    assert drawn("The owner word") == legal_transitions()
    assert told("Transitions of the owner word") == legal_transitions()


def code_of(function: str) -> str:
    found = re.search(rf"Inbox::{function}\(.*?^}}", INBOX.read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None, f"inbox.cpp has no {function}"
    return found[0]


def functions_that_change_cells() -> set[str]:
    bodies = re.findall(r"Inbox::(\w+)\([^;{]*\{(.*?)^\}", INBOX.read_text(), re.MULTILINE | re.DOTALL)
    return {name for name, body in bodies if re.search(r"\bchange\(", body)}


def test_the_cells_diagram_is_what_the_inbox_does() -> None:
    rows = table_rows(PAGE, "Transitions of a cell")
    assert drawn("The inbox cell") == told("Transitions of a cell")
    named: set[str] = set()
    for before, after, by, *_ in rows:
        for function in re.findall(r"(\w+)\(\)", by):
            code = code_of(function)
            named.add(function)
            assert state(before) in code, f"{function} does not start from {before}"
            leads_there = state(after) in code or (after == "EMPTY" and "emptied(" in code)
            assert leads_there, f"{function} does not lead to {after}"
    assert named == functions_that_change_cells()


def state(name: str) -> str:
    return "CellState::k" + name.title()
