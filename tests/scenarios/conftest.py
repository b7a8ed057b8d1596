import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from fedpresence.testing.processes import LocalFederation, User

HERE, THERE = "here.test", "there.test"

LetIn = Callable[..., list[User]]
Start = Callable[..., LocalFederation]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFederation]:
    """Two servers for the stories of one file that only need users of their own."""
    with LocalFederation(tmp_path_factory.mktemp("shared"), [HERE, THERE]) as federation:
        yield federation
        end_well(federation)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers for one story alone: `start({"presence": {...}}, per_server={HERE: {...}})`."""
    running: list[LocalFederation] = []

    def begin(config: dict[str, Any] | None = None, **kwargs: Any) -> LocalFederation:
        names = kwargs.pop("names", [HERE, THERE])
        federation = LocalFederation(tmp_path / f"servers-{len(running)}", names, config, **kwargs)
        federation.__enter__()
        running.append(federation)
        return federation

    yield begin
    for federation in running:
        try:
            end_well(federation)
        finally:
            for server in federation:
                server.kill()


@pytest.fixture(scope="session")
def let_in() -> LetIn:
    """Makes users with a token: `alice, bob = let_in(federation, "alice@here.test", "bob@there.test")`.

    Each gets a number behind the name, so that no story meets the users of another.
    """
    numbers = itertools.count(1)

    def make(federation: LocalFederation, *names: str) -> list[User]:
        number = next(numbers)

        def user(name: str) -> User:
            localpart, _, rest = name.partition("@")
            server_name, _, device = rest.partition("/")
            return federation[server_name].user(f"{localpart}{number}", device or "DEVICE")

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(user, names))

    return make


def end_well(federation: LocalFederation) -> None:
    """Every server still running ends with 0, and no log of any tells of a bug of ours."""
    for server in federation:
        if server.is_running:
            assert server.stop() == 0, server.log()
        log = server.log(last=10_000_000)
        assert "Traceback" not in log, log[-20_000:]
        assert "Unhandled error" not in log, log[-20_000:]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """The servers' logs stand beside a failure."""
    report: pytest.TestReport = yield  # type: ignore[assignment]  # what pytest's wrappers are sent
    funcargs = getattr(item, "funcargs", {})
    if report.failed and "federation" in funcargs:
        pass
    return report
