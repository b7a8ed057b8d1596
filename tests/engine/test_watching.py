from dataclasses import replace

import pytest

from fedpresence.engine.effects import Effect, SendDropOnce, SendEdu, SendPoll, SendUnpoll, TellObservers
from fedpresence.engine.events import EdusDelivered, ListChanged, RoomMembersSet, UserAdded
from fedpresence.engine.outgoing import ListEdu, Wanted
from fedpresence.engine.pairs import Pairs
from fedpresence.engine.presence import (
    BUSY,
    OFFLINE,
    ONLINE,
    UNAVAILABLE,
    PresenceRecord,
    PresenceState,
    Published,
    View,
)
from fedpresence.engine.remote import RemoteUser
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS, ServerLists
from fedpresence.engine.subscription import EduKind, ObserverRow, ObserverStage
from fedpresence.ids import RoomID, ServerName, UserID
from fedpresence.storage.store import Stored
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    HERE,
    THERE,
    a_deny,
    a_push,
    an_engine,
    deliver,
    pass_time,
    restarted,
    settings_of,
    subscribe,
)
from tests.engine.bob import T, polls_until, shown, told, watching

S = 1000
ROOM = RoomID("!room:here.test")
FLOOD = ServerName("flood.test")
ACCEPTED = ObserverRow(ALICE, BOB, ObserverStage.ACCEPTED, T - HOUR_MS, T - HOUR_MS, confirmed_ms=T - HOUR_MS)


# --- pushes (E:2.3) -------------------------------------------------------------------------------


def test_a_push_is_shown_and_ages_from_its_receipt() -> None:
    """E:R-5, R-7: ages are made here, by our clock."""
    engine = watching()

    effects = deliver(engine, a_push(UNAVAILABLE, 5000, "Tea"), T)

    assert told(effects) == [(ALICE,)]
    assert shown(engine, T + 1000) == View(UNAVAILABLE, 6000, "Tea")


@pytest.mark.parametrize(
    "user_id", [UserID("@eve:elsewhere.test"), ALICE, UserID("@bob:THERE.test"), UserID("@bob:there.test:1")]
)
def test_a_server_speaks_for_its_own_users_alone(user_id: UserID) -> None:
    """E:R-1, R-2: names are compared byte for byte; who is ours is ours."""
    engine = an_engine()
    if user_id != ALICE:
        subscribe(engine, observed=user_id)

    effects = deliver(engine, a_push(user_id=user_id), T)
    ours = deliver(engine, a_push(user_id=ALICE, origin=HERE), T, origin=HERE)

    assert not any(isinstance(effect, TellObservers | SendUnpoll) for effect in (*effects, *ours))
    view = engine.view(ALICE, user_id, T)
    assert view is not None
    assert view.state is OFFLINE


def test_a_push_without_an_age_keeps_the_one_that_was() -> None:
    """E:R-4: older servers leave it out."""
    engine = watching()
    deliver(engine, a_push(ONLINE, 5000), T)

    deliver(engine, a_push(UNAVAILABLE, None), T + 1000)

    assert shown(engine, T + 1000) == View(UNAVAILABLE, 6000)


def test_a_push_without_a_message_clears_it_and_without_the_flag_ends_activity() -> None:
    """P:S-5, E:R-5: missing is no message, and false."""
    engine = watching()
    deliver(engine, a_push(ONLINE, 0, "Tea", currently_active=True), T)

    deliver(engine, a_push(ONLINE, 0), T)

    assert shown(engine, T) == View(ONLINE, 0)


def test_a_push_of_somebody_nobody_here_may_see_leaves_nothing() -> None:
    """E:R-6, decision 19: any server could fill our memory with invented users."""
    engine = an_engine()

    deliver(engine, [a_push(user_id=UserID(f"@u{n}:there.test")) for n in range(50)], T)

    assert engine.counts().remote == 0
    assert engine.take_dirty(10) == []


def test_a_push_tells_what_is_news_and_nothing_else() -> None:
    """E:R-7, P:A-2a: the refresh of an unchanged user wakes no client."""
    engine = watching()
    deliver(engine, a_push(ONLINE, 0, currently_active=True), T)

    refresh = deliver(engine, a_push(ONLINE, 0, currently_active=True), T + 25 * MINUTE_MS)
    changed = deliver(engine, a_push(ONLINE, 70 * S), T + 26 * MINUTE_MS)

    assert told(refresh) == []
    assert told(changed) == [(ALICE,)]


