import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.outage import held_bytes
from fedpresence.engine.effects import (
    SendDropOnce,
    SendEdu,
    SendPoll,
    SendUnpoll,
    UnsendEdus,
    Urgency,
)
from fedpresence.engine.outgoing import Wanted
from fedpresence.engine.presence import PresenceState, Published
from fedpresence.engine.subscription import EduKind, OwedEdu
from fedpresence.ids import ServerName, UserID
from fedpresence.outbound.errands import MAX_EDUS_TAKEN, MAX_ONCE, MAX_OWED
from fedpresence.outbound.queue import (
    OVERDRAWN_PATIENCE_MS,
    PATIENCE_MS,
    DestinationQueue,
    Lengths,
    News,
)

NOW_MS = 1_700_000_000_000
WINDOW_MS = 200
REFRESH_MS = 1_500_000
HERE, THERE = ServerName("here.test"), ServerName("there.test")
ALICE, CAROL = UserID("@alice:here.test"), UserID("@carol:here.test")
BOB = UserID("@bob:there.test")
ONLINE = Published(PresenceState.ONLINE, NOW_MS, None, True)
OFFLINE = Published(PresenceState.OFFLINE, NOW_MS)


def a_queue(destination: ServerName = THERE, origin: ServerName = HERE) -> DestinationQueue:
    return DestinationQueue(destination, Lengths(origin, WINDOW_MS, REFRESH_MS))


def push(
    queue: DestinationQueue, now_ms: int, user: UserID = ALICE, urgency: Urgency = Urgency.CHANGE
) -> None:
    queue.add_push(user, News(urgency, now_ms + PATIENCE_MS[urgency]))


def edu(kind: EduKind = EduKind.INVITE, generation: int = 1, observer: UserID = ALICE) -> OwedEdu:
    return OwedEdu(kind, observer, BOB, generation, NOW_MS)


def deliver(queue: DestinationQueue, now_ms: int, content: Published = ONLINE) -> Wanted:
    """All that waits goes out and is taken."""
    wanted = queue.take(now_ms, 500)
    queue.delivered(wanted.users, wanted.owed, dict.fromkeys(wanted.users, content), now_ms)
    return wanted


def test_the_first_news_for_a_quiet_destination_is_due_at_once() -> None:
    """Somebody is looking at the other end (decision 12)."""
    queue = a_queue()
    assert queue.next_due_ms() is None
    push(queue, NOW_MS)
    assert (queue.next_due_ms() or 0) <= NOW_MS


def test_what_follows_waits_for_the_window() -> None:
    """A burst of changes is two transactions, not twenty (decision 12)."""
    queue = a_queue()
    push(queue, NOW_MS)
    deliver(queue, NOW_MS)

    push(queue, NOW_MS + 10)

    assert queue.next_due_ms() == NOW_MS + WINDOW_MS


def test_a_timer_waits_two_seconds_where_the_destination_is_busy() -> None:
    """Nobody waits for somebody to go idle (decision 12)."""
    queue = a_queue()
    push(queue, NOW_MS)
    deliver(queue, NOW_MS)

    push(queue, NOW_MS + 10, CAROL, Urgency.TIMER)

    assert queue.next_due_ms() == NOW_MS + 2_000
    push(queue, NOW_MS + 20, ALICE)
    assert queue.next_due_ms() == NOW_MS + WINDOW_MS
    assert set(queue.take(NOW_MS + WINDOW_MS, 500).users) == {ALICE, CAROL}


def test_a_timer_goes_at_once_where_the_destination_is_quiet() -> None:
    """Waiting would batch it with nothing (decision 12)."""
    queue = a_queue()
    push(queue, NOW_MS)
    deliver(queue, NOW_MS)
    push(queue, NOW_MS + 5_000, ALICE, Urgency.TIMER)
    assert (queue.next_due_ms() or 0) <= NOW_MS + 5_000


