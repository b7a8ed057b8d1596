from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.worlds import InMemory, OnDisk, World


@pytest.fixture(params=["memory", "sqlite"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    """A store that is empty, once of each kind."""
    made: World = InMemory() if request.param == "memory" else OnDisk(tmp_path / "fedpresence.db")
    yield made
    made.close()
