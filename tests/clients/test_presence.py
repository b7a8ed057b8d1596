import pytest

from fedpresence.engine.effects import SaveUser, TellObservers
from fedpresence.engine.events import PresenceSet, StatusWanted
from fedpresence.engine.presence import PresenceState, View
from tests.clients.world import (
    ALICE,
    BOB,
    CAROL,
    IDLE,
    ONLINE,
    PHONE,
    World,
    status_path,
)


@pytest.mark.parametrize(
    ("body", "state", "status_msg"),
    [
        ({"presence": "online"}, PresenceState.ONLINE, None),
        ({"presence": "unavailable", "status_msg": "Tea"}, PresenceState.UNAVAILABLE, "Tea"),
        ({"presence": "offline", "status_msg": None}, PresenceState.OFFLINE, None),
        ({"presence": "online", "status_msg": ""}, PresenceState.ONLINE, None),
        ({"presence": "online", "currently_online": True, "x": [1]}, PresenceState.ONLINE, None),
        ({"presence": "online", "status_msg": "ä" * 2048}, PresenceState.ONLINE, "ä" * 2048),
    ],
)
def test_a_declared_state_reaches_the_engine(
    body: object, state: PresenceState, status_msg: str | None
) -> None:
    """P:9.1: null and absent clear the message; keys nobody knows must not break old clients."""
    world = World()

    answer = world.answer("PUT", status_path(ALICE), body=body)

    assert (answer.status, answer.body) == (200, {})
    assert world.engine.events == [PresenceSet(ALICE, PHONE, state, status_msg)]


@pytest.mark.parametrize(
    ("data", "errcode"),
    [
        (b"", "M_NOT_JSON"),
        (b"{", "M_NOT_JSON"),
        (b"[]", "M_BAD_JSON"),
        (b"{}", "M_BAD_JSON"),
        (b'{"presence": null}', "M_BAD_JSON"),
        (b'{"presence": 2}', "M_BAD_JSON"),
        (b'{"presence": "free_for_chat"}', "M_INVALID_PARAM"),
        (b'{"presence": "hidden"}', "M_INVALID_PARAM"),
        (b'{"presence": "org.matrix.msc3026.busy"}', "M_INVALID_PARAM"),
        (b'{"presence": "online", "status_msg": 5}', "M_INVALID_PARAM"),
        (b'{"presence": "online", "status_msg": "' + b"x" * 4097 + b'"}', "M_INVALID_PARAM"),
        (b'{"presence": "online", "status_msg": "' + "ä".encode() * 2049 + b'"}', "M_INVALID_PARAM"),
    ],
)
def test_a_body_that_breaks_the_table_is_refused(data: bytes, errcode: str) -> None:
    """P:9.1: a wrong state must never be guessed at."""
    world = World()

    answer = world.answer("PUT", status_path(ALICE), data=data)

    assert (answer.status, answer.errcode) == (400, errcode)
    assert world.engine.events == []


def test_busy_is_taken_and_shown_where_it_is_switched_on() -> None:
    """MSC3026: the state has its unstable name both ways, and other servers' clients fall back."""
    on, off = World(busy=True), World()
    busy = View(PresenceState.BUSY, 5)
    for world in (on, off):
        world.show(BOB, busy, ALICE)

    taken = on.answer("PUT", status_path(ALICE), body={"presence": "org.matrix.msc3026.busy"})

    assert taken.status == 200
    assert on.answer("GET", status_path(BOB)).body["presence"] == "org.matrix.msc3026.busy"
    assert off.answer("GET", status_path(BOB)).body == {"presence": "unavailable", "last_active_ago": 5}


def test_nobody_declares_for_another_user() -> None:
    """P:9.1: 403, whether the other is one of ours or not."""
    world = World()

    answers = [world.answer("PUT", status_path(other), body={"presence": "online"}) for other in (CAROL, BOB)]

    assert [(answer.status, answer.errcode) for answer in answers] == [(403, "M_FORBIDDEN")] * 2
    assert world.engine.events == []


