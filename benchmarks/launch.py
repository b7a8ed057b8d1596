"""How a benchmark starts its servers: plainly, or under a profiler where one was asked for."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fedpresence.testing.processes import DAEMON, LocalFederation

_program: ContextVar[Sequence[str]] = ContextVar("program", default=DAEMON)


def local_federation(
    folder: Path, names: Sequence[str], config: Mapping[str, Any] | None = None
) -> LocalFederation:
    """Servers that are not started yet; they run whatever `running` says."""
    return LocalFederation(folder, names, config, wired=False, program=_program.get())


@contextmanager
def running(program: Sequence[str]) -> Iterator[None]:
    """Servers that are made meanwhile run `python PROGRAM... -c FILE --ready-file PATH`."""
    token = _program.set(program)
    try:
        yield
    finally:
        _program.reset(token)
