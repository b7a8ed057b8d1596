from collections.abc import Sequence

import pytest
from twisted.internet.defer import Deferred, fail

from fedpresence.engine.effects import Durable
from fedpresence.engine.events import RoomMemberChanged
from fedpresence.errors import HomeserverRefused, HomeserverUnavailable, StoreError
from fedpresence.homeserver.frontier import MAX_SAID, SAID_FOR_MS, Said
from fedpresence.homeserver.scan import READ_AGAIN_S
from fedpresence.ids import RoomID, UserID
from fedpresence.storage.memory import MemoryStore
from fedpresence.storage.store import ScanKind, ScanRow
from tests.asynchronous import as_deferred, result_of
from tests.homeserver.world import (
    ALICE,
    BOB,
    BOT,
    CAROL,
    DAVE,
    NOW_MS,
    OTHER,
    ROOM,
    Beside,
    PlayedHomeserver,
    member,
    message,
    tell,
)


class EndingStore(MemoryStore):
    """Nothing can be written any more after so many writes, as when the process has gone."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self._writes_left = writes

    def _last(self) -> bool:
        self._writes_left -= 1
        return self._writes_left < 0

    def commit(self, effects: Sequence[Durable], now_ms: int) -> Deferred[None]:
        """As MemoryStore's, for a while."""
        return fail(StoreError("gone")) if self._last() else super().commit(effects, now_ms)

    def save_scan(self, saved: Sequence[ScanRow], gone: Sequence[ScanRow]) -> Deferred[None]:
        """As MemoryStore's, for a while."""
        return fail(StoreError("gone")) if self._last() else super().save_scan(saved, gone)


def test_from_one_room_of_the_bot_everything_is_reached() -> None:
    """Without an admin's token users are found in rooms, and rooms by their users."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}, OTHER: {ALICE, CAROL}})

    beside = Beside(homeserver).started()

    assert beside.members(ROOM) == {ALICE, BOB}
    assert beside.members(OTHER) == {ALICE, CAROL}
    assert set(beside.engine.known.users()) == {ALICE, CAROL}
    assert beside.scan.progress().state == "following"


def test_where_we_may_all_users_are_listed() -> None:
    """Synapse's admin API finds those too who share no room with anybody found."""
    homeserver = PlayedHomeserver({ROOM: {ALICE, BOB}})
    homeserver.users = {ALICE, DAVE, BOT}

    beside = Beside(homeserver).started()

    assert set(beside.engine.known.users()) == {ALICE, DAVE}
    assert beside.members(ROOM) == {ALICE, BOB}


def test_a_finished_scan_is_not_repeated_at_the_next_start() -> None:
    """A large server must not be asked everything at each restart: its queue tells which rooms are new."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}})
    first = Beside(homeserver).started()
    homeserver.asked.clear()

    second = first.restarted().started()

    assert homeserver.asked == [f"members of {ROOM}", f"rule of {ROOM}"]
    assert second.members(ROOM) == {ALICE, BOB}


def test_a_restart_in_the_middle_goes_on_where_it_was() -> None:
    """Hours of asking must not begin anew because of an upgrade."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE}, OTHER: {ALICE, CAROL}})
    first = Beside(homeserver)
    first.scan.start()
    while f"members of {OTHER}" not in homeserver.asked:
        homeserver.holds = f"members of {ROOM}" in homeserver.asked
        first.clock.advance(0.001)
    first.settle()
    homeserver.asked.clear()
    homeserver.holds = False

    second = first.restarted().started()

    assert second.members(OTHER) == {ALICE, CAROL}
    assert "register" not in homeserver.asked


def test_what_the_stream_says_while_we_ask_wins_over_the_answer() -> None:
    """Who was banned a moment ago must not be let in again by an older answer."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}})
    homeserver.holds = True
    beside = Beside(homeserver).started()

    tell(beside, member(BOB, "leave"), member(CAROL, "join"))
    homeserver.holds = False
    homeserver.held.pop().callback(None)
    beside.settle()

    assert beside.members(ROOM) == {ALICE, CAROL}


def test_an_answer_that_is_behind_what_was_just_said_lets_nobody_in_again() -> None:
    """Of Synapse's workers the one that we ask may hear of a ban after the one that told us."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}})
    beside = Beside(homeserver).started()
    tell(beside, member(BOB, "ban"), member(CAROL, "join"))

    result_of(beside.scan.begin_again())
    beside.settle()
    behind = beside.members(ROOM)
    beside.settle(60)
    result_of(beside.scan.begin_again())
    beside.settle()

    assert behind == {ALICE, CAROL}
    assert beside.members(ROOM) == {ALICE, BOB}  # what it says after a minute is so