def test_a_remote_user_who_is_active_is_so_until_told_otherwise() -> None:
    """P:A-4, E:R-8: the sender promised to say when it ends, so our own minute does not count."""
    engine = watching()
    deliver(engine, a_push(ONLINE, 0, currently_active=True), T)

    assert shown(engine, T + 29 * MINUTE_MS) == View(ONLINE, 29 * MINUTE_MS, None, currently_active=True)


@pytest.mark.parametrize("state", [UNAVAILABLE, OFFLINE, BUSY])
def test_the_flag_beside_another_state_is_ignored(state: PresenceState) -> None:
    """P:A-1: older servers send it with anything."""
    engine = watching()

    deliver(engine, a_push(state, 0, currently_active=True), T)

    assert shown(engine, T) == View(state, 0)


def test_of_two_items_for_one_user_the_last_counts() -> None:
    """E:R-9."""
    engine = watching()

    deliver(engine, [a_push(ONLINE), a_push(UNAVAILABLE, 3000)], T)

    assert shown(engine, T) == View(UNAVAILABLE, 3000)


def test_everybody_here_who_may_see_the_user_is_told() -> None:
    """P:11: by list and by room, each once."""
    engine = watching()
    engine.receive(RoomMembersSet(ROOM, frozenset({ALICE, CAROL, BOB})), T)

    effects = deliver(engine, a_push(), T)

    assert told(effects) == [(ALICE, CAROL)]


def test_a_server_we_exchange_nothing_with_says_nothing() -> None:
    """Z-9, S:O-37: its users are shown offline, whatever was known of them."""
    engine = an_engine(servers=ServerLists(deny=("there.*",)))
    engine.receive(RoomMembersSet(ROOM, frozenset({ALICE, BOB})), T)

    effects = deliver(engine, a_push(), T)

    assert told(effects) == []
    assert shown(engine, T) == View(OFFLINE)


# --- silence (E:R-8, decision 8) ------------------------------------------------------------------


def test_a_user_not_heard_of_for_more_than_half_an_hour_is_shown_offline() -> None:
    """E:R-8, P:T-7: and the operator can tell that from news."""
    engine = watching()
    deliver(engine, a_push(ONLINE, 0, "Tea", currently_active=True), T)

    before = pass_time(engine, T + 30 * MINUTE_MS)
    after = pass_time(engine, T + 30 * MINUTE_MS + 1)

    assert before == []
    assert [(ms - T, told(effects)) for ms, effects in after] == [(1_800_001, [(ALICE,)])]
    assert shown(engine, T + 31 * MINUTE_MS) == View(OFFLINE, 31 * MINUTE_MS, "Tea")
    detail = engine.user_detail(BOB, T + 31 * MINUTE_MS)
    assert detail is not None
    assert (detail.stale, detail.heard_ms) == (True, T)


def test_half_an_hour_exactly_is_not_yet_silence() -> None:
    """E:R-8 is strict, whoever wakes the engine and when."""
    remote = RemoteUser()
    remote.heard(Published(ONLINE, T), T)

    overdue = [remote.is_overdue(T + 1_800_000 + ms, settings_of()) for ms in (0, 1)]

    assert overdue == [False, True]


def test_every_push_is_a_sign_of_life() -> None:
    """E:P-6: that is what the refresh is for."""
    engine = watching()
    for minutes in range(0, 120, 25):
        deliver(engine, a_push(UNAVAILABLE, 0), T + minutes * MINUTE_MS)
        assert polls_until(engine, (minutes + 24) * MINUTE_MS) == []

    view = shown(engine, T + 125 * MINUTE_MS)
    assert view is not None
    assert view.state is UNAVAILABLE


def test_who_is_heard_of_again_is_back() -> None:
    """Decision 8: expiry was never mistaken for news, so the same state is news again."""
    engine = watching()
    deliver(engine, a_push(UNAVAILABLE, 0), T)
    pass_time(engine, T + HOUR_MS)

    effects = deliver(engine, a_push(UNAVAILABLE, HOUR_MS), T + HOUR_MS)

    assert told(effects) == [(ALICE,)]
    assert shown(engine, T + HOUR_MS) == View(UNAVAILABLE, HOUR_MS)


def test_silence_about_somebody_offline_is_no_news_and_no_reason_to_ask() -> None:
    """P:O-5: nobody refreshes who is offline."""
    engine = watching()
    deliver(engine, a_push(OFFLINE, 0), T)

    assert polls_until(engine, DAY_MS) == []


# --- what nobody here wants (Z-12) ----------------------------------------------------------------


def replies(effects: tuple[Effect, ...]) -> list[Effect]:
    """What goes back to the server that pushed."""
    return [effect for effect in effects if isinstance(effect, SendUnpoll | SendDropOnce)]


