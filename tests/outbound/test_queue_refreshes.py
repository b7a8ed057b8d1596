from fedpresence.engine.effects import Urgency
from fedpresence.ids import ServerName, UserID
from fedpresence.testing.builders import ALICE, CAROL, NOW_MS
from tests.outbound.queues import OFFLINE, REFRESH_MS, USERS, WINDOW_MS, a_queue, deliver, push


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


def test_a_refused_push_waits_for_its_refresh() -> None:
    """A peer that refuses presence is not told it again at once (F:X-6)."""
    queue = a_queue()
    push(queue, NOW_MS)
    queue.set_aside(queue.take(NOW_MS, 500).users, (), NOW_MS)

    due = queue.next_due_ms()
    assert due is not None
    assert NOW_MS + 0.6 * REFRESH_MS <= due <= NOW_MS + 0.9 * REFRESH_MS


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


def test_after_a_restart_all_ride_along_with_the_first() -> None:
    """One transaction tells a destination everything."""
    queue = a_queue()
    queue.add_at_boot(ALICE, NOW_MS)
    push(queue, NOW_MS, CAROL)
    assert set(queue.take(NOW_MS, 500).users) == {ALICE, CAROL}
