import pytest

from fedpresence.engine.effects import (
    Effect,
    SendEdu,
    SendPoll,
    SendPush,
    Urgency,
)
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import (
    DestinationAlive,
    ListChanged,
    RoomMembersSet,
    SettingsChanged,
    StatusWanted,
)
from fedpresence.engine.presence import (
    OFFLINE,
    ONLINE,
    View,
)
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS, ServerLists
from fedpresence.engine.subscription import EduKind, ObserverRow, ObserverStage
from fedpresence.ids import RoomID, ServerName, UserID
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    CAROL,
    THERE,
    a_poll,
    a_push,
    an_engine,
    an_unpoll,
    deliver,
    grant,
    pass_time,
    settings_of,
)
from tests.engine.bob import T, polls_until, shown, told, watching
from tests.engine.costs import calls_of

S = 1000
ROOM = RoomID("!room:here.test")
ACCEPTED = ObserverRow(ALICE, BOB, ObserverStage.ACCEPTED, T - HOUR_MS, T - HOUR_MS, confirmed_ms=T - HOUR_MS)


# --- polls out (E; S:O-9, O-26, O-26a) ----------------------------------------------


def test_after_an_accept_without_a_push_we_ask_after_ten_seconds() -> None:
    """S:O-9: servers of 2015 wait to be asked."""
    assert polls_until(watching(), 20 * S) == [10 * S]


def test_a_push_within_ten_seconds_of_the_accept_saves_the_question() -> None:
    """S:O-9: servers like ours send it at once."""
    engine = watching()

    deliver(engine, a_push(OFFLINE, 0), T + 9 * S)

    assert polls_until(engine, HOUR_MS) == []


def test_silence_is_asked_about_every_five_minutes_and_then_once_a_day() -> None:
    """S:O-26, O-26a, E:Q-11: three polls in vain are enough; then the grant itself is checked, daily."""
    engine = watching()
    deliver(engine, a_push(ONLINE, 0), T)
    start = 30 * MINUTE_MS + 1

    moments = pass_time(engine, T + 3 * DAY_MS)
    sent = [(ms - T - start, effect) for ms, effects in moments for effect in effects]
    polls = [ms for ms, effect in sent if isinstance(effect, SendPoll)]
    checks = [ms for ms, e in sent if isinstance(e, SendEdu) and e.edu.kind is EduKind.INVITE]

    third = 10 * MINUTE_MS
    assert polls[:5] == [0, 5 * MINUTE_MS, third, third + DAY_MS, third + 2 * DAY_MS]
    assert checks[0] == 15 * MINUTE_MS


def test_a_push_ends_the_asking() -> None:
    """It answers every poll, whichever it was."""
    engine = watching()
    deliver(engine, a_push(ONLINE, 0), T)
    polls_until(engine, 36 * MINUTE_MS)

    deliver(engine, a_push(OFFLINE, 0), T + 37 * MINUTE_MS)

    assert polls_until(engine, DAY_MS) == []


def test_who_is_known_from_a_room_alone_is_not_asked_for() -> None:
    """E:Q-8: polls are for accepted entries; most servers of room-mates ignore them."""
    engine = an_engine()
    engine.receive(RoomMembersSet(ROOM, frozenset({ALICE, BOB})), T)
    deliver(engine, a_push(), T)

    assert polls_until(engine, DAY_MS) == []
    assert shown(engine, T + DAY_MS) == View(OFFLINE, DAY_MS)


def test_a_get_asks_the_origin_where_our_copy_is_older_than_ten_seconds() -> None:
    """P:A-6, decision 7: in the silent time only the user's own server knows the true age."""
    engine = watching()
    deliver(engine, a_push(ONLINE, 0, currently_active=True), T)
    wanted = StatusWanted(ALICE, BOB)

    fresh = engine.wants_fresher_view(ALICE, BOB, T + 10 * S), engine.receive(wanted, T + 10 * S)
    old = engine.wants_fresher_view(ALICE, BOB, T + 10 * S + 1), engine.receive(wanted, T + 10 * S + 1)
    effects = deliver(engine, a_push(ONLINE, 2000, currently_active=True), T + 10 * S + 100)

    assert fresh == (False, ())
    assert old == (True, (SendPoll(THERE, BOB),))
    assert told(effects) == []
    assert shown(engine, T + 10 * S + 100) == View(ONLINE, 2000, None, currently_active=True)


