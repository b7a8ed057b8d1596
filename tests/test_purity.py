import ast
from pathlib import Path

import fedpresence

PACKAGE = Path(fedpresence.__file__).parent
PURE = ("engine", "wire")

# What would make an answer depend on more than the question: time, chance, the network, the disk, threads.
IMPURE = frozenset(
    {
        "urllib",
        "secrets",
        "time",
        "subprocess",
        "tempfile",
        "twisted",
        "sqlite3",
        "socket",
        "threading",
        "treq",
        "uuid",
        "datetime",
        "asyncio",
        "random",
        "http",
        "logging",
        "shutil",
        "select",
        "os",
        "selectors",
        "multiprocessing",
        "io",
        "ssl",
        "pathlib",
    }
)


def _imports(path: Path) -> set[str]:
    """The full names of all modules that a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def _file_of(module: str) -> Path | None:
    base = PACKAGE.parent.joinpath(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.exists():
            return path
    return None


def test_what_decides_and_what_decodes_know_no_reactor_clock_socket_or_chance() -> None:
    """The same events at the same times give the same effects, on every machine, in every test."""
    waiting = [path for part in PURE for path in (PACKAGE / part).rglob("*.py")]
    seen: set[Path] = set()
    impure: list[str] = []

    while waiting:
        path = waiting.pop()
        seen.add(path)
        for name in _imports(path):
            if name.split(".")[0] in IMPURE:
                impure.append(f"{path.relative_to(PACKAGE)} imports {name}")
            inner = _file_of(name) if name.startswith("fedpresence.") else None
            if inner is not None and inner not in seen:
                waiting.append(inner)

    assert impure == []
    assert {path.name for path in seen} >= {"signing.py", "ids.py", "errors.py", "outgoing.py"}


def test_what_decides_does_not_know_how_it_is_written() -> None:
    """Imports point one way: the engine can be read and tested without JSON."""
    engine = [name for path in (PACKAGE / "engine").rglob("*.py") for name in _imports(path)]

    outside = {name for name in engine if name.startswith("fedpresence.")}
    assert all(
        name.startswith(("fedpresence.engine", "fedpresence.ids", "fedpresence.errors")) for name in outside
    )