def test_a_user_stands_in_the_set_once_with_the_most_urgent_of_their_news() -> None:
    """Bounded by users, not by events (decision 9)."""
    queue = a_queue()
    for _ in range(100):
        push(queue, NOW_MS, ALICE, Urgency.TIMER)
    push(queue, NOW_MS, ALICE, Urgency.ASKED)

    assert queue.pending_users == 1
    assert queue.take(NOW_MS, 500).users == (ALICE,)


def test_news_that_came_while_the_transaction_was_away_is_not_lost() -> None:
    """The 200 is for what was in it, and for nothing newer (decision 9)."""
    queue = a_queue()
    push(queue, NOW_MS)
    wanted = queue.take(NOW_MS, 500)
    push(queue, NOW_MS + 5)

    queue.delivered(wanted.users, (), {ALICE: ONLINE}, NOW_MS + 10)

    assert queue.pending_users == 1
    assert queue.take(NOW_MS + WINDOW_MS, 500).users == (ALICE,)


@pytest.mark.parametrize("again", [False, True])
def test_what_came_while_a_question_was_answered_is_no_question(again: bool) -> None:
    """It would go before all who are late, in the share of those who wait for an answer (Z-18)."""
    queue = a_queue()
    push(queue, NOW_MS, urgency=Urgency.ASKED)
    wanted = queue.take(NOW_MS, 500)
    push(queue, NOW_MS + 5)
    if again:
        push(queue, NOW_MS + 6, urgency=Urgency.TIMER)

    queue.delivered(wanted.users, (), {ALICE: ONLINE}, NOW_MS + 10)

    assert queue.deadline_ms(NOW_MS + 10) == NOW_MS + 5 + PATIENCE_MS[Urgency.CHANGE]
    assert queue.take(NOW_MS + WINDOW_MS, 500).users == (ALICE,)
    assert queue.unchanged({ALICE: ONLINE}, NOW_MS + WINDOW_MS) == {ALICE}


def test_what_came_while_a_change_was_told_has_as_much_time_as_it_would_have_alone() -> None:
    """Who goes idle as the news that they came online leaves: nobody waits for that."""
    queue = a_queue()
    push(queue, NOW_MS)
    wanted = queue.take(NOW_MS, 500)
    push(queue, NOW_MS + 5, urgency=Urgency.TIMER)

    queue.delivered(wanted.users, (), {ALICE: ONLINE}, NOW_MS + 10)

    assert queue.next_due_ms() == NOW_MS + 2_000
    push(queue, NOW_MS + 20, CAROL)
    assert queue.next_due_ms() == NOW_MS + WINDOW_MS
    deliver(queue, NOW_MS + WINDOW_MS)
    assert queue.news_due_ms() is None


@pytest.mark.parametrize("retaken", [False, True])
def test_a_question_that_was_not_answered_stays_one_whatever_came_meanwhile(retaken: bool) -> None:
    """Somebody waits still. What came before a try is told by it, what came after it is not."""
    queue = a_queue()
    push(queue, NOW_MS, urgency=Urgency.ASKED)
    queue.take(NOW_MS, 500)
    push(queue, NOW_MS + 5)
    queue.failed([ALICE])
    assert queue.deadline_ms(NOW_MS + 10) == NOW_MS + PATIENCE_MS[Urgency.ASKED]

    if retaken:
        queue.take(NOW_MS + 2_000, 500)
    queue.delivered([ALICE], (), {ALICE: ONLINE}, NOW_MS + 2_000)

    assert queue.pending_users == (0 if retaken else 1)


def test_what_was_not_packed_waits_on() -> None:
    """A transaction has limits; who did not fit goes with the next."""
    queue = a_queue()
    push(queue, NOW_MS, ALICE)
    push(queue, NOW_MS, CAROL)
    queue.take(NOW_MS, 500)

    queue.delivered([ALICE], (), {ALICE: ONLINE, CAROL: ONLINE}, NOW_MS)

    assert queue.take(NOW_MS + WINDOW_MS, 500).users == (CAROL,)


