from pathlib import Path

import pytest

from tests.outbound.network import Authority, Network


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    folder: Path = tmp_path_factory.mktemp("authority")
    return Authority(folder)


@pytest.fixture
def network(authority: Authority) -> Network:
    return Network(authority)
