"""Z-11: after a start the rooms of a homeserver are read again before anything is shared by them."""

import pytest

from fedpresence.clock import now_ms
from fedpresence.engine.outgoing import Wanted
from fedpresence.errors import HomeserverRefused, HomeserverUnavailable
from fedpresence.ids import RoomID, UserID, server_of
from fedpresence.storage.store import ScanKind, ScanRow
from tests.asynchronous import result_of
from tests.homeserver.world import (
    ALICE,
    BOB,
    BOT,
    CAROL,
    NOW_MS,
    OTHER,
    ROOM,
    Beside,
    PlayedHomeserver,
    member,
    message,
    tell,
)


def hears(beside: Beside, user_id: UserID = ALICE) -> bool:
    """Whether Bob's server would be told of the user now."""
    wanted = Wanted(users=(user_id,))
    return bool(beside.engine.compose(server_of(BOB), wanted, now_ms(beside.clock)).pushes)


def test_nothing_is_shared_by_a_room_before_it_was_read_again() -> None:
    """Bob may have been banned while we were away."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}, OTHER: {BOT, CAROL, BOB}})
    first = Beside(homeserver).started()
    assert hears(first)
    homeserver.rooms[OTHER] = {BOT, CAROL}
    homeserver.holds = True

    second = first.restarted().started()

    assert not hears(second)
    assert (second.scan.progress().state, second.scan.progress().rooms_doubted) == ("scanning", 2)
    homeserver.holds = False
    for held in homeserver.held:
        held.callback(None)
    second.settle()
    assert (hears(second), hears(second, CAROL)) == (True, False)
    assert (second.scan.progress().state, second.scan.progress().rooms_doubted) == ("following", 0)


def test_a_room_that_we_may_no_longer_read_ends() -> None:
    """All of ours have left it, or it was deleted."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}})
    first = Beside(homeserver).started()
    homeserver.rooms = {ROOM: {BOB}}

    second = first.restarted().started()

    assert second.members(ROOM) == set()
    assert not hears(second)


def test_the_page_of_a_proxy_ends_no_room() -> None:
    """A homeserver that is being upgraded is away: it has not said that anybody left."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}})
    first = Beside(homeserver).started()
    homeserver.errors = [HomeserverRefused(404) for _ in range(3)]

    second = first.restarted().started()

    assert (second.scan.progress().state, hears(second)) == ("waiting", False)
    assert second.members(ROOM) == {ALICE, BOB}
    second.settle(60)
    assert hears(second)


def test_a_room_in_which_something_happens_is_read_next() -> None:
    """There somebody is."""
    rooms = {RoomID(f"!{number}:here.test"): {BOT, ALICE, BOB} for number in range(20)}
    homeserver = PlayedHomeserver(rooms)
    second = Beside(homeserver).started().restarted()
    homeserver.asked.clear()
    second.scan._interval_s = 1.0
    second.scan.start()
    last = second.engine.known.doubted()[-1]

    tell(second, message(BOB, last))
    second.settle(10)

    asked = [question for question in homeserver.asked if question.startswith("members")]
    assert f"members of {last}" in asked[:6]
    result_of(second.scan.stop())


def test_rooms_that_are_new_do_not_wait_for_all_that_are_read_again() -> None:
    """Nor the other way round: they take turns."""
    rooms = {RoomID(f"!{number}:here.test"): {BOT, ALICE, BOB} for number in range(20)}
    homeserver = PlayedHomeserver(rooms)
    second = Beside(homeserver).started().restarted()
    homeserver.rooms[ROOM] = {ALICE, BOB}
    homeserver.asked.clear()
    second.scan._interval_s = 1.0
    second.scan.start()

    tell(second, member(ALICE, "join"))
    second.settle(12)

    asked = [question for question in homeserver.asked if question.startswith("members")]
    assert f"members of {ROOM}" in asked[:6]
    result_of(second.scan.stop())


def test_a_room_that_cannot_be_read_holds_up_no_other_and_stays_in_doubt() -> None:
    """A homeserver with a broken room has others."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}, OTHER: {CAROL, BOB, BOT}})
    second = Beside(homeserver).started().restarted()
    homeserver.broken[f"members of {ROOM}"] = HomeserverRefused(500, "M_UNKNOWN")
    second.started()

    assert (hears(second, CAROL), hears(second, ALICE)) == (True, False)
    assert (second.scan.progress().state, second.scan.progress().rooms_doubted) == ("following", 1)
    result_of(second.scan.stop())