@pytest.mark.parametrize("text", ["alice", "@alice", "@alice:", "@a:" + "x" * 300, "@alice:he re"])
@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_what_is_no_user_id_is_a_bad_parameter(method: str, text: str) -> None:
    """P:9.1, clients.md: 400, never a 404 that a client would take for an old server."""
    answer = World().answer(method, status_path(text), body={"presence": "online"})

    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize(
    ("view", "body"),
    [
        (
            ONLINE,
            {"presence": "online", "last_active_ago": 10, "status_msg": "Hello", "currently_active": True},
        ),
        (
            View(PresenceState.ONLINE, 70_000),
            {"presence": "online", "last_active_ago": 70_000, "currently_active": False},
        ),
        (IDLE, {"presence": "unavailable", "last_active_ago": 400_000}),
        (View(PresenceState.OFFLINE), {"presence": "offline"}),
        (View(PresenceState.OFFLINE, 1, ""), {"presence": "offline", "last_active_ago": 1}),
    ],
)
def test_a_visible_user_is_shown_without_null_keys(view: View, body: object) -> None:
    """P:9.2: strict clients drop an answer with a null in it."""
    world = World()
    world.show(BOB, view, ALICE)

    answer = world.answer("GET", status_path(BOB))

    assert (answer.status, answer.body) == (200, body)


def test_ones_own_presence_is_always_there() -> None:
    """P:9.2: 200 `offline` for somebody who never did anything."""
    assert World().answer("GET", status_path(ALICE)).body == {"presence": "offline"}


def test_the_invisible_and_the_invented_look_the_same() -> None:
    """P:9.2, decision 4: a status must not tell who exists."""
    world = World()

    answers = [world.answer("GET", status_path(other)) for other in (CAROL, "@nobody:here.test", BOB)]

    assert {answer.status for answer in answers} == {403}
    assert len({str(answer.body) for answer in answers}) == 1
    assert answers[0].errcode == "M_FORBIDDEN"


@pytest.mark.parametrize("written", ["@bob:there.test", "%40bob%3Athere.test", "%40bob:there.test"])
def test_a_user_id_in_a_path_may_be_raw_or_encoded(written: str) -> None:
    """clients.md: nio sends it raw, everybody else encoded."""
    world = World()
    world.show(BOB, IDLE, ALICE)

    assert world.answer("GET", f"presence/{written}/status").status == 200


def test_a_path_is_decoded_once() -> None:
    """P:9: `%2540` is a percent sign in the ID, not an `@`."""
    answer = World().answer("GET", "presence/%2540alice:here.test/status")

    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")


def test_a_slash_may_stand_in_a_user_id() -> None:
    """F:1.2: historic and current localparts have slashes, and they come encoded."""
    world = World()
    with_slash = type(ALICE)("@a/b:there.test")
    world.show(with_slash, IDLE, ALICE)

    assert world.answer("GET", status_path(with_slash)).status == 200


def test_an_old_copy_is_asked_for_again_and_the_news_is_the_answer() -> None:
    """Decision 7: whoever asks for the last active time gets it as the origin knows it."""
    world = World()
    world.show(BOB, IDLE, ALICE)
    world.engine.old_copies.add(BOB)

    asked = world.ask("GET", status_path(BOB))
    assert asked.waits
    world.tell(BOB, ONLINE, ALICE)

    assert asked.answer.body["presence"] == "online"
    assert world.engine.of_type(StatusWanted) == [StatusWanted(ALICE, BOB)]


def test_an_origin_that_says_nothing_new_answers_too() -> None:
    """Decision 7: a poll that is answered with the same state ends the wait as well."""
    world = World()
    world.show(BOB, IDLE, ALICE)
    world.engine.old_copies.add(BOB)

    asked = world.ask("GET", status_path(BOB))
    world.feed.heard(BOB)

    assert asked.answer.body["presence"] == "unavailable"


def test_a_silent_origin_costs_a_second() -> None:
    """Decision 7: then we answer what we have."""
    world = World()
    world.show(BOB, IDLE, ALICE)
    world.engine.old_copies.add(BOB)

    asked = world.ask("GET", status_path(BOB))
    world.clock.advance(0.9)
    waited = asked.waits
    world.clock.advance(0.2)

    assert waited
    assert asked.answer.body["presence"] == "unavailable"
    assert world.clock.getDelayedCalls() == []


def test_who_may_not_see_a_user_does_not_make_us_ask() -> None:
    """Z-28's sibling: a GET about anybody must not become traffic."""
    world = World()
    world.engine.old_copies.add(BOB)

    assert world.answer("GET", status_path(BOB)).status == 403
    assert world.engine.events == []


def test_declaring_offline_is_on_disk_before_it_is_answered() -> None:
    """P:D-8: a crash must not take back that somebody hides."""
    world = World()
    world.store.held = []
    world.engine.does[PresenceSet] = lambda event: (SaveUser(ALICE, False), TellObservers(ALICE, (ALICE,)))

    asked = world.ask("PUT", status_path(ALICE), body={"presence": "offline"})
    waited = asked.waits
    world.store.held[0].callback(None)

    assert waited
    assert asked.answer.status == 200
