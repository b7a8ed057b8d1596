import os
import shutil
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from fedpresence.testing.certificates import ThrowawayCA
from fedpresence.testing.domains import Domain
from fedpresence.testing.synapse import NoSynapse, install_synapse, installed_synapse

INSTALL_WITHIN_S = 240.0
NGINX_FOLDERS = ":/usr/sbin:/usr/local/sbin"


class Town:
    """Domains that find each other, all with certificates of one authority; built as a story asks."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._python = python
        self._folder = folder
        self.ca = ThrowawayCA(folder / "ca")
        self.domains: list[Domain] = []

    def build(self, *beside: bool, **more: Any) -> list[Domain]:
        """One domain for each, with fedpresence beside its Synapse or not; returned when all answer."""
        new = []
        for is_beside in beside:
            folder = self._folder / f"domain-{len(self.domains)}"
            new.append(Domain(self._python, folder, self.ca, beside=is_beside, **more))
            self.domains.append(new[-1])
        for domain in new:
            domain.begin()
        for domain in new:
            domain.wait_until_ready()
        return new


@pytest.fixture(scope="session")
def synapse_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with matrix-synapse: the one that is named, else installed into a temporary folder."""
    try:
        return installed_synapse()
    except NoSynapse:
        pass
    try:
        return install_synapse(tmp_path_factory.mktemp("synapse") / "venv", INSTALL_WITHIN_S)
    except NoSynapse as error:
        pytest.skip(f"no Synapse to stand beside: {error}")


@pytest.fixture(scope="session")
def nginx_program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """nginx: the one that is installed, else Debian's package, unpacked into a temporary folder."""
    found = shutil.which("nginx", path=os.environ.get("PATH", "") + NGINX_FOLDERS)
    if found is not None:
        return found
    folder = tmp_path_factory.mktemp("nginx")
    unpack = "apt-get --quiet download nginx && dpkg --extract nginx_*.deb . && usr/sbin/nginx -v"
    try:
        done = subprocess.run(
            ["sh", "-c", unpack],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=INSTALL_WITHIN_S,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("nginx is not installed, and its package did not come in time")
    if done.returncode:
        pytest.skip(f"nginx is not installed, and its package cannot be had: {done.stderr[-200:].strip()}")
    return str(folder / "usr" / "sbin" / "nginx")


@pytest.fixture(scope="module")
def town(synapse_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    """An empty town."""
    town = Town(synapse_python, tmp_path_factory.mktemp("town"))
    try:
        yield town
        for domain in town.domains:
            domain.stop()
            if domain.daemon is not None:
                log = domain.daemon.log(10_000_000)
                assert "Traceback" not in log, log[-20_000:]
    finally:
        for domain in town.domains:
            domain.kill()


@pytest.fixture(scope="module")
def two(town: Town) -> list[Domain]:
    """Two domains, each a Synapse with fedpresence beside it."""
    return town.build(True, True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The logs stand beside a failure."""
    report = yield
    town = getattr(item, "funcargs", {}).get("town")
    if report.failed and isinstance(town, Town):
        for domain in town.domains:
            report.sections.append((f"logs of {domain.name}", domain.log()))
    return report
