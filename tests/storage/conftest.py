from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.threads import ThreadReactor
from tests.storage.worlds import InMemory, OnDisk, World


@pytest.fixture(params=["memory", "sqlite"])
def world(request: pytest.FixtureRequest, path: Path) -> Iterator[World]:
    """A store that is empty, once of each kind."""
    made: World = InMemory() if request.param == "memory" else OnDisk(path)
    yield made
    made.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a database that is not there yet."""
    return tmp_path / "fedpresence.db"


@pytest.fixture
def reactor() -> ThreadReactor:
    """For a SQLite store."""
    return ThreadReactor()
