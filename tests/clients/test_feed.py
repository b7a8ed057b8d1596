import time
from typing import Any

import pytest
from twisted.internet.task import Clock

from fedpresence.clients.feed import (
    GIVEN_UP_AFTER_MS,
    MAX_ASKING_PER_USER,
    MAX_RESTING,
    NEWS_BURST,
    Feed,
)
from fedpresence.clients.mailbox import MAX_NOTICES, parse_token
from fedpresence.engine.effects import Notice, TellObservers
from fedpresence.engine.subscription import EduKind
from fedpresence.ids import UserID
from tests.clients.world import ALICE, BOB, CAROL, DAN


def a_feed() -> tuple[Feed, Clock]:
    """A feed and its clock."""
    clock = Clock()
    clock.advance(1_700_000_000)
    return Feed(clock, "run1"), clock


def a_notice(user_id: UserID = ALICE, observer: UserID = DAN) -> Notice:
    """An invite for `user_id`."""
    return Notice(user_id, EduKind.INVITE, observer=observer, observed=user_id)


def tell(feed: Feed, *observers: UserID, gone: bool = False) -> None:
    """News of Bob."""
    feed.tell(TellObservers(BOB, observers, gone))


def test_a_flapping_user_wakes_clients_at_a_bounded_rate_and_the_last_word_comes() -> None:
    """Z-18: one remote user must not spend the batteries of all ours."""
    feed, clock = a_feed()
    box = feed.mailbox(ALICE)

    for _ in range(1000):
        tell(feed, ALICE)
    at_once = box.number
    clock.pump([0.1] * 10)
    after_a_second = box.number

    assert at_once == NEWS_BURST
    assert after_a_second == NEWS_BURST + 1  # all that was held, as one
    assert clock.getDelayedCalls() == []


def test_news_held_back_keeps_every_observer() -> None:
    """Z-18: coalescing is over time, not over people."""
    feed, clock = a_feed()
    alice, carol = feed.mailbox(ALICE), feed.mailbox(CAROL)
    for _ in range(NEWS_BURST):
        tell(feed, ALICE)

    tell(feed, ALICE)
    tell(feed, CAROL)
    clock.advance(0.3)

    assert [entry[0] for entry in alice.news_after(NEWS_BURST)] == [BOB]
    assert [entry[0] for entry in carol.news_after(0)] == [BOB]


def test_that_somebody_may_be_seen_no_more_is_never_held_back() -> None:
    """Z-18 must not delay a revocation, nor undo it with what was held."""
    feed, clock = a_feed()
    box = feed.mailbox(ALICE)
    for _ in range(NEWS_BURST + 1):
        tell(feed, ALICE)

    tell(feed, ALICE, gone=True)
    at_once = box.news_after(NEWS_BURST)
    clock.advance(1)

    assert at_once == [(BOB, NEWS_BURST + 1, True)]
    assert box.news_after(NEWS_BURST) == at_once


def test_news_for_somebody_without_a_mailbox_costs_nothing() -> None:
    """Whoever has not synced gets a snapshot anyway."""
    feed, _ = a_feed()

    tell(feed, ALICE)

    assert feed.mailbox(ALICE).number == 0


def test_a_mailbox_unused_for_an_hour_is_given_up() -> None:
    """Memory follows who is there; the old token then gets the full snapshot."""
    feed, clock = a_feed()
    box = feed.mailbox(ALICE)
    token = parse_token(box.token(0))

    clock.advance(GIVEN_UP_AFTER_MS / 1000 + 1)
    feed.mailbox(CAROL)

    assert feed.mailbox(ALICE) is not box
    assert feed.mailbox(ALICE).position(token) is None


def test_a_mailbox_in_use_is_kept() -> None:
    """An hour counts from the last sync, not from the first."""
    feed, clock = a_feed()
    box = feed.mailbox(ALICE)

    for _ in range(5):
        clock.advance(GIVEN_UP_AFTER_MS / 2000)
        feed.mailbox(CAROL)
        feed.mailbox(ALICE)

    assert feed.mailbox(ALICE) is box


