import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.outage import held_bytes
from fedpresence.engine.effects import SendEdu, Urgency
from fedpresence.engine.presence import PresenceState, Published
from fedpresence.ids import UserID
from fedpresence.outbound.queue import OVERDRAWN_PATIENCE_MS, PATIENCE_MS, DestinationQueue, News
from fedpresence.testing.builders import ALICE, CAROL, NOW_MS, THERE
from tests.outbound.queues import OFFLINE, ONLINE, REFRESH_MS, USERS, WINDOW_MS, a_queue, deliver, edu, push


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