def test_a_failure_keeps_everything() -> None:
    """An outage costs nothing, and its end sends each user once (decision 9)."""
    queue = a_queue()
    push(queue, NOW_MS)
    queue.add(SendEdu(THERE, edu()), NOW_MS)
    wanted = queue.take(NOW_MS, 500)

    queue.failed(wanted.users)

    again = queue.take(NOW_MS + WINDOW_MS, 500)
    assert (again.users, again.owed) == (wanted.users, wanted.owed)


def test_the_most_urgent_and_longest_waiting_go_first() -> None:
    """With more users than a transaction takes, a refresh must not crowd out a change (decision 12)."""
    queue = a_queue()
    push(queue, NOW_MS, UserID("@timer:here.test"), Urgency.TIMER)
    push(queue, NOW_MS + 50, UserID("@late:here.test"))
    push(queue, NOW_MS + 10, UserID("@early:here.test"))
    push(queue, NOW_MS + 60, UserID("@asked:here.test"), Urgency.ASKED)

    users = queue.take(NOW_MS + 60, 3).users

    assert users == (UserID("@asked:here.test"), UserID("@early:here.test"), UserID("@late:here.test"))


def test_news_of_a_user_who_spent_their_share_goes_last() -> None:
    """One flapping user must not spend everybody's budget (Z-18)."""
    queue = a_queue()
    queue.add_push(ALICE, News(Urgency.CHANGE, NOW_MS + OVERDRAWN_PATIENCE_MS))
    overdrawn_ms = queue.deadline_ms(NOW_MS)
    push(queue, NOW_MS + 100, CAROL)

    assert queue.take(NOW_MS + 100, 1).users == (CAROL,)
    assert overdrawn_ms == NOW_MS + 60_000


def test_changes_that_cancel_out_are_not_told() -> None:
    """Mobile clients flap (decision 13)."""
    queue = a_queue()
    push(queue, NOW_MS)
    deliver(queue, NOW_MS)
    push(queue, NOW_MS + 50)
    queue.take(NOW_MS + WINDOW_MS, 500)

    moved = Published(PresenceState.ONLINE, NOW_MS + 60_000_000, None, True)
    assert queue.unchanged({ALICE: ONLINE}, NOW_MS + WINDOW_MS) == {ALICE}
    assert queue.unchanged({ALICE: moved}, NOW_MS + WINDOW_MS) == {ALICE}
    assert queue.unchanged({ALICE: OFFLINE}, NOW_MS + WINDOW_MS) == frozenset()
    queue.settled([ALICE], NOW_MS + WINDOW_MS)
    assert queue.pending_users == 0


def test_a_last_active_time_that_moved_is_news_unless_currently_active() -> None:
    """An hour of difference shows on the other side; a currently active user's age does not."""
    queue = a_queue()
    content = Published(PresenceState.UNAVAILABLE, NOW_MS)
    push(queue, NOW_MS)
    deliver(queue, NOW_MS, content)
    push(queue, NOW_MS + 50)
    queue.take(NOW_MS + WINDOW_MS, 500)

    little = Published(PresenceState.UNAVAILABLE, NOW_MS + 60_000)
    much = Published(PresenceState.UNAVAILABLE, NOW_MS + 60_001)
    assert queue.unchanged({ALICE: little}, NOW_MS + WINDOW_MS) == {ALICE}
    assert queue.unchanged({ALICE: much}, NOW_MS + WINDOW_MS) == frozenset()


def test_what_was_asked_for_is_told_even_unchanged() -> None:
    """A poll or a grant is owed an answer where nothing changed (decision 12)."""
    queue = a_queue()
    push(queue, NOW_MS)
    deliver(queue, NOW_MS)
    push(queue, NOW_MS + 50, ALICE, Urgency.ASKED)
    queue.take(NOW_MS + WINDOW_MS, 500)

    assert queue.unchanged({ALICE: ONLINE}, NOW_MS + WINDOW_MS) == frozenset()