def test_a_new_room_counts_once_the_one_who_answers_has_heard_of_it() -> None:
    """It is asked for as it is made, and again when Alice is in it: by then not every worker may know."""
    homeserver = PlayedHomeserver({})
    beside = Beside(homeserver).started()
    tell(beside, message(ALICE), txn_id="1")
    homeserver.asked.clear()

    tell(beside, member(ALICE, "join"), txn_id="2")
    beside.settle(2.5)
    asked_in_vain = homeserver.asked.count(f"members of {ROOM}")
    homeserver.rooms = {ROOM: {ALICE, BOB}}
    beside.settle(1)

    assert asked_in_vain == 3  # once a second
    assert beside.members(ROOM) == {ALICE, BOB}
    assert result_of(beside.store.load_scan()) == [ScanRow(ScanKind.BEGUN)]


def test_what_is_remembered_of_the_stream_is_bounded() -> None:
    """A backlog of a day comes in a minute."""
    said = Said()

    for number in range(MAX_SAID + 10):
        said.change(RoomMemberChanged(ROOM, UserID(f"@u{number}:there.test"), True), NOW_MS)

    assert len(said.of(ROOM, NOW_MS)) == len(said) == MAX_SAID
    assert said.of(ROOM, NOW_MS + SAID_FOR_MS) == {}
    assert len(said) == 0


def test_a_room_is_told_whole_or_not_at_all() -> None:
    """Of a room of thousands that Alice has just joined only she is known: it must not count as small."""
    homeserver = PlayedHomeserver({})
    beside = Beside(homeserver).started()
    crowd = {UserID(f"@u{number}:there.test") for number in range(20)}
    homeserver.rooms = {ROOM: crowd | {ALICE, BOB}}
    homeserver.errors = [HomeserverUnavailable("away")]

    tell(beside, member(ALICE, "join"), member(BOB, "join"))

    assert beside.members(ROOM) == set()
    beside.settle(5)
    assert beside.members(ROOM) == set()
    assert ScanRow(ScanKind.LARGE, ROOM, 22) in result_of(beside.store.load_scan())
    assert beside.engine.user_exists(ALICE)


def test_a_large_room_is_asked_for_again_when_enough_have_left() -> None:
    """Z-19: a room may become small, and counts then."""
    crowd = {UserID(f"@u{number}:there.test") for number in range(12)}
    homeserver = PlayedHomeserver({ROOM: crowd | {BOT, ALICE}})
    beside = Beside(homeserver).started()
    assert beside.members(ROOM) == set()

    homeserver.rooms[ROOM] = {ALICE, BOB}
    tell(beside, *(member(user_id, "leave") for user_id in sorted(crowd)))
    beside.settle()

    assert beside.members(ROOM) == {ALICE, BOB}
    assert result_of(beside.store.load_scan()) == [ScanRow(ScanKind.BEGUN)]


def test_a_room_of_which_we_are_told_and_know_nothing_is_asked_for() -> None:
    """The homeserver tells only of rooms with somebody of ours: so whatever was missed is mended."""
    homeserver = PlayedHomeserver({})
    beside = Beside(homeserver).started()
    homeserver.rooms = {ROOM: {ALICE, BOB}, OTHER: {ALICE}}

    tell(beside, message(BOB))
    beside.settle()

    assert beside.members(ROOM) == {ALICE, BOB}
    assert beside.members(OTHER) == {ALICE}


def test_a_room_where_nobody_of_ours_is_is_not_asked_for_at_each_event() -> None:
    """Our bot alone may be there."""
    homeserver = PlayedHomeserver({ROOM: {BOB, BOT}})
    beside = Beside(homeserver).started()
    tell(beside, message(BOB))
    beside.settle()
    homeserver.asked.clear()

    tell(beside, message(BOB), txn_id="2")
    beside.settle()

    assert homeserver.asked == []
    assert beside.members(ROOM) == set()