def test_unread_notices_outlive_the_mailbox() -> None:
    """S:8: they wait for the next client, however long that takes in this run."""
    feed, clock = a_feed()
    feed.mailbox(ALICE)
    feed.notice(a_notice())
    clock.advance(GIVEN_UP_AFTER_MS / 1000 + 1)
    feed.mailbox(CAROL)

    assert feed.mailbox(ALICE).unread() == [a_notice()]


def test_a_notice_that_was_acknowledged_does_not_come_again_however_late_the_client_is() -> None:
    """Its token is too old for presence, but it still says what the client has been told."""
    feed, clock = a_feed()
    feed.mailbox(ALICE)
    feed.notice(a_notice())
    seen = parse_token(feed.mailbox(ALICE).token(1))
    clock.advance(GIVEN_UP_AFTER_MS / 1000 + 1)
    feed.mailbox(CAROL)
    feed.notice(a_notice(observer=UserID("@later:there.test")))

    box = feed.mailbox(ALICE)

    assert box.position(seen) is None
    assert [notice.observer for notice in box.unread()] == ["@later:there.test"]


def test_notices_are_bounded_per_user_and_in_users() -> None:
    """Nobody fills our memory with invites for users who never sync."""
    feed, _ = a_feed()
    for n in range(MAX_NOTICES + 5):
        feed.notice(a_notice(observer=UserID(f"@u{n}:there.test")))
    newest = feed.mailbox(ALICE).unread()[-1].observer
    count = len(feed.mailbox(ALICE).unread())
    feed.notice(a_notice(CAROL))
    for n in range(MAX_RESTING):
        feed.notice(a_notice(UserID(f"@u{n}:here.test")))

    assert (count, newest) == (MAX_NOTICES, UserID(f"@u{MAX_NOTICES + 4}:there.test"))
    assert feed.mailbox(CAROL).unread() == []


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_wait_leaves_nothing_behind(cancelled: bool) -> None:
    """Timers and waiters are as many as there are waiting clients."""
    feed, clock = a_feed()
    box = feed.mailbox(ALICE)
    woken: list[object] = []
    waiting = feed.wait(box, 0, lambda _: True, 10.0)
    waiting.addBoth(woken.append)

    if cancelled:
        waiting.cancel()
    else:
        clock.advance(11)
    tell(feed, ALICE)

    assert len(woken) == 1
    assert clock.getDelayedCalls() == []


class CheapClock(Clock):
    """Its timers cost the same however many there are, as the reactor's nearly do."""

    def callLater(self, delay: float, callable: Any, *args: object, **kw: object) -> Any:
        """As IReactorTime, of a moment that never comes."""
        return Clock().callLater(delay, callable, *args, **kw)


def test_news_costs_each_of_thousands_of_waiting_syncs_the_same() -> None:
    """As many may wait for one user as there are connections: by the square, each news took seconds."""
    feed = Feed(CheapClock(), "run1")
    box = feed.mailbox(ALICE)
    waiting = [feed.wait(box, 0, admits, 10.0) for admits in (lambda _: False, lambda _: True) * 20_000]

    began_s = time.process_time()
    tell(feed, ALICE)
    took_s = time.process_time() - began_s

    assert [each.called for each in waiting] == [False, True] * 20_000
    assert took_s < 3  # of the processor: a seventieth of it, or more than it by the square


def test_no_more_than_so_many_wait_for_one_origin() -> None:
    """Decision 7 must not let a client pile up waiting GETs."""
    feed, clock = a_feed()
    answered: list[None] = []

    for _ in range(MAX_ASKING_PER_USER + 1):
        feed.ask(BOB, 1.0).addCallback(answered.append)
    at_once = len(answered)
    clock.advance(1.1)

    assert (at_once, len(answered)) == (1, MAX_ASKING_PER_USER + 1)
    assert clock.getDelayedCalls() == []