def test_after_a_doubtful_failure_nothing_counts_as_confirmed() -> None:
    """The lost transaction may have said offline: going back to online is then no "nothing changed"."""
    queue = a_queue()
    push(queue, NOW_MS)
    deliver(queue, NOW_MS)
    push(queue, NOW_MS + 300)
    queue.failed(queue.take(NOW_MS + 300, 500).users)
    queue.take(NOW_MS + 3_000, 500)

    assert queue.unchanged({ALICE: ONLINE}, NOW_MS + 3_000) == frozenset()


def test_edus_of_a_pair_go_in_order_one_a_transaction() -> None:
    """Receivers run the EDUs of one transaction concurrently (decision 10)."""
    queue = a_queue()
    drop, invite = edu(EduKind.DROP, 1), edu(EduKind.INVITE, 2)
    other = edu(EduKind.INVITE, 1, CAROL)
    for owed in (drop, invite, other):
        queue.add(SendEdu(THERE, owed), NOW_MS)

    assert deliver(queue, NOW_MS).owed == (drop, other)
    assert queue.next_due_ms() == NOW_MS + WINDOW_MS
    assert deliver(queue, NOW_MS + WINDOW_MS).owed == (invite,)


def test_an_edu_that_waits_already_is_asked_for_in_vain() -> None:
    """Rows ask again by schedule; the EDU goes once (Z-17)."""
    queue = a_queue()
    queue.add(SendEdu(THERE, edu()), NOW_MS)
    queue.add(SendEdu(THERE, edu()), NOW_MS + 1)
    assert queue.owed == 1


def test_the_200_for_an_older_generation_does_not_clear_a_newer_one() -> None:
    """A drop must not be lost to an invite's 200 (Z-17)."""
    queue = a_queue()
    queue.add(SendEdu(THERE, edu(EduKind.INVITE, 1)), NOW_MS)
    wanted = queue.take(NOW_MS, 500)
    queue.add(SendEdu(THERE, edu(EduKind.INVITE, 2)), NOW_MS + 1)

    queue.delivered((), wanted.owed, {}, NOW_MS + 2)

    assert queue.take(NOW_MS + WINDOW_MS, 500).owed == (edu(EduKind.INVITE, 2),)


def test_an_unsent_edu_is_owed_no_more_and_old_bytes_are_void() -> None:
    """An invite not yet delivered and its drop cancel out (Z-15)."""
    queue = a_queue()
    queue.add(SendEdu(THERE, edu()), NOW_MS)
    before = queue.revision

    queue.add(UnsendEdus(THERE, ALICE, BOB), NOW_MS)

    assert (queue.owed, queue.next_due_ms(), queue.empty()) == (0, None, True)
    assert queue.revision != before


def test_a_refused_edu_stays_owed_and_is_offered_when_asked_for_again() -> None:
    """List EDUs stay owed, by the schedule of their row (S:3.5, S:T-29)."""
    queue = a_queue()
    queue.add(SendEdu(THERE, edu()), NOW_MS)
    wanted = queue.take(NOW_MS, 500)
    queue.set_aside((), wanted.owed, NOW_MS)
    assert (queue.owed, queue.next_due_ms()) == (1, None)

    queue.add(SendEdu(THERE, edu()), NOW_MS + 3_600_000)

    assert queue.take(NOW_MS + 3_600_000, 500).owed == (edu(),)


def test_a_refused_edu_is_offered_when_the_destination_wakes() -> None:
    """A peer that comes back from an outage may have come back mended."""
    queue = a_queue()
    queue.add(SendEdu(THERE, edu()), NOW_MS)
    queue.set_aside((), queue.take(NOW_MS, 500).owed, NOW_MS)
    queue.wake(NOW_MS + 1_000)
    assert queue.take(NOW_MS + 1_000, 500).owed == (edu(),)