def test_once_known_a_room_follows_the_stream_alone() -> None:
    """Each further join is one row, and no question."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, CAROL}})
    beside = Beside(homeserver).started()
    homeserver.asked.clear()

    tell(beside, member(BOB, "join"), member(CAROL, "leave"), member(ALICE, "join"))
    beside.settle()

    assert beside.members(ROOM) == {ALICE, BOB}
    assert homeserver.asked == []


def test_a_homeserver_that_is_away_is_asked_again_until_it_is_back() -> None:
    """Nothing of it stops the daemon, and nothing is lost."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE}})
    homeserver.errors = [HomeserverUnavailable("away") for _ in range(8)]

    beside = Beside(homeserver).started()
    waiting = beside.scan.progress().state
    tried = len(homeserver.asked)
    beside.settle(300)

    assert waiting == "waiting"
    assert tried <= 2
    assert beside.members(ROOM) == {ALICE}


def test_one_answer_that_always_fails_holds_up_nothing_else() -> None:
    """A homeserver with a broken room has others."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE}, OTHER: {ALICE, CAROL}})
    beside = Beside(homeserver)
    ask = homeserver._ask

    async def broken(question: str) -> None:
        await ask(question)
        if question == f"members of {OTHER}":
            raise HomeserverRefused(500, "M_UNKNOWN")

    homeserver._ask = broken  # type: ignore[method-assign]  # a homeserver with a bug
    beside.started()
    beside.settle(5)

    assert beside.members(ROOM) == {ALICE}
    assert homeserver.asked.count(f"members of {OTHER}") == 3
    assert ScanRow(ScanKind.ROOM, OTHER) in result_of(beside.store.load_scan())


def test_questions_are_paced_and_few_are_open_at_once() -> None:
    """The homeserver has users to serve."""
    rooms = {RoomID(f"!{number}:here.test"): {BOT, ALICE} for number in range(30)}
    homeserver = PlayedHomeserver(rooms)
    homeserver.holds = True
    beside = Beside(homeserver)
    beside.scan._interval_s = 0.1
    beside.started()

    assert len(homeserver.asked) <= 11
    beside.settle(5)
    assert len(homeserver.held) == 4


def test_a_user_who_is_met_elsewhere_is_asked_for() -> None:
    """A client with a token may be the first that is heard of its user."""
    homeserver = PlayedHomeserver({})
    beside = Beside(homeserver).started()
    homeserver.rooms = {ROOM: {ALICE, BOB}}

    result_of(beside.scan.meet(ALICE))
    beside.settle()

    assert beside.members(ROOM) == {ALICE, BOB}


def test_asked_to_begin_again_it_mends_what_was_lost() -> None:
    """After a backup was restored the stream has gone on without us."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}})
    beside = Beside(homeserver).started()
    homeserver.rooms[ROOM] = {BOT, ALICE, CAROL}

    as_deferred(beside.scan.begin_again())
    beside.settle()

    assert beside.members(ROOM) == {ALICE, CAROL}


@pytest.mark.parametrize("writes", range(12))
def test_a_crash_between_any_two_writes_loses_nothing(writes: int) -> None:
    """What is still to be asked is on disk before anything rests on it."""
    homeserver = PlayedHomeserver({ROOM: {BOT, ALICE, BOB}, OTHER: {ALICE, CAROL}})
    store = EndingStore(writes)
    first = Beside(homeserver, store)
    first.scan.start()
    for _ in range(100):
        first.clock.advance(0.01)

    second = Beside(homeserver, store.reopened()).started()

    assert second.members(ROOM) == {ALICE, BOB}
    assert second.members(OTHER) == {ALICE, CAROL}


def test_members_are_read_again_daily() -> None:
    """Z-11: a ban that the homeserver came by otherwise than by an event is seen all the same."""
    homeserver = PlayedHomeserver({ROOM: {ALICE, BOB, BOT}})
    beside = Beside(homeserver).started()
    tell(beside, member(ALICE, "join"))
    beside.settle()
    assert beside.members(ROOM) == {ALICE, BOB}
    homeserver.rooms[ROOM] = {ALICE, BOT}
    homeserver.asked.clear()

    beside.clock.advance(READ_AGAIN_S / 2)
    beside.settle()
    before = list(homeserver.asked)
    beside.clock.advance(READ_AGAIN_S / 2)
    beside.settle()

    assert (before, beside.members(ROOM)) == ([], {ALICE})
    assert homeserver.asked == [f"members of {ROOM}", f"rule of {ROOM}"]
    result_of(beside.scan.stop())