@pytest.mark.parametrize(("broken_s", "least", "most", "mended_s"), [(60, 1, 1, 120), (18_000, 8, 15, 3_600)])
def test_a_room_that_could_not_be_read_is_asked_for_again_less_and_less_often(
    broken_s: int, least: int, most: int, mended_s: int
) -> None:
    """The homeserver's database was away for a moment: presence must not wait for tomorrow."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}, OTHER: {CAROL, BOB, BOT}})
    second = Beside(homeserver).started().restarted()
    question = f"members of {ROOM}"
    homeserver.broken[question] = HomeserverRefused(500, "M_UNKNOWN")
    homeserver.asked.clear()
    second.started()
    assert homeserver.asked.count(question) == 3

    for _ in range(broken_s):
        second.clock.advance(1)
    asked = homeserver.asked.count(question) - 3
    homeserver.broken.clear()
    for _ in range(mended_s):
        second.clock.advance(1)

    assert least <= asked <= most
    assert (hears(second, ALICE), second.scan.progress().rooms_doubted) == (True, 0)
    assert len(second.clock.getDelayedCalls()) == 1  # tomorrow's reading
    result_of(second.scan.stop())
    assert second.clock.getDelayedCalls() == []


def test_rooms_that_could_not_be_read_together_are_not_asked_for_together() -> None:
    """The homeserver has just come back."""
    rooms = {RoomID(f"!{number}:here.test"): {BOT, ALICE, BOB} for number in range(60)}
    homeserver = PlayedHomeserver(rooms)
    second = Beside(homeserver).started().restarted()
    for room_id in rooms:
        homeserver.broken[f"members of {room_id}"] = HomeserverRefused(500, "M_UNKNOWN")
    second.started()
    homeserver.asked.clear()

    moments = []
    for second_ in range(60):
        before = len(homeserver.asked)
        second.clock.advance(1)
        moments += [second_] * (len(homeserver.asked) - before)

    assert len(moments) == 60
    assert max(moments.count(moment) for moment in moments) <= 10
    result_of(second.scan.stop())


def test_who_could_not_be_asked_for_is_not_left_out_until_the_next_start() -> None:
    """A user in whose rooms the homeserver has a fault is in others soon."""
    homeserver = PlayedHomeserver({})
    beside = Beside(homeserver).started()
    homeserver.rooms = {ROOM: {ALICE, BOB}}
    homeserver.broken[f"rooms of {ALICE}"] = HomeserverRefused(500, "M_UNKNOWN")
    result_of(beside.scan.meet(ALICE))
    beside.settle()

    homeserver.broken.clear()
    beside.settle(60)

    assert beside.members(ROOM) == {ALICE, BOB}
    assert result_of(beside.store.load_scan()) == [ScanRow(ScanKind.BEGUN)]


def test_a_room_that_was_answered_for_meanwhile_is_not_asked_for_again() -> None:
    """The daily reading may come first."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}})
    second = Beside(homeserver).started().restarted()
    homeserver.broken[f"members of {ROOM}"] = HomeserverRefused(500, "M_UNKNOWN")
    second.started()
    homeserver.broken.clear()
    second.scan._read_again()
    second.settle()
    assert hears(second, ALICE)
    homeserver.asked.clear()

    second.settle(120)

    assert homeserver.asked == []