def test_nothing_of_a_pair_overtakes_an_edu_of_it_that_was_refused() -> None:
    """A drop that came after the new invite would end what the invite began (decision 10)."""
    queue = a_queue()
    drop, again = edu(EduKind.DROP, generation=1), edu(EduKind.INVITE, generation=2)
    queue.add(SendEdu(THERE, drop), NOW_MS)
    queue.add(SendEdu(THERE, again), NOW_MS)
    queue.set_aside((), queue.take(NOW_MS, 500).owed, NOW_MS)
    behind = queue.next_due_ms(), queue.take(NOW_MS + 1_000, 500).owed

    queue.add(SendEdu(THERE, again), NOW_MS + 2_000)

    assert behind == (None, ())
    assert queue.take(NOW_MS + 2_000, 500).owed == (drop,)
    queue.delivered((), (drop,), {}, NOW_MS + 2_000)
    assert queue.take(NOW_MS + 3_000, 500).owed == (again,)


def test_a_refused_push_waits_for_its_refresh() -> None:
    """A peer that refuses presence is not told it again at once (F:X-6)."""
    queue = a_queue()
    push(queue, NOW_MS)
    queue.set_aside(queue.take(NOW_MS, 500).users, (), NOW_MS)

    due = queue.next_due_ms()
    assert due is not None
    assert NOW_MS + 0.6 * REFRESH_MS <= due <= NOW_MS + 0.9 * REFRESH_MS


def test_what_is_tried_once_is_gone_when_taken() -> None:
    """A poll is worth nothing later; a stranger's drop is not worth a queue (Z-12)."""
    queue = a_queue()
    queue.add(SendPoll(THERE, BOB), NOW_MS)
    queue.add(SendUnpoll(THERE, BOB), NOW_MS)
    queue.add(SendDropOnce(THERE, ALICE, BOB), NOW_MS)

    wanted = queue.take(NOW_MS, 500)

    assert (wanted.polls, wanted.unpolls, len(wanted.drops)) == ((BOB,), (BOB,), 1)
    assert queue.empty()


