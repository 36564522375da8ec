"""The rules of the house that no linter knows: few, each with its reason in the message it fails with.

Docstrings of public things, unused names and the order of imports within a file are ruff's; the order of the
layers is import-linter's. What remains is checked here on the syntax tree, or for C++ on the text between its
braces. Every checker is itself shown an offender, so that none can pass by looking at nothing.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "bequest"
FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600


def tracked_files() -> list[Path]:
    """What belongs to the project: what git tracks or would track, or, outside a clone, what lies in its folders."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    names = listing.stdout.split("\0") if listing.returncode == 0 else []
    paths = [ROOT / name for name in names if name] or [
        path
        for part in ("src", "native", "tests", "examples", "benchmarks")
        for path in (ROOT / part).rglob("*")
    ]
    return sorted(path for path in paths if path.is_file() and not path.is_symlink())


FILES = tracked_files()
PYTHON = [path for path in FILES if path.suffix == ".py"]
NATIVE = [path for path in FILES if path.suffix in {".cpp", ".hpp"}]
PRODUCT = [
    path for path in PYTHON + NATIVE if path.is_relative_to(SOURCE) or path.is_relative_to(ROOT / "native")
]
MODULES = [path for path in PYTHON if path.is_relative_to(SOURCE)]
CONSENSUS = frozenset({
    "acceptor", "candidate", "clerk", "core", "leader", "learner", "ledger", "log", "machine", "messages", "newcomer",
    "outputs", "reads", "reconfiguration", "sessions", "timing", "transfer", "turn",
})  # fmt: skip
PROTOCOL = [path for path in MODULES if path.is_relative_to(SOURCE / "protocol")] + [
    SOURCE / "paxos" / f"{name}.py" for name in sorted(CONSENSUS)
]


def named(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[str(path.relative_to(ROOT)) for path in paths])


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


# --- protocol/: inputs in, outputs out ----------------------------------------------------------------------

IMPURE = frozenset({
    "asyncio", "datetime", "io", "mmap", "multiprocessing", "numpy", "os", "pathlib", "random", "secrets", "select",
    "selectors", "signal", "socket", "subprocess", "tempfile", "threading", "time", "uuid",
})  # fmt: skip
SET_METHODS = frozenset({"union", "intersection", "difference", "symmetric_difference"})
ORDER_TAKERS = frozenset({"list", "tuple", "iter", "enumerate", "zip", "map", "filter", "next", "reversed"})


def impure_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in IMPURE)


def is_set_annotation(node: ast.expr | None) -> bool:
    return (
        node is not None
        and re.match(
            r"(typing\.)?(frozen)?set\b|AbstractSet\b|MutableSet\b", ast.unparse(node), re.IGNORECASE
        )
        is not None
    )


def names_of_sets(tree: ast.Module) -> frozenset[str]:
    """Names and attributes that are annotated as sets or are given one."""
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and is_set_annotation(node.annotation):
            found.append(node.target)
        elif isinstance(node, ast.arg) and is_set_annotation(node.annotation):
            found.append(ast.Name(node.arg))
        elif isinstance(node, ast.Assign) and is_set(node.value, frozenset()):
            found += node.targets
        elif isinstance(node, ast.FunctionDef) and is_set_annotation(node.returns):
            found.append(ast.Name(node.name))
    return frozenset(node.attr if isinstance(node, ast.Attribute) else ast.unparse(node) for node in found)


def is_set(node: ast.expr, sets: frozenset[str]) -> bool:
    match node:
        case ast.Set() | ast.SetComp():
            return True
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in sets
        case ast.Call(func=ast.Name(id="set" | "frozenset")):
            return True
        case ast.Call(func=ast.Attribute(value=owner, attr=method)) if (
            method in SET_METHODS or method == "copy"
        ):
            return method in SET_METHODS or is_set(owner, sets)
        case ast.Call(func=function):
            return is_set(function, sets)
        case ast.BinOp(left=left, right=right, op=ast.BitOr() | ast.BitAnd() | ast.Sub() | ast.BitXor()):
            return is_set(left, sets) or is_set(right, sets)
        case _:
            return False