def test_a_user_is_asked_for_at_most_once_in_ten_seconds() -> None:
    """E:Q-8: however many clients look, and though the answer came at once."""
    engine = watching()
    deliver(engine, a_push(), T)
    engine.receive(StatusWanted(ALICE, BOB), T + 20 * S)
    while_it_is_out = engine.receive(StatusWanted(ALICE, BOB), T + 20 * S + 50)
    deliver(engine, a_push(), T + 20 * S + 100)

    again = [engine.receive(StatusWanted(ALICE, BOB), T + ms) for ms in range(20_100, 30_101, 100)]

    assert while_it_is_out == ()
    assert not any(again)
    assert engine.receive(StatusWanted(ALICE, BOB), T + 30_101) == (SendPoll(THERE, BOB),)


def test_only_who_may_see_a_user_makes_us_ask() -> None:
    """E:Q-8 c, P:11: a stranger's GET leaves no trace on the wire."""
    engine = watching()
    deliver(engine, a_push(), T)

    assert not engine.wants_fresher_view(CAROL, BOB, T + HOUR_MS)
    assert engine.receive(StatusWanted(CAROL, BOB), T + 20 * S) == ()


def seen_by_a_room(count: int) -> tuple[Engine, list[UserID]]:
    """Users of another server whom Alice sees by a room alone; all were pushed."""
    room_mates = [UserID(f"@u{n}:there.test") for n in range(count)]
    engine = an_engine()
    engine.receive(RoomMembersSet(ROOM, frozenset({ALICE, *room_mates})), T)
    deliver(engine, [a_push(user_id=user_id) for user_id in room_mates], T)
    return engine, room_mates


def three_asked_in_vain() -> tuple[Engine, list[UserID]]:
    """Alice sees four of them; three were asked for, and no answer came."""
    engine, room_mates = seen_by_a_room(4)
    for user_id in room_mates[:3]:
        engine.receive(StatusWanted(ALICE, user_id), T + 20 * S)
    return engine, room_mates


def test_a_server_that_answered_no_poll_is_not_waited_for() -> None:
    """E:Q-11: most servers ignore polls; after three in vain no GET waits a second for nothing."""
    engine, room_mates = seen_by_a_room(5)

    asked = [engine.receive(StatusWanted(ALICE, user_id), T + 20 * S) for user_id in room_mates]

    assert [bool(effects) for effects in asked] == [True, True, True, False, False]

    engine.receive(DestinationAlive(THERE), T + HOUR_MS)
    assert engine.wants_fresher_view(ALICE, room_mates[4], T + HOUR_MS)


@pytest.mark.parametrize(("after_ms", "is_answer"), [(10 * S, True), (10 * S + 1, False)])
def test_a_push_long_after_a_poll_is_no_answer(after_ms: int, is_answer: bool) -> None:
    """E:Q-11: on a server that ignores polls people change all the same."""
    engine, room_mates = three_asked_in_vain()

    deliver(engine, a_push(user_id=room_mates[0]), T + 20 * S + after_ms)

    assert engine.wants_fresher_view(ALICE, room_mates[3], T + MINUTE_MS) is is_answer


def test_a_push_that_nobody_asked_for_is_no_answer() -> None:
    """E:Q-11: it says nothing about polls, though it came close behind another user's."""
    engine, room_mates = three_asked_in_vain()

    deliver(engine, a_push(user_id=room_mates[3]), T + 20 * S + 1)

    assert not engine.wants_fresher_view(ALICE, room_mates[3], T + MINUTE_MS)


def test_a_poll_that_was_answered_shows_that_polls_are_worth_it() -> None:
    """E:Q-11: the count begins anew, for all users of that server."""
    engine = watching()
    deliver(engine, a_push(), T)

    for minute in range(1, 10):
        now_ms = T + minute * MINUTE_MS
        assert engine.receive(StatusWanted(ALICE, BOB), now_ms) == (SendPoll(THERE, BOB),)
        deliver(engine, a_push(), now_ms + 50)


