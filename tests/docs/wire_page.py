"""The tables of messages on docs/reference/wire.md, made from the messages themselves.

``python tests/docs/wire_page.py`` writes them anew. A row has the fields of its message and its docstring; where there
is none, it keeps the sentence that stands there.
"""

from __future__ import annotations

import re
from typing import get_args

from bequest.wire import messages as wire
from bequest.wire import supervision
from pages import ROOT

PAGE = ROOT / "docs" / "reference" / "wire.md"
UNIONS = {
    "Client to Rack MMU": wire.MmuSocket,
    "Client to agent": wire.ClientToAgent,
    "Client to memory element": wire.ClientToElement,
    "Client to rack monitor": wire.ClientToMonitor,
    "Daemon to client": wire.DaemonToClient,
    "Rack MMU to memory element": wire.MmuToElement,
    "Memory element to Rack MMU": wire.ElementToMmu,
    "Rack MMU to agent": wire.MmuToAgent,
    "Agent to Rack MMU": wire.AgentToMmu,
    "Rack MMU to rack monitor": wire.MmuToMonitor,
    "Rack monitor to Rack MMU": wire.MonitorToMmu,
    "Rack monitor to agents and memory elements, and back": wire.Ping | wire.Pong,
    "Daemon to supervisor": supervision.DaemonToSupervisor,
    "Supervisor to daemon": supervision.SupervisorToDaemon,
}
_TABLE = r"(?<=\| message \| fields \| what \|\n\|---\|---\|---\|\n)(?:\|.*\n)*"


def written() -> str:
    """The page with its tables as they have to be."""
    page = PAGE.read_text()
    told = dict(re.findall(r"^\| `(\w+)` \| .*? \| (.*) \|$", page, re.MULTILINE))
    for heading, union in UNIONS.items():
        start = page.index(f"\n## {heading}\n")
        rows = "".join(_row(message, told) for message in get_args(union))
        page = page[:start] + re.sub(_TABLE, lambda _, rows=rows: rows, page[start:], count=1)
    return page


def _row(message: type, told: dict[str, str]) -> str:
    fields = ", ".join(f"`{field}`" for field in message.__struct_fields__)
    documentation = vars(message).get("__doc__")
    what = _sentence(documentation) if documentation else told.get(message.__name__)
    assert what, f"what {message.__name__} means is said nowhere: give it a docstring"
    return f"| `{message.__name__}` | {fields} | {what} |\n"


def _sentence(documentation: str) -> str:
    text = " ".join(documentation.split()).replace("``", "`").replace("|", "\\|").replace("-> ", "→ ")
    text = re.sub(r"(?<![`\w])([A-Z][a-z]+[A-Z]\w+)(?![`\w])", _as_code, text)
    text = re.sub(r"(?<=→ )([A-Z]\w+)(?!\w)", _as_code, text)
    return text[0].upper() + text[1:]


def _as_code(name: re.Match[str]) -> str:
    is_message = hasattr(wire, name[1]) or hasattr(supervision, name[1])
    return f"`{name[1]}`" if is_message else name[1]


if __name__ == "__main__":
    PAGE.write_text(written())