def test_the_queue_is_bounded() -> None:
    """What does not fit stays owed in its row, and is asked for again."""
    queue = a_queue()
    for generation in range(MAX_OWED + 10):
        queue.add(SendEdu(THERE, edu(EduKind.INVITE, generation)), NOW_MS)
    for number in range(MAX_ONCE + 1_000):
        queue.add(SendPoll(THERE, UserID(f"@{number}:there.test")), NOW_MS)

    assert queue.owed == MAX_OWED
    assert sum(len(queue.take(NOW_MS, 1).polls) for _ in range(MAX_ONCE // 50)) == MAX_ONCE


def test_at_most_a_hundred_list_edus_a_minute() -> None:
    """Resends after an outage must not fall on a destination all at once (S:3.5)."""
    queue = a_queue()
    for number in range(300):
        queue.add(SendEdu(THERE, edu(observer=UserID(f"@{number}:here.test"))), NOW_MS)
    sent, now = 0, NOW_MS
    while (due := queue.next_due_ms()) is not None and max(now, due) < NOW_MS + 60_000:
        now = max(now, due)
        sent += len(deliver(queue, now).owed)

    assert 100 <= sent <= 200
    assert MAX_EDUS_TAKEN < 100


def refreshes_ms(server: str, users: int, rounds: int = 1, *, boot: bool = False) -> list[int]:
    """When a destination's unchanged users leave by themselves, after all were told at once."""
    queue = a_queue(ServerName(server))
    for number in range(users):
        user = UserID(f"@{number}:here.test")
        queue.add_at_boot(user, NOW_MS) if boot else push(queue, NOW_MS, user)
    if not boot:
        deliver(queue, NOW_MS)
    left = []
    for _ in range(rounds):
        left.append(queue.next_due_ms() or 0)
        queue.prune(left[-1], lambda user: True)
        assert len(deliver(queue, left[-1]).users) == users
    return left


def test_a_refresh_may_go_from_a_moment_of_its_own_on_and_has_time() -> None:
    """From 0.6 of the interval on, and by 0.9: early enough to fail twice (decision 14).

    A hundred users each, or else it does not show: the first of a destination takes the others along.
    """
    moments = [refreshes_ms(f"{number}.test", 100, rounds=3) for number in range(200)]

    for turn in range(3):
        before = [left[turn - 1] if turn else NOW_MS for left in moments]
        shares = [(left[turn] - b) / REFRESH_MS for left, b in zip(moments, before, strict=True)]
        assert 0.6 <= min(shares) < 0.61
        assert 0.74 < max(shares) <= 0.75
    queue = a_queue()
    push(queue, NOW_MS)
    deliver(queue, NOW_MS)
    assert queue.refresh_by_ms() == NOW_MS + 0.9 * REFRESH_MS


def test_a_refresh_rides_along_from_half_of_the_interval() -> None:
    """A transaction that goes anyway costs nothing more (decision 14)."""
    queue = a_queue()
    push(queue, NOW_MS, ALICE)
    deliver(queue, NOW_MS)

    early, half = NOW_MS + REFRESH_MS // 2 - 1, NOW_MS + REFRESH_MS // 2
    push(queue, early, CAROL)
    assert queue.take(early, 500).users == (CAROL,)
    assert queue.take(half, 500).users == (CAROL, ALICE)


def test_a_user_told_as_offline_is_not_refreshed() -> None:
    """Peers expire users to offline by themselves (E:P-6)."""
    queue = a_queue()
    push(queue, NOW_MS)
    deliver(queue, NOW_MS, OFFLINE)
    due = queue.next_due_ms()
    assert due is not None

    queue.prune(due, lambda user: True)

    assert queue.empty()


def test_a_refresh_that_nobody_needs_is_forgotten() -> None:
    """Where no right remains there is nothing to say, and nothing to remember (S:5)."""
    queue = a_queue()
    push(queue, NOW_MS)
    deliver(queue, NOW_MS)
    due = queue.next_due_ms() or 0
    queue.prune(due, lambda user: False)
    assert queue.empty()


def test_a_try_asks_for_no_more_users_than_it_must() -> None:
    """A destination that is away for a week is tried two thousand times a day, with everybody overdue."""
    queue = a_queue()
    for number in range(100):
        push(queue, NOW_MS, UserID(f"@{number}:here.test"))
    deliver(queue, NOW_MS)
    asked: list[UserID] = []

    def needs_refresh(user: UserID) -> bool:
        asked.append(user)
        return user.startswith("@9")

    queue.prune(NOW_MS + REFRESH_MS, needs_refresh)
    assert len(asked) == 10
    queue.prune(NOW_MS + REFRESH_MS, needs_refresh)
    assert len(asked) == 11


def test_a_refresh_that_failed_is_due_still() -> None:
    """It is early enough to fail twice (decision 14)."""
    queue = a_queue()
    push(queue, NOW_MS)
    deliver(queue, NOW_MS)
    due = queue.next_due_ms() or 0
    queue.prune(due, lambda user: True)
    assert queue.take(due, 500).users == (ALICE,)
    queue.failed([ALICE])
    assert (queue.next_due_ms() or 0) <= due + WINDOW_MS
    assert deliver(queue, due + WINDOW_MS).users == (ALICE,)
    assert (queue.next_due_ms() or 0) > due + 0.59 * REFRESH_MS


def test_after_a_restart_users_are_told_again_within_the_first_fifth() -> None:
    """Peers forget nobody because we restarted (S:T-28)."""
    queue = a_queue()
    queue.add_at_boot(ALICE, NOW_MS)

    assert (queue.refresh_due_ms() or 0) <= NOW_MS + 0.05 * REFRESH_MS
    assert queue.refresh_by_ms() == NOW_MS + 0.2 * REFRESH_MS


def test_whoever_is_to_be_told_again_goes_with_those_who_wait_longest() -> None:
    """Rooms are read again one after the other: that must not put off the first, nor send each by itself."""
    queue = a_queue()
    push(queue, NOW_MS, CAROL)
    deliver(queue, NOW_MS)
    for number, user in enumerate(USERS):
        queue.add_again(user, NOW_MS + number * 10_000)

    assert queue.news_due_ms() is None
    assert queue.refresh_by_ms() == NOW_MS + 0.2 * REFRESH_MS
    assert set(queue.take(NOW_MS + 50_000, 500).users) == set(USERS)


def test_who_is_told_again_may_be_known_already() -> None:
    """What the destination confirmed a moment ago is not said once more."""
    queue = a_queue()
    push(queue, NOW_MS)
    deliver(queue, NOW_MS)

    queue.add_again(ALICE, NOW_MS + 1_000)

    assert queue.take(NOW_MS + 2_000, 500).users == ()


def test_who_is_to_be_told_again_rides_along_with_news() -> None:
    """Whatever goes first takes them along."""
    queue = a_queue()
    queue.add_again(ALICE, NOW_MS)
    push(queue, NOW_MS + 1, CAROL)

    assert set(deliver(queue, NOW_MS + 1).users) == {ALICE, CAROL}


def test_a_refresh_alone_is_no_news() -> None:
    """News leaves by its urgency, a refresh when it is its turn: one must not be taken for the other."""
    queue = a_queue()
    push(queue, NOW_MS)
    deliver(queue, NOW_MS)
    later = NOW_MS + REFRESH_MS

    assert queue.news_due_ms() is None
    assert (queue.next_due_ms() or 0) <= later

    push(queue, later, CAROL, Urgency.TIMER)
    assert (queue.news_due_ms() or 0) <= later


def test_servers_of_the_same_kind_do_not_meet_at_a_destination() -> None:
    """When a large server is back, all of us tell it; the next time not all at once."""
    dues = []
    for number in range(100):
        queue = a_queue(origin=ServerName(f"{number}.test"))
        push(queue, NOW_MS)
        deliver(queue, NOW_MS)
        dues.append(queue.next_due_ms() or 0)
    assert max(sum(abs(one - other) < 30_000 for one in dues) for other in dues) < 35


def test_a_backlog_leaves_without_waiting_for_the_window_until_its_last_part() -> None:
    """Waiting would fill no transaction that is full already; ten thousand users would take long."""
    queue = a_queue()
    for number in range(25):
        push(queue, NOW_MS, UserID(f"@{number}:here.test"))
    sizes: list[int] = []
    while queue.pending_users:
        assert (queue.next_due_ms() or 0) <= NOW_MS or len(sizes) == 2
        wanted = queue.take(NOW_MS, 10)
        sizes.append(len(wanted.users))
        queue.delivered(wanted.users, (), dict.fromkeys(wanted.users, ONLINE), NOW_MS)

    assert sizes == [10, 10, 5]


def test_what_waited_for_a_destination_that_was_away_does_not_go_before_fresh_news() -> None:
    """A thousand servers back at once would hold up what people do now (decision 12)."""
    queue = a_queue()
    push(queue, NOW_MS, ALICE)
    queue.wake(NOW_MS + REFRESH_MS)
    assert queue.deadline_ms(NOW_MS + REFRESH_MS) == NOW_MS + REFRESH_MS + 60_000

    push(queue, NOW_MS + REFRESH_MS, CAROL)
    assert queue.deadline_ms(NOW_MS + REFRESH_MS) == NOW_MS + REFRESH_MS + 200


def test_after_a_restart_all_ride_along_with_the_first() -> None:
    """One transaction tells a destination everything."""
    queue = a_queue()
    queue.add_at_boot(ALICE, NOW_MS)
    push(queue, NOW_MS, CAROL)
    assert set(queue.take(NOW_MS, 500).users) == {ALICE, CAROL}


def test_a_crowd_that_has_left_leaves_no_room_behind() -> None:
    """After a week's outage of many destinations a server must be as large as before it (issue 4)."""
    queue = a_queue()
    names = [UserID(f"@{number}:here.test") for number in range(2_000)]
    for user in names:
        push(queue, NOW_MS, user)
    deliver_all(queue)
    told = held_bytes([queue])

    for again in range(3):
        for user in names:
            push(queue, NOW_MS + again, user)
        waiting = held_bytes([queue])
        deliver_all(queue)

    assert waiting < told + 300 * len(names)
    assert held_bytes([queue]) < told + 10 * len(names)


def deliver_all(queue: DestinationQueue) -> None:
    while queue.pending_users:
        deliver(queue, NOW_MS)


def test_who_lost_the_right_leaves_the_queue_with_all_memory() -> None:
    """Safety: nothing is sent to whom a right has ended, by a refresh either (S:5)."""
    queue = a_queue()
    push(queue, NOW_MS)
    deliver(queue, NOW_MS)
    push(queue, NOW_MS + 1)
    queue.take(NOW_MS + WINDOW_MS, 500)

    queue.withdraw([ALICE], (), NOW_MS + WINDOW_MS)

    assert queue.empty()


USERS = [UserID(f"@{name}:here.test") for name in "abcd"]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "deliver", "meanwhile", "fail", "refuse", "prune"]),
        st.sampled_from(USERS),
        st.sampled_from([urgency for urgency in Urgency if urgency is not Urgency.AGAIN]),
        st.integers(0, REFRESH_MS),
    ),
    max_size=60,
)