def test_a_push_that_nobody_wants_is_answered_with_an_unpoll_once_an_hour() -> None:
    """Z-12, S:5: a server that lost its database is told so by those who lost nothing."""
    engine = an_engine()
    moments = (0, 1, HOUR_MS - 1, HOUR_MS, HOUR_MS + 1)

    answers = [replies(deliver(engine, a_push(), T + ms)) for ms in moments]

    unpoll = [SendUnpoll(THERE, BOB)]
    assert answers == [unpoll, [], [], unpoll, []]


def test_pushes_that_nobody_wants_are_counted_by_origin_and_names_are_bounded() -> None:
    """The operator sees who sends them; a server with any number of names fills nobody's memory."""
    engine = watching()
    for number in range(150):
        origin = ServerName(f"s{number}.test")
        items = [a_push(user_id=UserID(f"@u{n}:{origin}"), origin=origin) for n in range(3)]
        deliver(engine, items, origin=origin)
    deliver(engine, [a_push(), a_push(user_id=DAVE)])

    counts = engine.unwanted()

    assert len(counts) == 101
    assert counts[ServerName("s0.test")] == 3
    assert sum(counts.values()) == 451  # Bob's push was wanted


def test_a_push_about_a_dropped_pair_reminds_of_the_drop_once_a_day() -> None:
    """Z-12, S:5: a grant that a restored backup revived ends again."""
    engine = watching()
    dropped = engine.receive(ListChanged(ALICE, drop=(BOB,)), T)
    owed = tuple(effect.edu for effect in dropped if isinstance(effect, SendEdu))
    while_owed = replies(deliver(engine, a_push(), T + S))
    engine.receive(EdusDelivered(THERE, owed), T + 2 * S)

    answers = [replies(deliver(engine, a_push(), T + ms)) for ms in (3 * S, HOUR_MS, DAY_MS + 4 * S)]

    reminder, unpoll = SendDropOnce(THERE, ALICE, BOB), SendUnpoll(THERE, BOB)
    assert while_owed == [unpoll]  # the drop itself is on its way
    assert answers == [[reminder], [], [reminder, unpoll]]
    assert engine.compose(THERE, Wanted(drops=(ListEdu(EduKind.DROP, ALICE, BOB),)), T).before != ()


def test_a_pair_that_is_over_is_reminded_of_though_others_here_watch() -> None:
    """Z-12: any push of T, wanted by others here or not."""
    engine = watching()
    subscribe(engine, CAROL, BOB)
    deliver(engine, a_deny(), T)

    effects = deliver(engine, a_push(), T + S)

    assert replies(effects) == [SendDropOnce(THERE, ALICE, BOB)]
    assert told(effects) == [(CAROL,)]


def test_at_most_a_hundred_replies_go_to_an_origin_in_a_minute() -> None:
    """Z-12: forged floods must not make us flood; the next minute they may be answered after all."""
    engine = an_engine()
    strangers = [UserID(f"@u{n}:there.test") for n in range(150)]

    first = replies(deliver(engine, [a_push(user_id=u) for u in strangers], T))
    second = replies(deliver(engine, [a_push(user_id=u) for u in strangers], T + MINUTE_MS))

    assert len(first) == 100
    assert [reply.user_id for reply in second if isinstance(reply, SendUnpoll)] == strangers[100:]


def test_a_reminder_that_found_the_minute_full_is_not_lost_for_a_day() -> None:
    """Z-12: the limits are asked in an order in which one does not use up the other."""
    engine = watching()
    subscribe(engine, CAROL, BOB)
    deliver(engine, a_deny(), T)
    deliver(engine, [a_push(user_id=UserID(f"@u{n}:there.test")) for n in range(100)], T)

    in_a_full_minute = replies(deliver(engine, a_push(), T + 1))
    after_it = replies(deliver(engine, a_push(), T + MINUTE_MS))

    assert in_a_full_minute == []
    assert after_it == [SendDropOnce(THERE, ALICE, BOB)]


def test_an_unpoll_that_is_wanted_no_more_does_not_leave() -> None:
    """Between the question and its bytes somebody here came to see the user."""
    engine = an_engine()
    deliver(engine, a_push(), T)
    before = engine.compose(THERE, Wanted(unpolls=(BOB,)), T).unpolls

    subscribe(engine)

    assert before == (BOB,)
    assert engine.compose(THERE, Wanted(unpolls=(BOB,)), T).unpolls == ()


# --- forgetting and coming back -------------------------------------------------------------------