def iterated_sets(tree: ast.Module) -> Iterator[str]:
    sets = names_of_sets(tree)
    for node in ast.walk(tree):
        taken: list[ast.expr] = []
        match node:
            case ast.For(iter=source) | ast.comprehension(iter=source) | ast.YieldFrom(value=source):
                taken = [source]
            case ast.Starred(value=source):
                taken = [source]
            case ast.Call(func=ast.Name(id=name), args=arguments) if name in ORDER_TAKERS:
                taken = arguments
            case ast.Call(func=ast.Attribute(value=owner, attr="pop"), args=[]):
                taken = [owner]
            case ast.Call(func=ast.Attribute(attr="join" | "extend"), args=arguments):
                taken = arguments
        yield from (
            f"line {source.lineno}: {ast.unparse(source)}" for source in taken if is_set(source, sets)
        )


@named(PROTOCOL)
def test_protocol_has_no_clock_no_chance_and_no_io(path: Path) -> None:
    found = list(impure_imports(tree_of(path)))
    assert not found, (
        f"{path.name} imports {', '.join(found)}. Code that decides takes `now` and its random generator as arguments"
        " and returns what to send: only so can the simulator replay a run from its seed."
    )


@named(PROTOCOL)
def test_protocol_iterates_no_set(path: Path) -> None:
    found = list(iterated_sets(tree_of(path)))
    assert not found, (
        f"{path.name} takes the order of a set at {'; '.join(found)}. That order changes from run to run: keep a dict"
        " (ordered by insertion) or say sorted(…)."
    )


@pytest.mark.parametrize(
    "offence",
    [
        "for x in {1, 2}: pass",
        "seen: set[int] = set()\nfor x in seen: pass",
        "def f(ids: frozenset[int]): return [x for x in ids]",
        "class A:\n  def f(self): self.live = set(); return list(self.live)",
        "class A:\n  live: set[int]\n  def f(self): return self.live.pop()",
        "a = {1} | other\nprint(*a)",
        "for x in left.difference(right): pass",
    ],
)
def test_the_set_checker_sees_an_offence(offence: str) -> None:
    assert list(iterated_sets(ast.parse(offence)))


def test_the_set_checker_lets_order_pass() -> None:
    tree = ast.parse(
        "seen: set[int] = set()\nfor x in sorted(seen): pass\nif 3 in seen: d = {1: 2}\nfor k in d: len(seen)"
    )
    assert not list(iterated_sets(tree))
    assert list(impure_imports(ast.parse("from time import monotonic\nimport os.path"))) == [
        "time",
        "os.path",
    ]


# --- size: a function fits on a screen, a file is a room one knows ------------------------------------------


