"""Fixtures for whoever tests a homeserver with pytest: there is nothing to configure.

    @pytest.mark.fedpresence(config={"lists": {"invite_policy": "accept"}})
    def test_bob_is_seen(fedpresence_rig):
        alice, bob = fedpresence_rig.user("alice@here.test"), fedpresence_rig.user("bob@there.test")

Always true:
- every pytest run of whoever has installed the package loads this module, so it imports pytest and the
  standard library alone; the rest is imported when a fixture is first asked for;
- all fixtures of one test are of one rig, a process of its own with ports of its own, which ends with the
  scope of the fixture;
- a test that fails shows what its rig's servers said to each other, and what the rig logged.

Source: contract.md, "Test rig"; docs/testing-your-homeserver.md.
"""

import sys
from collections.abc import Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fedpresence.testing.rig.process import Rig, RigHomeserver, RigServer

SERVERS = ("here.test", "there.test")
LOCALPARTS = ("alice", "bob", "carol", "dave")  # one at each server, where the marker names no users
HOMESERVER = "fake.test"
SCOPES = ("function", "class", "module", "package", "session")
MAX_SHOWN = 200  # lines of the wire log beside a failure
MARKER = (
    "fedpresence(servers=..., users=..., clock=..., config=..., seed=..., addressable=...): what the test's "
    "rig is made of, as in fedpresence.testing.Rig; the nearest marker that names a key counts."
)
KEYS = ("servers", "users", "clock", "config", "seed", "addressable")

_RIGS = pytest.StashKey["list[Rig]"]()


# --- what pytest is told ---------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--fedpresence-seed`, and `fedpresence_scope` for the ini file."""
    group = parser.getgroup("fedpresence", "fedpresence test rigs")
    group.addoption(
        "--fedpresence-seed",
        type=int,
        metavar="N",
        help="the seed of every rig; a failing test shows which one it had",
    )
    parser.addini(
        "fedpresence_scope", f"how long a rig lives: {', '.join(SCOPES)} (function)", default="function"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known; UsageError for a scope that there is not."""
    config.addinivalue_line("markers", MARKER)
    scope = config.getini("fedpresence_scope")
    if scope not in SCOPES:
        raise pytest.UsageError(f"fedpresence_scope: {scope!r} is none of {', '.join(SCOPES)}")


def _scope(fixture_name: str, config: pytest.Config) -> Any:
    return config.getini("fedpresence_scope")


# --- the fixtures ----------------------------------------------------------------------------


@pytest.fixture(scope=_scope)
def fedpresence_rig(request: pytest.FixtureRequest) -> "Iterator[Rig]":
    """Several fedpresence servers, a clock that can be turned and links that can be broken: a `Rig`.

    Two servers, here.test and there.test, with alice@here.test and bob@there.test, unless the marker
    `fedpresence` says otherwise.
    """
    from fedpresence.testing.rig.process import Rig

    rig = Rig(**_order(request))
    why_not = None
    try:
        rig.start()
    except AssertionError as error:  # it holds the rig's own words
        why_not = str(error)
    if why_not is not None:  # outside of the handler, or pytest would say it twice
        pytest.fail(why_not, pytrace=False)
    request.node.stash.setdefault(_RIGS, []).append(rig)
    try:
        yield rig
    finally:
        rig.close()


@pytest.fixture(scope=_scope)
def fedpresence_server(fedpresence_rig: "Rig") -> "RigServer":
    """The rig's first server."""
    return next(iter(fedpresence_rig.servers.values()))


@pytest.fixture(scope=_scope)
def fedpresence_pair(fedpresence_rig: "Rig") -> "tuple[RigServer, RigServer]":
    """The rig's first two servers."""
    servers = list(fedpresence_rig.servers.values())
    if len(servers) < 2:
        pytest.fail("fedpresence_pair: the marker orders one server alone", pytrace=False)
    return servers[0], servers[1]


@pytest.fixture(scope=_scope)
def fedpresence_homeserver(fedpresence_rig: "Rig") -> "RigHomeserver":
    """A scripted homeserver beside the rig's servers, fake.test: it answers and sends what it is told to."""
    return fedpresence_rig.homeserver(HOMESERVER)


def _order(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What `Rig` is called with: the defaults, the markers from the farthest to the nearest, the options."""
    order: dict[str, Any] = {"servers": SERVERS}
    for marker in reversed(list(request.node.iter_markers("fedpresence"))):
        unknown = [key for key in marker.kwargs if key not in KEYS]
        if marker.args or unknown:
            wrong = f"{unknown[0]!r} is none" if unknown else "it takes names alone"
            pytest.fail(f"marker fedpresence: {wrong}; known are {', '.join(KEYS)}", pytrace=False)
        order |= marker.kwargs
    for key in ("servers", "users"):
        if isinstance(order.get(key), str):
            pytest.fail(f"marker fedpresence: {key} must be a list or a tuple of names", pytrace=False)
    if "users" not in order:
        pairs = zip(LOCALPARTS, order["servers"], strict=False)
        order["users"] = tuple(f"@{localpart}:{server}" for localpart, server in pairs)
    seed = request.config.getoption("fedpresence_seed")
    return order if seed is None else order | {"seed": seed}


# --- what stands beside a failure ------------------------------------------------------------


@pytest.hookimpl(hookwrapper=True)  # the old way: whoever has an older pytest loads this too
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """A test that fails shows the wire and the log of its rigs, the fixtures' and its own fixtures'."""
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    if report.failed and report.when != "teardown":
        for rig in _rigs_of(item):
            report.sections.extend(_sections(rig))


def _rigs_of(item: pytest.Item) -> "Sequence[Rig]":
    """The running rigs that a test may have used; none where nobody ever started one."""
    module = sys.modules.get("fedpresence.testing.rig.process")
    if module is None:
        return ()
    found = [rig for node in item.listchain() for rig in node.stash.get(_RIGS, [])]
    values: dict[str, Any] = getattr(item, "funcargs", {})
    found += [value for value in values.values() if isinstance(value, module.Rig)]
    return [rig for rig in dict.fromkeys(found) if rig.is_running]


def _sections(rig: "Rig") -> Iterator[tuple[str, str]]:
    from fedpresence.errors import FedpresenceError

    try:
        lines = rig.wire_text().splitlines()
    except (OSError, FedpresenceError) as error:
        lines = [f"the rig does not answer: {error}"]
    shown = lines[-MAX_SHOWN:]
    if len(shown) < len(lines):
        shown.insert(0, f"({len(lines) - len(shown)} lines before these)")
    title = f"fedpresence wire, --fedpresence-seed {rig.seed}"
    yield title, "\n".join(shown) if any(shown) else "(nothing was sent between servers)"
    if log := rig.log():
        yield "fedpresence rig log", log
