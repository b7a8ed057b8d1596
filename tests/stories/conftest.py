from collections.abc import Iterator

import pytest

from tests.stories.in_the_rig import Theatre


@pytest.fixture(scope="package")
def theatre() -> Iterator[Theatre]:
    """Plays stories in a rig."""
    theatre = Theatre()
    yield theatre
    theatre.close()