def test_what_the_stream_says_while_a_room_is_read_again_wins() -> None:
    """He is banned in this very moment."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}})
    second = Beside(homeserver).started().restarted()
    homeserver.holds = True
    second.started()

    tell(second, member(BOB, "ban"))
    homeserver.holds = False
    homeserver.held.pop().callback(None)
    second.settle()

    assert second.members(ROOM) == {ALICE}
    assert not hears(second)


def test_a_homeserver_that_was_away_at_the_start_is_asked_when_it_is_back() -> None:
    """Both were restarted together; the room that was first in line is the first again."""
    rooms = {RoomID(f"!{number}:here.test"): {BOT, ALICE, BOB} for number in range(6)}
    homeserver = PlayedHomeserver(rooms)
    second = Beside(homeserver).started().restarted()
    homeserver.errors = [HomeserverUnavailable("away") for _ in range(3)]
    homeserver.asked.clear()

    second.started()
    second.settle(60)

    assert second.scan.progress().rooms_doubted == 0
    assert len(set(homeserver.asked[:4])) == 1


def test_a_room_that_is_left_and_joined_again_in_doubt_is_kept_on_disk() -> None:
    """We are told nothing of a room with nobody of ours, and must not forget that it is to be asked for."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}})
    second = Beside(homeserver).started().restarted()

    tell(second, member(ALICE, "leave"), txn_id="1")
    tell(second, member(ALICE, "join"), txn_id="2")

    assert ScanRow(ScanKind.ROOM, ROOM) in result_of(second.store.load_scan())
    third = second.restarted().started()
    assert third.members(ROOM) == {ALICE, BOB}
    assert result_of(third.store.load_scan()) == [ScanRow(ScanKind.BEGUN)]


def test_a_join_from_before_the_start_lets_nobody_in_again() -> None:
    """He joined, and was banned, while we were away: the stream repeats both, the room was read between."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE}})
    second = Beside(homeserver).started().restarted().started(is_caught_up=False)
    homeserver.asked.clear()

    tell(second, {**member(BOB, "join"), "origin_server_ts": NOW_MS + 3_600_000}, txn_id="1")
    heard_at_once = hears(second)
    second.settle()
    heard = hears(second)
    tell(second, member(BOB, "ban"), txn_id="2")

    assert (heard_at_once, heard, hears(second)) == (False, False, False)
    assert homeserver.asked == [f"members of {ROOM}", f"rule of {ROOM}"]


def test_a_join_that_may_be_old_counts_when_the_room_says_so() -> None:
    """Nobody of ours has said anything for hours; a room mate still comes in."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE}})
    second = Beside(homeserver).started().restarted().started(is_caught_up=False)
    homeserver.rooms[ROOM] |= {BOB}

    tell(second, member(BOB, "join"))
    second.settle()

    assert hears(second)


@pytest.mark.parametrize("at_once", [True, False])
def test_who_left_and_came_back_before_the_start_is_there(at_once: bool) -> None:
    """The leave is told, the join is asked for: the answer must not meet the leave."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE}})
    second = Beside(homeserver).started().restarted().started(is_caught_up=False)
    homeserver.rooms[ROOM] |= {BOB}
    left, joined = member(BOB, "leave"), member(BOB, "join")

    if at_once:
        tell(second, left, joined)
    else:
        tell(second, left, txn_id="1")
        tell(second, joined, txn_id="2")
    second.settle()

    assert hears(second)


def test_a_join_that_comes_while_its_room_is_read_is_asked_for_once_more() -> None:
    """The answer may be older than the join."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE}})
    second = Beside(homeserver).started().restarted()
    homeserver.holds = True
    second.started(is_caught_up=False)
    homeserver.rooms[ROOM] |= {BOB}
    tell(second, member(BOB, "join"))
    homeserver.holds = False

    homeserver.held.pop().callback(None)
    second.settle()

    assert second.members(ROOM) == {ALICE, BOB}
    assert result_of(second.store.load_scan()) == [ScanRow(ScanKind.BEGUN)]


def test_who_is_known_to_be_there_is_not_asked_for() -> None:
    """Profiles change by joins too."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}})
    second = Beside(homeserver).started().restarted().started(is_caught_up=False)
    homeserver.asked.clear()

    tell(second, member(BOB, "join"))
    second.settle()

    assert homeserver.asked == []
