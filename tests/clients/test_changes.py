import pytest
from twisted.internet.defer import DeferredList

from fedpresence.config import LimitsConfig, Rate
from fedpresence.engine.effects import Effect, SaveHidden
from fedpresence.engine.events import PresenceSet
from fedpresence.engine.presence import PresenceState
from tests.asynchronous import result_of
from tests.clients.world import ALICE, BOB, LAPTOP, PHONE, Answer, World, list_path, status_path


def put(world: World, state: str, message: str, *, token: str = "alice-phone") -> Answer:
    """Declare a state with a message."""
    return world.answer(
        "PUT", status_path(ALICE), token=token, body={"presence": state, "status_msg": message}
    )


def declared(world: World) -> list[str | None]:
    """The messages that reached the engine, in order."""
    return [event.status_msg for event in world.engine.events if isinstance(event, PresenceSet)]


def test_more_changes_than_the_limit_are_merged_and_the_last_counts() -> None:
    """contract.md: `5/s`, burst 10; all are answered 200."""
    world = World()

    answers = [put(world, "online", str(n)) for n in range(50)]
    at_once = declared(world)
    world.clock.advance(0.21)

    assert {answer.status for answer in answers} == {200}
    assert at_once == [str(n) for n in range(10)]
    assert declared(world) == [*at_once, "49"]
    assert world.clock.getDelayedCalls() == []


def test_the_rate_holds_over_time() -> None:
    """A client that flaps for a minute costs five changes a second."""
    world = World()

    for n in range(1200):
        put(world, "online", str(n))
        world.clock.advance(0.05)
    world.clock.advance(1)

    assert 300 <= len(declared(world)) <= 311
    assert declared(world)[-1] == "1199"


def test_far_too_many_are_refused_with_a_time_to_come_back() -> None:
    """contract.md: far more get 429."""
    world = World()

    answers = [put(world, "online", str(n)) for n in range(101)]

    assert [answer.status for answer in answers] == [200] * 100 + [429]
    assert answers[-1].errcode == "M_LIMIT_EXCEEDED"
    assert answers[-1].body["retry_after_ms"] == 20
    assert answers[-1].headers["retry-after"] == "1"


def test_far_too_many_list_changes_are_refused_too() -> None:
    """P:10.1: 429 as for the status."""
    world = World()

    answers = [world.answer("POST", list_path(ALICE), body={"invite": [BOB]}) for _ in range(101)]

    assert [answer.status for answer in answers] == [200] * 100 + [429]


def test_hiding_never_waits() -> None:
    """P:D-8: a declared offline is committed before its 200, however hasty the client was."""
    world = World()

    def hides(event: PresenceSet) -> list[Effect]:
        return [SaveHidden(ALICE, event.device_id, True)] if event.state is PresenceState.OFFLINE else []

    world.engine.does[PresenceSet] = hides
    for n in range(15):
        put(world, "online", str(n))
    world.store.held = []

    asked = world.ask("PUT", status_path(ALICE), body={"presence": "offline"})
    told, waited = world.engine.events[-1], asked.waits
    world.store.held[0].callback(None)
    world.clock.advance(10)

    assert told == PresenceSet(ALICE, PHONE, PresenceState.OFFLINE, None)
    assert waited
    assert asked.answer.status == 200
    assert world.engine.events[-1] == told  # nothing older comes after it


def test_coming_out_of_hiding_never_waits_either() -> None:
    """P:D-8: a crash behind the 200 must not leave the user hidden."""
    world = World()
    for n in range(15):
        put(world, "offline", str(n))

    put(world, "online", "back")

    assert world.engine.events[-1] == PresenceSet(ALICE, PHONE, PresenceState.ONLINE, "back")


def test_who_is_hidden_already_is_merged_like_everybody() -> None:
    """Hiding is no way around the limit."""
    world = World()
    for n in range(15):
        put(world, "offline", str(n))
    at_once = declared(world)

    world.clock.advance(1)

    assert at_once == [str(n) for n in range(10)]
    assert declared(world) == [*at_once, "14"]


def test_what_another_device_declared_earlier_does_not_overtake() -> None:
    """P:D-4: the message is the user's, and the last writer wins."""
    world = World()
    for n in range(10):
        put(world, "online", str(n))
    put(world, "unavailable", "laptop", token="alice-laptop")
    put(world, "offline", "phone")
    world.clock.advance(10)

    assert world.engine.events[-2:] == [
        PresenceSet(ALICE, LAPTOP, PresenceState.UNAVAILABLE, "laptop"),
        PresenceSet(ALICE, PHONE, PresenceState.OFFLINE, "phone"),
    ]
    assert len(declared(world)) == 12


def test_a_clean_stop_loses_no_change() -> None:
    """The last always counts, at the end of a run too."""
    world = World()
    for n in range(12):
        put(world, "online", str(n))

    result_of(world.changes.stopService())
    stopped_with = declared(world)[-1]
    put(world, "online", "late")

    assert stopped_with == "11"
    assert declared(world)[-1] == "late"
    assert world.clock.getDelayedCalls() == []


@pytest.mark.parametrize("burst", [1, 20])
def test_a_reload_changes_the_limits(burst: int) -> None:
    """contract.md: SIGHUP reloads limits."""
    world = World()

    world.changes.reload(LimitsConfig(client_changes=Rate(1, burst)))
    for n in range(30):
        put(world, "online", str(n))

    assert len(declared(world)) == burst


def test_changes_given_to_the_hub_are_awaited_by_the_stop() -> None:
    """A stop has ended when everything is on disk."""
    world = World()
    for n in range(12):
        put(world, "online", str(n))
    world.store.held = []
    world.engine.does[PresenceSet] = lambda event: [SaveHidden(ALICE, PHONE, False)]

    stopped = DeferredList([world.changes.stopService()])
    before = stopped.called
    world.store.held[0].callback(None)

    assert not before
    assert stopped.called