@given(STEPS)
def test_no_news_is_ever_lost_and_what_is_due_can_be_taken(
    steps: list[tuple[str, UserID, Urgency, int]],
) -> None:
    """Whatever happens: news waits until delivered, and a due queue has something to take."""
    queue, now, news = a_queue(), NOW_MS, set[UserID]()
    for step, user, urgency, wait in steps:
        now += wait
        if step == "add":
            push(queue, now, user, urgency)
            news.add(user)
            continue
        if step == "prune":
            queue.prune(now, lambda _: False)
        due = queue.next_due_ms()
        wanted = queue.take(now, 500)
        assert news <= set(wanted.users)
        if due is not None and due <= now:
            assert wanted.users
        if step == "meanwhile":
            push(queue, now, user, urgency)
        if step in ("deliver", "meanwhile"):
            queue.delivered(wanted.users, (), dict.fromkeys(wanted.users, ONLINE), now)
            news = {user} if step == "meanwhile" else set()
        elif step == "refuse":
            queue.set_aside(wanted.users, (), now)
            news.clear()
        else:
            queue.failed(wanted.users)
    assert queue.pending_users == len(news)
    deliver(queue, now)
    assert queue.news_due_ms() is None


def test_a_question_that_came_meanwhile_is_as_urgent_as_before() -> None:
    """Somebody waits for the answer, whatever lands in between; in bulk it has time all the same."""
    for overdrawn in (False, True):
        queue = a_queue()
        push(queue, NOW_MS)
        wanted = queue.take(NOW_MS, 10)
        queue.add(SendPoll(THERE, BOB), NOW_MS, overdrawn=overdrawn)

        queue.delivered(wanted.users, (), {}, NOW_MS + 50)

        patience_ms = OVERDRAWN_PATIENCE_MS if overdrawn else PATIENCE_MS[Urgency.ASKED]
        assert queue.deadline_ms(NOW_MS + 50) == NOW_MS + patience_ms
