import itertools
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fedpresence.testing.processes import LocalFederation, User

HERE, THERE = "here.test", "there.test"


class LetIn:
    """Makes users with a token: `alice, bob = let_in(federation, "alice@here.test", "bob@there.test")`.

    Each gets a number behind the name, so that no story meets the users of another; `/` names a device.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(1)

    def __call__(self, federation: LocalFederation, *names: str) -> list[User]:
        """The users, in order; two names that differ only in the device are one user's two devices."""
        number = next(self._numbers)

        def user(name: str) -> User:
            localpart, _, rest = name.partition("@")
            server_name, _, device = rest.partition("/")
            return federation[server_name].user(f"{localpart}{number}", device or "DEVICE")

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(user, names))


class Start:
    """Starts servers for one story alone: `start({"presence": {...}}, per_server={HERE: {...}})`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.running: list[LocalFederation] = []

    def __call__(self, config: dict[str, Any] | None = None, **kwargs: Any) -> LocalFederation:
        """Two servers that run, of which both end with the test."""
        folder = self._folder / f"servers-{len(self.running)}"
        federation = LocalFederation(folder, [HERE, THERE], config, **kwargs)
        self.running.append(federation)
        return federation.__enter__()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """Two servers for the stories of one file that only need users of their own."""
    federation = LocalFederation(tmp_path_factory.mktemp("shared"), [HERE, THERE])
    with federation:
        yield federation
        end_well(federation)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Servers of the story's own."""
    starting = Start(tmp_path)
    yield starting
    try:
        for federation in starting.running:
            end_well(federation)
    finally:
        for federation in starting.running:
            for server in federation:
                server.kill()


@pytest.fixture(scope="session")
def let_in() -> LetIn:
    """Users with tokens."""
    return LetIn()


def end_well(federation: LocalFederation) -> None:
    """Every server that still runs ends with 0, and no log tells of a bug of ours."""
    for server in federation:
        if server.is_running:
            assert server.stop() == 0, server.log()
        log = server.log(last=10_000_000)
        assert "Traceback" not in log, log[-20_000:]
        assert "Unhandled" not in log, log[-20_000:]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """The servers' logs stand beside a failure."""
    report = yield
    funcargs: dict[str, Any] = getattr(item, "funcargs", {})
    if report.failed:
        federations = [*funcargs["start"].running] if "start" in funcargs else []
        federations += [funcargs["shared"]] if "shared" in funcargs else []
        for server in itertools.chain.from_iterable(federations):
            report.sections.append((f"log of {server.name}", server.log()))
    return report
