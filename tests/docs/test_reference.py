"""The reference says what the code says: names, signatures, exceptions, figures."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

import bequest as bq
import wire_page
from bequest import _core, actors, dask, errors, limits, objects
from bequest.wire import messages as wire
from pages import ROOT, table_rows

REFERENCE = ROOT / "docs" / "reference" / "python.md"
OBJECTS = ROOT / "docs" / "reference" / "objects.md"
ACTORS = ROOT / "docs" / "reference" / "actors.md"
DASK = ROOT / "docs" / "reference" / "dask.md"
ERRORS = ROOT / "docs" / "reference" / "errors.md"
ADDRESSES = ROOT / "docs" / "reference" / "address-plan.md"

EXCEPTIONS = {
    name
    for name in bq.__all__
    if isinstance(found := getattr(bq, name), type) and issubclass(found, BaseException)
}
NAMES = {  # of each page, with the module's
    REFERENCE: {
        name: getattr(bq, name)
        for name in bq.__all__
        if name not in EXCEPTIONS | {"actors"} and not hasattr(objects, name) and not hasattr(actors, name)
    }
    | {"Queue": bq.Queue},  # there are two
    OBJECTS: {name: getattr(objects, name) for name in objects.__all__},
    ACTORS: {name: getattr(actors, name) for name in actors.__all__},
    DASK: {name: getattr(dask, name) for name in dask.__all__},
}
MODULES = {REFERENCE: "bequest", OBJECTS: "objects", ACTORS: "actors", DASK: "bequest.dask"}
PLAIN_CLASSES = {
    (page, name): found
    for page, names in NAMES.items()
    for name, found in names.items()
    if isinstance(found, type)
}


def documented(page: Path = REFERENCE) -> dict[str, str]:
    """Each heading of the reference that names something: its name, and the signature as written, or ""."""
    headings = re.findall(r"^#{2,4} `(?:await )?([\w.]+)(\(.*\))?`$", page.read_text(), re.MULTILINE)
    assert len(headings) > 5
    return dict(headings)


def marked(cases: Iterable[tuple[Path, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("page", "name"),
        [pytest.param(page, name, id=f"{MODULES[page]}.{name}") for page, name in cases],
    )


def signature_of(found: object, *, bound: bool) -> str:
    """As the reference writes it: no annotations, no self."""
    signature = inspect.signature(found)  # type: ignore[arg-type]
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()
    ]
    return str(inspect.Signature(parameters[1:] if bound else parameters))


def members_of(found: type) -> dict[str, object]:
    """What a user may call or read of a class: its public methods, properties and fields."""
    members = {}
    for base in reversed(found.__mro__):
        if base.__module__.partition(".")[0] == "bequest":
            members.update({name: base.__dict__[name] for name in base.__dict__ if name[0] != "_"})
            names = base.__dict__.get("__dataclass_fields__", {})
            members.update({name: property() for name in names})
    return members


@marked((page, name) for page, names in NAMES.items() for name in names)
def test_every_public_name_has_its_heading(page: Path, name: str) -> None:
    headings = documented(page)
    title = f"{MODULES[page]}.{name}"
    assert title in headings
    found = NAMES[page][name]
    if not isinstance(found, type):
        assert headings[title] == signature_of(found, bound=False)


EVENTS = {name for (_, name), found in PLAIN_CLASSES.items() if issubclass(found, bq.Event)}


def test_every_event_has_its_row_with_its_fields() -> None:
    rows = {row[0]: row[1] for row in table_rows(REFERENCE, "`bequest.Event`")}
    assert set(rows) == EVENTS - {"Event"}
    for name, written in rows.items():
        fields = re.findall(r"\w+", written.replace("`", ""))
        assert fields == list(getattr(bq, name).__dataclass_fields__), name


# Public in Python's sense only: for the command line, or for the package itself.
INTERNAL = {
    "Rack": {
        "request",
        "start",
        "transition",
        "remove_worker",
        "close",
        "estates",
        "figures",
    },  # one calls the MMU; the others Dask calls
    "Process": {"check_rack", "element_of", "wait_for_room", "mappings", "live_views"},
    "Region": {"offset", "remaining"},
    "Inbox": {"close"},
    "Queue": set(),
    "Group": set(),
    "Events": set(),
    "Standby": set(),
    "Death": set(),
}


@marked(key for key in PLAIN_CLASSES if key[1] not in EVENTS)
def test_every_member_has_its_heading(page: Path, name: str) -> None:
    headings = documented(page)
    members = {
        key: value
        for key, value in members_of(PLAIN_CLASSES[page, name]).items()
        if key not in INTERNAL.get(name, set())
    }
    assert members or page == DASK  # what Dask's classes have besides is on Dask's pages
    missing = [member for member in members if f"{name}.{member}" not in headings]
    assert not missing, f"the reference lacks {name}.{', '.join(missing)}"
    for member, value in members.items():
        if inspect.isfunction(value):
            assert headings[f"{name}.{member}"] == signature_of(value, bound=True), member


@pytest.mark.parametrize("page", MODULES, ids=MODULES.get)
def test_nothing_is_documented_that_is_not_there(page: Path) -> None:
    for heading in documented(page):
        owner, _, member = heading.rpartition(".")
        if owner == MODULES[page]:
            assert member in NAMES[page], heading
        else:
            found = PLAIN_CLASSES[page, owner]
            assert member in members_of(found) or member in instance_attributes_of(found), heading


def instance_attributes_of(found: type) -> set[str]:
    """What its `__init__` gives to every instance for users to read."""
    if not inspect.isfunction(found.__init__) or dataclasses.is_dataclass(found):
        return set()  # there is no such text, or the class names its fields already
    return set(
        re.findall(r"^ +self\.([a-z]\w*)(?:: [^=]+)? = ", inspect.getsource(found.__init__), re.MULTILINE)
    )


WRITTEN_TOGETHER = {"Death", "Standby"}  # one sentence has all of them


@marked(key for key in PLAIN_CLASSES if key[1] not in EVENTS | WRITTEN_TOGETHER)
def test_instance_attributes_are_documented(page: Path, name: str) -> None:
    public = instance_attributes_of(PLAIN_CLASSES[page, name]) - INTERNAL.get(name, set())
    missing = [attribute for attribute in public if f"{name}.{attribute}" not in documented(page)]
    assert not missing, f"the reference lacks {name}.{', '.join(missing)}"


def test_every_exception_has_its_row() -> None:
    rows = {row[0]: row for kind in ("The caller's mistakes", "The peers' doing", "Faults of components")
            for row in table_rows(ERRORS, kind)}  # fmt: skip
    raised = {
        found.__name__
        for found in [*vars(errors).values(), *(getattr(bq, name) for name in EXCEPTIONS)]
        if isinstance(found, type)
        and issubclass(found, errors.BequestError)
        and found is not errors.BequestError
    }
    assert set(rows) == raised
    for name, row in rows.items():
        found = getattr(bq, name, None) or getattr(errors, name)
        bases = [base.__name__ for base in found.__mro__[1:] if issubclass(base, Exception)]
        assert row[1] in bases, f"{name} is also {row[1]}: its bases are {bases}"
        assert row[2] and row[3], f"{name}: when is it raised, and what helps?"


def test_the_address_plan_has_the_figures_of_the_code() -> None:
    rows = table_rows(ADDRESSES, "Figures")
    assert len(rows) >= 10
    for name, written, _ in rows:
        figure = getattr(limits, name, None)
        figure = getattr(_core, name) if figure is None else figure
        assert int(written.replace(",", "").replace("_", ""), 0) == figure, name


# --- messages and the journal -----------------------------------------------------------------------------


def test_every_message_has_its_row_with_its_fields() -> None:
    page = wire_page.PAGE.read_text()
    assert page == wire_page.written(), "write the tables of messages anew: python tests/docs/wire_page.py"


def test_every_union_of_messages_is_on_the_page() -> None:
    directions = {name for name in vars(wire) if re.fullmatch(r"[A-Z][a-z]+To[A-Z]\w+|MmuSocket", name)}
    shown = [*wire_page.UNIONS.values(), wire.ClientToMmu]  # the last is a part of the first
    assert all(getattr(wire, name) in shown for name in directions)


def test_every_book_has_its_row() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "src/bequest/protocol").glob("*.py"))
    opened = set(re.findall(r'(?:books|self)\.open\(f?"([^"]+)", (?!Standby, int\)  # where)', sources))
    written = {row[0] for row in table_rows(wire_page.PAGE, "Books")}
    assert {name.replace("{kind.value}", "…") for name in opened} == written


# --- the table ----------------------------------------------------------------------------------------------

LAYOUT = ROOT / "native" / "layout.hpp"
STRUCTS = {
    "The header": "TableHeader",
    "A slot": "Slot",
    "An intent": "Intent",
    "A slab record": "SlabRecord",
    "A descriptor": "Descriptor",
    "A cell": "Cell",
}


def fields_of(struct: str) -> list[str]:
    """In the order of the C++ source."""
    body = re.search(rf"^struct {struct} \{{.*?\n(.*?)^\}};", LAYOUT.read_text(), re.MULTILINE | re.DOTALL)
    assert body is not None, struct
    fields: list[str] = []
    for line in body[1].splitlines():
        code = line.partition("//")[0].strip().removeprefix("alignas(64) ")
        if code.endswith(";") and "static" not in code and "(" not in code:
            names = re.sub(r"^(?:unsigned char|[\w:]+(?:<\w+>)?) ", "", code)
            fields += re.findall(r"(\w+)(?:\[[^\]]*\])?(?:,|;)", names)
    return [field for field in fields if field != "reserved"]


@pytest.mark.parametrize("heading", STRUCTS)
def test_every_field_of_the_table_has_its_row(heading: str) -> None:
    written = [name for row in table_rows(ADDRESSES, heading) for name in re.findall(r"\w+", row[0])]
    assert written == fields_of(STRUCTS[heading])
