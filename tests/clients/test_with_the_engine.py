"""The client API over the real engine: what a person sees, from one client to another."""

import pytest

from fedpresence.engine.engine import Engine
from fedpresence.engine.events import UserAdded
from fedpresence.engine.settings import EngineSettings
from tests.clients.world import ALICE, CAROL, HERE, World, list_path, presence_of, status_path

LONG = 30_000


def a_world() -> World:
    """Alice and Carol, who do not know each other yet."""
    clock_ms = 1_700_000_000_000
    world = World(engine=Engine(EngineSettings(HERE), clock_ms))
    world.hub.submit(UserAdded(ALICE), UserAdded(CAROL))
    return world


def befriended() -> World:
    """Alice observes Carol."""
    world = a_world()
    world.answer("POST", list_path(ALICE), body={"invite": [CAROL]})
    world.answer("POST", list_path(CAROL), token="carol", body={"accept": [ALICE]})
    return world


def to_device(world: World, token: str, **params: str | int) -> list[tuple[str, str]]:
    """(type, sender) of the notices in a sync."""
    events = world.sync(token, **params).answer.body["to_device"]["events"]
    return [(event["type"], event["sender"]) for event in events]


@pytest.mark.parametrize("set_presence", ["online", "unavailable"])
def test_the_first_sync_shows_its_own_effect(set_presence: str) -> None:
    """P:15: a user sees the own presence in the sync that set it."""
    world = a_world()

    answer = world.sync(set_presence=set_presence).answer

    assert presence_of(answer) == {ALICE: set_presence}


def test_a_sync_that_hides_stays_offline() -> None:
    """P:15: a user with `set_presence=offline` is absent or offline there."""
    answer = a_world().sync(set_presence="offline").answer

    assert presence_of(answer) == {ALICE: "offline"}


def test_an_invite_is_noticed_accepted_and_seen() -> None:
    """S:9: the whole way on one server, with a sync waiting at each end."""
    world = a_world()
    alice = world.sync().answer.body["next_batch"]
    carol = world.sync("carol").answer.body["next_batch"]
    carol_waits = world.sync("carol", since=carol, timeout=LONG)
    assert carol_waits.waits

    world.answer("POST", list_path(ALICE), body={"invite": [CAROL]})
    [invite] = carol_waits.answer.body["to_device"]["events"]
    alice_waits = world.sync(since=alice, timeout=LONG)
    assert alice_waits.waits
    world.answer("POST", list_path(CAROL), token="carol", body={"accept": [ALICE]})

    assert (invite["type"], invite["sender"]) == ("m.presence_invite", ALICE)
    answer = alice_waits.answer
    assert [event["type"] for event in answer.body["to_device"]["events"]] == ["m.presence_accept"]
    assert presence_of(answer) == {CAROL: "online"}


def test_a_change_reaches_who_waits_and_is_answered_alike_by_the_status() -> None:
    """P:15: PUT on one client, `/sync` and GET on the other."""
    world = befriended()
    world.sync("carol", set_presence="online")
    since = world.sync().answer.body["next_batch"]
    asked = world.sync(since=since, timeout=LONG)
    assert asked.waits

    body = {"presence": "unavailable", "status_msg": "Tea"}
    world.answer("PUT", status_path(CAROL), token="carol", body=body)

    [event] = asked.answer.body["presence"]["events"]
    assert (event["sender"], event["content"]["presence"]) == (CAROL, "unavailable")
    assert event["content"]["status_msg"] == "Tea"
    assert world.answer("GET", status_path(CAROL)).body["status_msg"] == "Tea"


def test_a_revoked_grant_shows_offline_once_and_then_nothing() -> None:
    """S:O-22: with the notice that says why."""
    world = befriended()
    world.sync("carol", set_presence="online")
    since = world.sync().answer.body["next_batch"]

    world.answer("POST", list_path(CAROL), token="carol", body={"revoke": [ALICE]})
    answer = world.sync(since=since).answer

    assert presence_of(answer) == {CAROL: "offline"}
    assert answer.body["to_device"]["events"][-1]["content"]["reason"] == "revoked"
    assert world.answer("GET", status_path(CAROL)).status == 403
    assert presence_of(world.sync(since=answer.body["next_batch"]).answer) == {}


def test_an_open_request_is_shown_at_each_login() -> None:
    """S:T-1: until it is answered."""
    world = a_world()
    world.answer("POST", list_path(ALICE), body={"invite": [CAROL]})

    before = [to_device(world, "carol") for _ in range(2)]
    world.answer("POST", list_path(CAROL), token="carol", body={"deny": [ALICE]})
    since = world.sync("carol").answer.body["next_batch"]
    after = to_device(world, "carol", since=since)

    assert before == [[("m.presence_invite", ALICE)]] * 2
    assert after == []


def test_an_accept_nobody_asked_for_is_not_found() -> None:
    """S:T-6."""
    answer = a_world().answer("POST", list_path(CAROL), token="carol", body={"accept": [ALICE]})

    assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")