def python_functions(text: str) -> Iterator[tuple[str, int]]:
    """Name and lines of each function, its docstring not counted."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if ast.get_docstring(node, clean=False) is not None:
                opening = node.body[0]
                lines -= (opening.end_lineno or opening.lineno) - opening.lineno + 1
            yield node.name, lines


NOT_CODE = re.compile(
    r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'|^\s*#(?:\\\n|[^\n])*',
    re.DOTALL | re.MULTILINE,
)
SCOPE = re.compile(r"\b(namespace|struct|class|enum|union|extern)\b[^()=]*$")


def native_functions(text: str) -> Iterator[tuple[str, int]]:
    """Head and lines of each outermost `…(…) … { }` that is not a type or a namespace."""
    code = NOT_CODE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    scopes: list[tuple[bool, int, str]] = []  # is it a namespace or a type?, first line, head
    start = 0
    for found in re.finditer(r"[{};]", code):
        inside_scopes_only = all(is_scope for is_scope, _, _ in scopes)
        if found[0] == "{":
            head = code[start : found.start()]
            line = code.count("\n", 0, start + len(head) - len(head.lstrip())) + 1
            scopes.append(
                (inside_scopes_only and SCOPE.search(head) is not None, line, " ".join(head.split()))
            )
        elif found[0] == "}" and scopes:
            is_scope, line, head = scopes.pop()
            if not is_scope and "(" in head and all(outer for outer, _, _ in scopes):
                yield head, code.count("\n", 0, found.start()) + 2 - line
        if inside_scopes_only or found[0] == "}":
            start = found.end()


@named(PRODUCT)
def test_functions_fit_on_a_screen(path: Path) -> None:
    functions = python_functions if path.suffix == ".py" else native_functions
    long = [
        f"{name} ({lines} lines)" for name, lines in functions(path.read_text()) if lines > FUNCTION_LINES_MAX
    ]
    assert not long, (
        f"{path.name}: {'; '.join(long)}. A function that does not fit on a screen ({FUNCTION_LINES_MAX} lines) cannot"
        " be checked by reading it: give its parts names."
    )


@named(PYTHON + NATIVE)
def test_files_are_short(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= FILE_LINES_MAX, (
        f"{path.name} has {lines} lines. Past {FILE_LINES_MAX} nobody knows a file whole: split it by role."
    )


def test_the_size_checkers_see_every_function() -> None:
    native = """namespace a {
struct B {
    int x = 0;
    void f() const {
        if (x) {
        }
    }
};
}
int g(int y)
{
    return y;
}
"""
    assert list(native_functions(native)) == [("void f() const", 4), ("int g(int y)", 4)]
    assert list(python_functions('def f():\n    """A.\n\n    B."""\n    return 1\n')) == [("f", 2)]


# --- every file says what it is, and is used ----------------------------------------------------------------


@named(PYTHON)
def test_modules_open_with_their_theory(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), (
        f"{path.name} has no docstring: open it with its theory of operation."
    )


@named([path for path in NATIVE if path.suffix == ".hpp" or not path.with_suffix(".hpp").exists()])
def test_native_files_open_with_their_theory(path: Path) -> None:
    opens_with_comment = path.read_text().startswith("//")
    assert opens_with_comment, f"{path.name} opens with no comment: begin with its theory of operation."


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def mentioned_modules(path: Path) -> Iterator[str]:
    """Dotted names that a file imports or, for `python -m` and importlib, spells out in a string."""
    package = module_name(path).split(".") if path.is_relative_to(SOURCE) else []
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree_of(path)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = ".".join(package[: len(package) - level + 1] if level else [])
                source = ".".join(filter(None, [base, module]))
                yield source
                yield from (f"{source}.{alias.name}" for alias in names)
            case ast.Constant(value=str(text)) if re.fullmatch(r"bequest(\.\w+)+", text):
                yield text


def test_no_module_is_dead() -> None:
    used = {name for path in MODULES for name in mentioned_modules(path)}
    used |= {
        f"bequest.{tail}"
        for tail in re.findall(r'"bequest\.([\w.]+):\w+"', (ROOT / "pyproject.toml").read_text())
    }
    dead = [
        name
        for path in MODULES
        if (name := module_name(path)) != "bequest" and path.name != "__main__.py"
        if name not in used and not any(other.startswith(f"{name}.") for other in used)
    ]
    assert not dead, (
        f"nobody imports {', '.join(dead)}: a file that no other needs is taken for one that matters."
    )


def test_no_native_header_is_dead() -> None:
    included = {name for path in NATIVE for name in re.findall(r'#include "([^"]+)"', path.read_text())}
    dead = [path.name for path in NATIVE if path.suffix == ".hpp" and path.name not in included]
    assert not dead, f"nobody includes {', '.join(dead)}"


@named(MODULES)
def test_nobody_inside_imports_the_face(path: Path) -> None:
    found = [
        f"line {node.lineno}"
        for node in ast.walk(tree_of(path))
        if (isinstance(node, ast.Import) and any(alias.name == "bequest" for alias in node.names))
        or (
            isinstance(node, ast.ImportFrom)
            and (node.module == "bequest" and node.level == 0)
            and any(alias.name != "_core" and not is_submodule(alias.name) for alias in node.names)
        )
    ]
    assert not found or path == SOURCE / "__init__.py", (
        f"{path.name} imports the package's public face ({', '.join(found)}), which imports every layer above: import"
        " the module that defines what is needed."
    )


def is_submodule(name: str) -> bool:
    return (SOURCE / f"{name}.py").exists() or (SOURCE / name).is_dir()


# --- nothing unfinished, nothing private --------------------------------------------------------------------

UNFINISHED = re.compile(
    r"\b(" + "|".join(["TO" + "DO", "FIX" + "ME", "X" * 3, "NotImplemented" + "Error"]) + r")\b"
)
PRIVATE = re.compile(r"(?<![\w./-])/wo" + r"rk/(main|shared)\b|\.libr" + r"ary/|(?<![\w./-])/wo" + r"rk/\.")


@named(
    [
        path
        for path in FILES
        if path.suffix in {".py", ".cpp", ".hpp", ".pyi", ".sh", ".md", ".toml", ".txt", ""}
    ]
)
def test_nothing_is_unfinished_or_private(path: Path) -> None:
    try:
        text = path.read_text()
    except UnicodeDecodeError:
        return
    unfinished = UNFINISHED.search(text) if path.suffix != ".md" else None
    assert not unfinished, (
        f"{path.name} says {unfinished[0]}: a stub is worse than a missing feature, for it looks done."
    )
    private = PRIVATE.search(text)
    assert not private, f"{path.name} names {private[0]!r}: nobody else has that place."