def test_a_user_nobody_may_see_any_more_is_forgotten() -> None:
    """Decision 19: in memory, on the disk, and in what is due."""
    engine = watching()
    deliver(engine, a_push(), T)

    engine.receive(ListChanged(ALICE, drop=(BOB,)), T)

    assert engine.counts().remote == 0
    assert engine.take_dirty(5) == []
    assert engine.take_forgotten(5) == [BOB]
    assert all(not told(effects) for _, effects in pass_time(engine, T + 31 * MINUTE_MS))


def test_a_user_whom_others_may_see_is_not_forgotten() -> None:
    """The last one to let go decides."""
    engine = watching()
    subscribe(engine, CAROL, BOB)
    deliver(engine, a_push(), T)

    engine.receive(ListChanged(ALICE, drop=(BOB,)), T)

    assert shown(engine, T, CAROL) == View(ONLINE, 0)
    assert engine.take_forgotten(5) == []


def record(state: PresenceState = ONLINE, heard_ms: int = T - MINUTE_MS) -> PresenceRecord:
    """Bob, as he was written behind."""
    return PresenceRecord(BOB, state, heard_ms, "Tea", state is ONLINE, heard_ms)


def stored_of(bob: PresenceRecord, *rows: ObserverRow) -> Stored:
    """What a restart begins with, with Alice here."""
    return Stored(users=[(ALICE, False)], pairs=Pairs(rows), presence=[bob])


def test_after_a_restart_the_last_known_state_is_shown_and_asked_about() -> None:
    """S:O-27: within half a minute, a server's users together."""
    engine = restarted(stored_of(record(), ACCEPTED, replace(ACCEPTED, observed=DAVE)))

    moments = [(ms, e) for ms, effects in pass_time(engine, T + 31 * S) for e in effects]

    assert shown(engine, T) == View(ONLINE, MINUTE_MS, "Tea", currently_active=True)
    assert {effect for _, effect in moments} == {SendPoll(THERE, BOB), SendPoll(THERE, DAVE)}
    assert len({ms for ms, _ in moments}) == 1


def test_a_restart_asks_for_nobody_who_has_not_accepted_and_for_none_of_ours() -> None:
    """S:O-27, decision 19: a request gives no right, and our own users are here."""
    pending = replace(ACCEPTED, stage=ObserverStage.PENDING, invite_ms=T)
    ours = replace(ACCEPTED, observed=CAROL)
    engine = restarted(stored_of(record(), pending, ours))

    assert polls_until(engine, HOUR_MS) == []
    assert engine.counts().remote == 0


def test_after_a_long_stop_silence_counts_from_when_the_user_was_heard_of() -> None:
    """S:O-27, E:R-8: shown offline, and asked for once, with the others of that server."""
    engine = restarted(stored_of(record(heard_ms=T - HOUR_MS), ACCEPTED))

    first = pass_time(engine, T)
    polls = polls_until(engine, 4 * MINUTE_MS)

    assert [told(effects) for _, effects in first] == [[(ALICE,)]]
    assert shown(engine, T) == View(OFFLINE, HOUR_MS, "Tea")
    assert len(polls) == 1


def test_presence_from_the_future_is_presence_of_now() -> None:
    """Z-21: else a clock that was wrong would keep somebody online for days."""
    engine = restarted(stored_of(record(heard_ms=T + 9 * DAY_MS), ACCEPTED))
    polls_until(engine, 29 * MINUTE_MS)

    assert shown(engine, T) == View(ONLINE, 0, "Tea", currently_active=True)
    pass_time(engine, T + 31 * MINUTE_MS)
    assert shown(engine, T + 31 * MINUTE_MS) == View(OFFLINE, 31 * MINUTE_MS, "Tea")


def test_stored_presence_of_somebody_nobody_may_see_is_forgotten() -> None:
    """Decision 19: a row may have ended with the presence still on the disk."""
    engine = restarted(stored_of(record()))

    assert engine.counts().remote == 0
    assert engine.take_forgotten(5) == [BOB]


def test_a_local_user_is_never_a_remote_one() -> None:
    """A user of ours on a friend's list has one record, not two."""
    engine = an_engine(users=(ALICE, CAROL))
    engine.receive(UserAdded(CAROL), T)
    engine.receive(ListChanged(ALICE, invite=(CAROL,)), T)
    engine.receive(ListChanged(CAROL, accept=(ALICE,)), T)

    assert engine.counts().remote == 0
    assert not engine.wants_fresher_view(ALICE, CAROL, T + HOUR_MS)
    assert polls_until(engine, HOUR_MS) == []
