from fedpresence.engine.effects import SendDropOnce, SendEdu, SendPoll, SendUnpoll, UnsendEdus, Urgency
from fedpresence.engine.subscription import EduKind
from fedpresence.ids import UserID
from fedpresence.outbound.errands import MAX_EDUS_TAKEN, MAX_ONCE, MAX_OWED
from fedpresence.outbound.queue import OVERDRAWN_PATIENCE_MS, PATIENCE_MS
from fedpresence.testing.builders import ALICE, BOB, CAROL, NOW_MS, THERE
from tests.outbound.queues import WINDOW_MS, a_queue, deliver, edu, push


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
