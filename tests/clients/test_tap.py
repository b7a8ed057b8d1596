import pytest
from treq.testing import StubTreq
from twisted.web.resource import Resource

from fedpresence.clients import tap
from fedpresence.clients.tap import LINGER_MS, SyncTap, add_tap
from fedpresence.engine.events import StreamClosed, StreamOpened
from fedpresence.engine.presence import PresenceState
from fedpresence.storage.store import TokenOwner
from tests.clients.world import ALICE, CAROL, LAPTOP, PHONE, Asked, World

PATH = "/_fedpresence/sync_tap"
TIMEOUT_MS = 30_000


class Tapped(World):
    """A world with a tap."""

    def restart(self, epoch: str, *, busy: bool = False) -> None:
        super().restart(epoch, busy=busy)
        self.tap = SyncTap(self.hub, self.tokens, self.clock)
        root = Resource()
        add_tap(root, self.tap)
        self.treq = StubTreq(root)

    def copy(self, token: str | None = "alice-phone", **params: str) -> Asked:
        """A copy of a sync's head."""
        return self.ask("GET", PATH, token=token, params={"timeout": str(TIMEOUT_MS), **params})


def test_a_poll_counts_until_its_timeout_and_a_while_more() -> None:
    """H:6.3: nobody sees its end."""
    world = Tapped()
    assert world.copy(set_presence="unavailable").answer.body == {}

    world.clock.advance((TIMEOUT_MS + LINGER_MS) / 1000 - 1)
    before = list(world.engine.events)
    world.clock.advance(2)

    assert before == [StreamOpened(ALICE, PHONE, PresenceState.UNAVAILABLE)]
    assert world.engine.events[1:] == [StreamClosed(ALICE, PHONE)]
    assert len(world.tap) == 0


def test_a_device_that_polls_is_connected_without_a_gap() -> None:
    """The next poll takes over before the one before ends."""
    world = Tapped()
    for _ in range(5):
        world.copy().answer  # noqa: B018
        world.clock.advance(TIMEOUT_MS / 1000)

    opened, closed = world.engine.of_type(StreamOpened), world.engine.of_type(StreamClosed)
    assert (len(opened), len(closed)) == (5, 4)
    assert isinstance(world.engine.events[1], StreamOpened)


def test_devices_count_each_for_itself() -> None:
    """As streams do."""
    world = Tapped()
    for token in ("alice-phone", "alice-laptop", "carol"):
        assert world.copy(token).answer.status == 200

    assert world.engine.events == [
        StreamOpened(ALICE, PHONE, None),
        StreamOpened(ALICE, LAPTOP, None),
        StreamOpened(CAROL, None, None),
    ]


def test_a_poll_that_says_offline_counts_for_nothing_and_ends_the_one_before() -> None:
    """P:O-4."""
    world = Tapped()
    world.copy().answer  # noqa: B018

    world.copy(set_presence="offline").answer  # noqa: B018

    assert world.engine.events[1:] == [StreamClosed(ALICE, PHONE)]
    assert world.clock.getDelayedCalls() == []


@pytest.mark.parametrize(
    ("token", "params"),
    [("unknown", {}), (None, {}), ("alice-phone", {"set_presence": "busy"})],
)
def test_what_the_homeserver_would_refuse_counts_for_nothing(
    token: str | None, params: dict[str, str]
) -> None:
    """The client hears of it from the homeserver alone."""
    world = Tapped()

    assert world.copy(token, **params).answer.body == {}
    assert world.engine.events == []


@pytest.mark.parametrize("timeout", ["", "x", "-1", "9" * 5000])
def test_a_timeout_that_is_none_is_none(timeout: str) -> None:
    """The poll counts all the same."""
    world = Tapped()
    world.copy(timeout=timeout).answer  # noqa: B018
    world.clock.advance(LINGER_MS / 1000)

    assert world.engine.events == [StreamOpened(ALICE, PHONE, None), StreamClosed(ALICE, PHONE)]


def test_the_answer_never_waits_for_the_word_whose_token_it_is() -> None:
    """Z-28: where we are slow, the client is not."""
    world = Tapped()
    world.store.slow_lookups = []

    assert world.copy().answer.status == 200
    early = list(world.engine.events)
    world.store.slow_lookups[0][1].callback(TokenOwner(ALICE, PHONE))

    assert early == []
    assert world.engine.events == [StreamOpened(ALICE, PHONE, None)]


def test_only_so_many_tokens_are_asked_about_at_a_time() -> None:
    """Z-28: invented tokens make no storm at the homeserver."""
    world = Tapped()
    world.store.slow_lookups = []

    for number in range(tap.MAX_ASKED + 10):
        assert world.copy(f"invented-{number}").answer.status == 200

    assert len(world.store.slow_lookups) == tap.MAX_ASKED


def test_who_is_forgotten_for_want_of_room_counts_as_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, and nobody stays online for ever."""
    monkeypatch.setattr(tap, "MAX_CONNECTED", 1)
    world = Tapped()
    world.copy("carol").answer  # noqa: B018
    world.copy().answer  # noqa: B018

    assert world.engine.events[-1] == StreamClosed(CAROL, None)
    assert len(world.tap) == 1


def test_at_the_end_nobody_is_called_gone() -> None:
    """A restart shows nobody offline."""
    world = Tapped()
    world.copy().answer  # noqa: B018

    world.tap.close()
    world.copy("carol").answer  # noqa: B018

    assert world.engine.events == [StreamOpened(ALICE, PHONE, None)]
    assert world.clock.getDelayedCalls() == []
