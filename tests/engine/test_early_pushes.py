import pytest

from fedpresence.engine.effects import SendEdu, SendUnpoll
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import ListChanged, RoomMembersSet
from fedpresence.engine.outgoing import Wanted
from fedpresence.engine.presence import OFFLINE, ONLINE, UNAVAILABLE, View
from fedpresence.engine.settings import DAY_MS, HOUR_MS, MINUTE_MS
from fedpresence.ids import RoomID, ServerName, UserID
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    THERE,
    a_push,
    an_accept,
    an_engine,
    deliver,
    subscribe,
)
from tests.engine.bob import T, polls_until, shown, told, watching

S = 1000
ROOM = RoomID("!room:here.test")
FLOOD = ServerName("flood.test")


# --- before an accept (E:C-6) ---------------------------------------------------------------------


def invited() -> Engine:
    """Alice has asked for Bob, her invite is out, and he has not answered."""
    engine = an_engine(users=(ALICE, CAROL))
    effects = engine.receive(ListChanged(ALICE, invite=(BOB,)), T)
    engine.compose(THERE, Wanted(owed=tuple(e.edu for e in effects if isinstance(e, SendEdu))), T)
    return engine


@pytest.mark.parametrize(("later_ms", "kept"), [(60 * S, True), (60 * S + 1, False)])
def test_a_push_that_overtakes_its_accept_is_kept_for_a_minute(later_ms: int, kept: bool) -> None:
    """E:C-6, S:O-14: peers may run the EDUs of one transaction in any order."""
    engine = invited()
    early = deliver(engine, a_push(ONLINE, 1000, "Tea"), T)

    unseen = shown(engine, T)
    effects = deliver(engine, an_accept(), T + later_ms)

    assert (told(early), unseen) == ([], None)
    if kept:
        assert told(effects) == [(ALICE,)]
        assert shown(engine, T + later_ms) == View(ONLINE, later_ms + 1000, "Tea")
        assert polls_until(engine, 20 * MINUTE_MS) == []
    else:
        assert told(effects) == []
        assert shown(engine, T + later_ms) == View(OFFLINE)
        assert polls_until(engine, 2 * MINUTE_MS) == [later_ms + 10 * S]


def test_an_early_push_counts_as_heard_when_it_came() -> None:
    """E:R-8: half an hour from then, not from the accept."""
    engine = invited()
    deliver(engine, a_push(ONLINE, 0), T)

    deliver(engine, an_accept(), T + 50 * S)

    assert polls_until(engine, HOUR_MS)[:1] == [30 * MINUTE_MS + 1]


def test_an_early_push_never_replaces_a_newer_one() -> None:
    """Bob became visible through a room before he accepted, and has changed since."""
    engine = invited()
    deliver(engine, a_push(ONLINE, 0, "Old"), T)
    engine.receive(RoomMembersSet(ROOM, frozenset({CAROL, BOB})), T + 5 * S)
    deliver(engine, a_push(UNAVAILABLE, 0, "New"), T + 10 * S)

    deliver(engine, an_accept(), T + 20 * S)

    assert shown(engine, T + 20 * S) == View(UNAVAILABLE, 10 * S, "New")


def test_a_push_of_an_invited_user_is_not_called_unwanted() -> None:
    """Z-12: an unpoll would mute the very pair that is about to begin."""
    assert not any(isinstance(effect, SendUnpoll) for effect in deliver(invited(), a_push(), T))


def test_who_comes_to_see_a_user_already_known_is_shown_what_is_here() -> None:
    """S:O-9: without asking again."""
    engine = watching()
    deliver(engine, a_push(ONLINE, 0, "Tea"), T)

    effects = subscribe(engine, CAROL, BOB, T + 5 * S)

    assert told(effects) == [(CAROL,)]
    assert polls_until(engine, 20 * MINUTE_MS) == []


# --- before a room, of which two servers never learn at once (E:P-9) ------------------------------


@pytest.mark.parametrize(("later_ms", "kept"), [(60 * S, True), (60 * S + 1, False)])
def test_a_push_that_came_before_its_room_is_kept_for_a_minute(later_ms: int, kept: bool) -> None:
    """Bob's server pushes when it learns of the room, and then not again before he changes."""
    engine = an_engine(users=(ALICE, CAROL))
    early = deliver(engine, a_push(ONLINE, 1000, "Tea"), T)

    unseen = shown(engine, T)
    effects = engine.receive(RoomMembersSet(ROOM, frozenset({ALICE, BOB})), T + later_ms)

    assert (told(early), unseen) == ([], None)
    assert told(effects) == ([(ALICE,)] if kept else [])
    expected = View(ONLINE, later_ms + 1000, "Tea") if kept else View(OFFLINE)
    assert shown(engine, T + later_ms) == expected
    assert polls_until(engine, 20 * MINUTE_MS) == ([] if kept else [later_ms + 1 * S])


def test_a_room_mate_who_pushes_at_once_is_not_asked() -> None:
    """The other server learns of the room at about the same time, and pushes by itself."""
    engine = an_engine(users=(ALICE, CAROL))
    engine.receive(RoomMembersSet(ROOM, frozenset({ALICE, BOB})), T)

    deliver(engine, a_push(ONLINE, 0), T + 500)

    assert polls_until(engine, 20 * MINUTE_MS) == []


def test_a_room_mate_is_asked_once_and_never_again() -> None:
    """Homeservers of today ignore polls; rooms have hundreds of members."""
    engine = an_engine(users=(ALICE, CAROL))
    engine.receive(RoomMembersSet(ROOM, frozenset({ALICE, BOB})), T)

    assert polls_until(engine, DAY_MS) == [1 * S]


def test_a_room_of_remote_users_alone_asks_for_nobody() -> None:
    """Decision 19: nobody here may see them."""
    engine = an_engine(users=(ALICE, CAROL))

    engine.receive(RoomMembersSet(ROOM, frozenset({BOB, DAVE})), T)

    assert polls_until(engine, DAY_MS) == []
    assert engine.counts().remote == 0


def test_one_server_cannot_push_out_what_others_sent_early() -> None:
    """What is kept of users whom nobody may see is bounded, and divided fairly."""
    engine = an_engine(users=(ALICE, CAROL))
    deliver(engine, a_push(ONLINE, 0, "Tea"), T)
    flood = [UserID(f"@u{n}:{FLOOD}") for n in range(12_000)]
    deliver(engine, [a_push(user_id=user_id, origin=FLOOD) for user_id in flood], T, FLOOD)

    engine.receive(RoomMembersSet(ROOM, frozenset({ALICE, BOB, flood[-1]})), T + S)

    assert shown(engine, T + S) == View(ONLINE, 1 * S, "Tea")
    assert engine.view(ALICE, flood[-1], T + S) == View(OFFLINE)