def test_a_server_that_is_denied_is_not_asked() -> None:
    """Z-9: the pair sleeps; it is neither polled nor given up."""
    engine = watching()
    deliver(engine, a_push(), T)
    engine.receive(SettingsChanged(settings_of(servers=ServerLists(deny=(THERE,)))), T + S)

    assert polls_until(engine, 2 * DAY_MS) == []
    assert engine.receive(StatusWanted(ALICE, BOB), T + 3 * DAY_MS) == ()


# --- polls in (E) ------------------------------------------------------------------


def pushes(effects: tuple[Effect, ...]) -> list[SendPush]:
    """The answers."""
    return [effect for effect in effects if isinstance(effect, SendPush)]


def test_a_poll_is_answered_where_there_is_a_right_and_nowhere_else() -> None:
    """E:Q-1, Q-2: no answer and no hint for others; in 2015 anybody was answered."""
    engine = an_engine(users=(ALICE, CAROL))
    grant(engine)

    effects = deliver(engine, a_poll(ALICE, CAROL, BOB, UserID("@ghost:here.test")), T)
    stranger = deliver(engine, a_poll(origin=ServerName("else.test")), T, ServerName("else.test"))

    assert pushes(effects) == [SendPush((THERE,), ALICE, Urgency.ASKED)]
    assert pushes(stranger) == []


def test_a_repeated_poll_is_answered_once_in_ten_seconds() -> None:
    """E:Q-7: an answer is the newest state, so more of them say nothing more."""
    engine = an_engine()
    grant(engine)

    answered = [len(pushes(deliver(engine, a_poll(), T + ms))) for ms in (0, 1, 9999, 10_000, 10_001)]

    assert answered == [1, 0, 0, 1, 0]


def test_a_poll_that_unmutes_is_answered_at_once() -> None:
    """E:Q-5: what changed while it was muted is known to nobody there."""
    engine = an_engine()
    grant(engine)
    deliver(engine, a_poll(), T)
    deliver(engine, an_unpoll(), T + 1000)

    effects = deliver(engine, a_poll(), T + 2000)

    assert len(pushes(effects)) >= 1


def test_a_stranger_cannot_poll_the_popular_at_our_expense() -> None:
    """Anybody may poll for anybody: walking through two thousand observers took a second for a hundred polls.

    And who is that slow exists, and is popular.
    """
    stranger = ServerName("else.test")

    def cost(observers: int, *, has_a_grant: bool) -> int:
        engine = an_engine()
        if has_a_grant:
            grant(engine, observer=UserID(f"@one:{stranger}"), now_ms=T)
        for number in range(observers):
            grant(engine, observer=UserID(f"@{number}:{THERE}"), now_ms=T)
        questions = (a_poll(origin=stranger), an_unpoll(origin=stranger))
        deliver(engine, questions, T, stranger)  # the first may look
        return calls_of(lambda: deliver(engine, questions, T, stranger))

    assert cost(1, has_a_grant=False) == cost(50, has_a_grant=False)
    assert cost(1, has_a_grant=True) == cost(50, has_a_grant=True)


def test_polls_follow_grants_that_come_and_go() -> None:
    """What is remembered of who was granted is never behind."""
    engine = an_engine()
    carol = UserID(f"@carol:{THERE}")
    grant(engine, now_ms=T)
    assert pushes(deliver(engine, a_poll(), T))
    engine.receive(ListChanged(ALICE, revoke=(BOB,)), T)
    assert not pushes(deliver(engine, a_poll(), T + MINUTE_MS))

    grant(engine, observer=carol, now_ms=T + MINUTE_MS)
    deliver(engine, an_unpoll(), T + 2 * MINUTE_MS)

    assert [entry.muted for entry in engine.observers_of(ALICE)] == [True]
    assert pushes(deliver(engine, a_poll(), T + 3 * MINUTE_MS))
