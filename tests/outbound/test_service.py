import re
from collections.abc import Mapping

import pytest

from fedpresence.engine.effects import SendPoll, SendPush, UnsendEdus, Urgency
from fedpresence.engine.presence import PresenceState
from fedpresence.ids import ServerName, UserID
from fedpresence.outbound.sender import OUTAGE_KEPT_MS
from fedpresence.outbound.service import MAX_CAME, SWEEP_INTERVAL_S
from tests.outbound.sending import (
    ALICE,
    BOB,
    CAROL,
    START_MS,
    THERE,
    Outcome,
    Rig,
    refusal,
    silence,
    unreachable,
)


def test_nothing_happens_before_the_start() -> None:
    """Constructors open nothing: a service tree is inert until started."""
    rig = Rig()
    rig.push()
    rig.wait(60)
    assert (rig.server.opened, rig.clock.getDelayedCalls()) == ([], [])

    rig.start()
    rig.wait()

    assert rig.server.pushed() == [[ALICE]]


def test_all_destinations_share_one_budget() -> None:
    """An operator says in one number what presence may cost (decision 12)."""
    rig = Rig(max_transactions_per_second=10).start()
    for number in range(40):
        rig.push(destination=ServerName(f"{number}.test"))
    rig.wait()
    assert len(rig.server.sent) == 10

    rig.wait(1)
    assert 15 <= len(rig.server.sent) <= 20  # in groups of five
    rig.wait(3)
    assert len(rig.server.sent) == 40


@pytest.mark.parametrize("is_push", [True, False])
def test_who_waits_for_an_answer_does_not_wait_as_long_as_a_crowd_that_has_time(is_push: bool) -> None:
    """A group of those with time gathers for half a second: a person would feel that."""
    rig = Rig().start()
    for number in range(500):
        rig.push(urgency=Urgency.TIMER, destination=ServerName(f"{number}.test"))
    rig.wait(2.051)  # a group has just gone
    sent = len(rig.server.opened)

    quiet = ServerName("quiet.test")
    if is_push:
        rig.push(CAROL, Urgency.ASKED, quiet)
    else:
        rig.outbound.enqueue(SendPoll(quiet, UserID("@dan:quiet.test")))
    asked_ms = round(rig.clock.seconds() * 1000)
    rig.wait(1)

    (at_ms,) = [at_ms for name, at_ms in rig.server.opened[sent:] if name == quiet]
    assert at_ms - asked_ms <= 100


def test_after_a_restart_everybody_is_told_again_spread_over_the_first_minutes() -> None:
    """Peers would forget our users half an hour after a restart (S:T-28)."""
    rig = Rig()
    rig.boot_users = [(ServerName(f"{n}.test"), ALICE) for n in range(20)] + [(THERE, CAROL), (THERE, ALICE)]
    rig.start()
    rig.wait(301)

    first = {seen.destination: seen.sent_ms - START_MS for seen in reversed(rig.seen)}
    assert len(first) == 21
    assert len({moment // 10_000 for moment in first.values()}) > 10
    assert sorted(rig.server.pushed()[[s.destination for s in rig.seen].index(THERE)]) == [ALICE, CAROL]


def test_who_is_to_be_told_again_later_in_the_run_is_spread_as_at_its_start() -> None:
    """Z-11: rooms are read again one after the other, which must be no herd, and not one transaction each."""
    rig = Rig().start()
    destinations = tuple(ServerName(f"{n}.test") for n in range(20))
    for user_id in (ALICE, CAROL):
        rig.outbound.enqueue(SendPush(destinations, user_id, Urgency.AGAIN))
        rig.wait(0.2)
    rig.wait(301)

    first = {seen.destination: seen.sent_ms - START_MS for seen in reversed(rig.seen)}
    assert len(first) == 20
    assert len({moment // 10_000 for moment in first.values()}) > 10
    assert all(sorted(users) == [ALICE, CAROL] for users in rig.server.pushed()[:20])


def test_transaction_ids_never_repeat_and_name_the_run() -> None:
    """A restored snapshot must not get the answers of its other self (F:X-1, Z-22)."""
    ids = []
    for _ in range(2):
        rig = Rig().start()
        for number in range(20):
            rig.push(UserID(f"@{number}:here.test"))
            rig.wait(0.5)
        ids += [txn_id for txn_id, _ in rig.server.sent]
    assert all(re.fullmatch(rf"fp{START_MS}[0-9a-f]{{12}}\.[0-9]+", txn_id) for txn_id in ids)
    assert len(set(ids[:20])) == 20


def test_every_attempt_is_seen_on_the_wire() -> None:
    """The demo and the rig show what really happened (contract.md)."""
    rig = Rig().start()
    rig.server.outcomes = [silence(), refusal(500), 200]
    rig.push()
    rig.wait(20)

    assert [seen.status for seen in rig.seen] == [None, 500, 200]
    assert [seen.answered_ms is None for seen in rig.seen] == [True, False, False]
    assert rig.seen[0].txn_id == rig.seen[1].txn_id
    assert rig.seen[0].body is rig.seen[1].body


def test_a_destination_with_nothing_to_do_is_forgotten() -> None:
    """Memory must not grow with every server we ever knew."""
    rig = Rig().start()
    rig.engine.forbid(ALICE)
    rig.push()
    rig.wait(SWEEP_INTERVAL_S + 1)
    assert rig.outbound.describe(None) == {}


def test_a_failing_destination_is_not_forgotten() -> None:
    """Its outage would begin anew with every change."""
    rig = Rig().start()
    rig.server.reachable = unreachable()
    rig.push()
    rig.wait(SWEEP_INTERVAL_S + 1)
    assert rig.outbound.describe(None)[THERE].failing_since_ts == START_MS


def test_a_failing_destination_for_which_nothing_waits_is_forgotten_in_the_end() -> None:
    """Nobody would try it again: it counted as failing, and filled memory, until the next restart."""
    rig = Rig().start()
    rig.server.reachable = unreachable()
    rig.owe()
    rig.wait(5)
    rig.outbound.enqueue(UnsendEdus(THERE, ALICE, BOB))

    rig.wait(SWEEP_INTERVAL_S + 1)
    assert rig.outbound.describe(None)[THERE].failing_since_ts == START_MS

    rig.wait(OUTAGE_KEPT_MS / 1000 + SWEEP_INTERVAL_S)
    assert rig.outbound.describe(None) == {}


def test_idle_means_nothing_in_flight_or_due_now() -> None:
    """A rig with a virtual clock waits for exactly this (contract.md)."""
    rig = Rig().start()
    assert rig.outbound.idle()
    rig.push()
    assert not rig.outbound.idle()
    rig.wait()
    assert rig.outbound.idle()
    rig.push()
    assert rig.outbound.idle()  # the window has not passed
    rig.wait(0.3)
    assert len(rig.server.sent) == 1  # nothing had changed


def test_an_unknown_destination_is_described_as_nothing() -> None:
    """The admin API makes a 404 of it."""
    assert Rig().outbound.describe(THERE) == {}


def test_all_destinations_share_one_timer_and_few_alarms() -> None:
    """Thousands of timers made and cancelled would cost more than what they wait for."""
    rig = Rig(max_transactions_per_second=1_000).start()
    names = [ServerName(f"{number}.test") for number in range(50)]
    before = len(rig.clock.getDelayedCalls())

    for number in range(20):
        rig.engine.publish(ALICE, PresenceState.UNAVAILABLE if number % 2 else PresenceState.ONLINE)
        for name in names:
            rig.push(destination=name)
        assert len(rig.clock.getDelayedCalls()) == before + 1
        rig.wait(1)

    assert len(rig.server.sent) == 20 * len(names)
    assert len(rig.outbound._alarms) <= 2 * len(names)


def test_a_group_that_gathers_is_not_torn_by_who_comes_meanwhile() -> None:
    """Torn once, it would stay torn: each destination has its window from its own last transaction on."""
    rig = Rig(max_transactions_per_second=50, batch_window_ms=200).start()
    for number in range(60):
        rig.push(destination=ServerName(f"{number}.test"))
    rig.wait()
    assert len(rig.server.sent) == 50

    rig.clock.advance(0.05)
    rig.push(destination=ServerName("late.test"))
    rig.clock.advance(0.001)
    rig.clock.advance(0.168)
    assert len(rig.server.sent) == 50
    rig.clock.advance(0.002)

    assert len(rig.server.sent) == 61  # who came, too
    assert len({at_ms for _, at_ms in rig.server.opened[50:]}) == 1


def test_what_leaves_together_is_made_at_one_moment_and_no_longer_ago_than_an_age_is_worth() -> None:
    """Equal ages make equal bytes, which are made once; ten milliseconds are less than a network's."""
    rig = Rig().start()
    names = tuple(ServerName(f"{number}.test") for number in range(10))
    rig.outbound.enqueue(SendPush(names, ALICE, Urgency.CHANGE))
    rig.wait(1)
    otherwise, left_ms = rig.server.otherwise, []

    def slowly(txn_id: str, content: Mapping[str, object]) -> Outcome:
        left_ms.append(int(rig.clock.seconds() * 1000))
        rig.clock.rightNow += 0.003  # as making one takes
        return otherwise(txn_id, content)

    rig.server.otherwise = slowly
    rig.engine.composed_at.clear()
    rig.outbound.enqueue(SendPush(names, CAROL, Urgency.CHANGE))
    rig.wait()

    made_ms = rig.engine.composed_at
    assert len(made_ms) == len(left_ms) == 10
    assert max(left - made for left, made in zip(left_ms, made_ms, strict=True)) <= 10
    assert len(set(made_ms)) <= 4


def test_who_is_due_at_one_moment_leaves_together_however_urgent_each_is() -> None:
    """Only who is more urgent than all that waited goes in a smaller group."""
    rig = Rig(max_transactions_per_second=50).start()
    names = [ServerName(f"{number}.test") for number in range(60)]
    rig.outbound.enqueue(SendPush(tuple(names[10:]), ALICE, Urgency.CHANGE))
    rig.wait()
    assert len(rig.server.opened) == 50, "all that the bucket held"

    for number, name in enumerate(names[:10]):
        rig.push(urgency=Urgency.CHANGE if number < 5 else Urgency.ASKED, destination=name)
    rig.wait(1)

    moments = [at_ms for _, at_ms in rig.server.opened[50:]]
    assert len(moments) == 10
    assert len(set(moments)) == 1


def test_news_for_who_rests_is_put_into_their_queues_all_at_once() -> None:
    """Twenty changes for ten destinations are no two hundred errands, and are known to whoever asks."""
    rig = Rig().start()
    names = tuple(ServerName(f"{number}.test") for number in range(10))
    rig.outbound.enqueue(SendPush(names, ALICE, Urgency.CHANGE))
    rig.wait()
    assert len(rig.server.sent) == 10

    for number in range(20):
        rig.outbound.enqueue(SendPush(names, UserID(f"@{number}:here.test"), Urgency.CHANGE))
        rig.clock.advance(0.005)
    assert len(rig.outbound._came) == 20
    rig.clock.advance(0.1)

    assert [len(users) for users in rig.server.pushed()[10:]] == [20] * 10


def test_news_that_is_in_no_queue_yet_is_described_and_is_not_late() -> None:
    """Where it lies is nobody's concern: not the operator's, and not that of who waits for it."""
    rig = Rig().start()
    rig.push()
    rig.wait()
    rig.push(CAROL)
    assert len(rig.outbound._came) == 1

    assert rig.outbound.describe()[THERE].pending_users == 1
    rig.push(BOB)
    rig.clock.advance(0.2)

    assert rig.server.pushed() == [[ALICE], [CAROL, BOB]]


def test_one_quiet_destination_is_told_at_once_though_all_others_rest() -> None:
    """Nobody waits for the window of another destination (decision 12)."""
    rig = Rig().start()
    names = tuple(ServerName(f"{number}.test") for number in range(5))
    rig.outbound.enqueue(SendPush(names, ALICE, Urgency.CHANGE))
    rig.wait()

    rig.outbound.enqueue(SendPush((*names, THERE), CAROL, Urgency.CHANGE))
    rig.clock.advance(0)

    assert [name for name, _ in rig.server.opened[5:]] == [THERE]


def test_a_right_that_ends_before_news_is_in_a_queue_ends_all_the_same() -> None:
    """Rights are those of the moment at which bytes are made (S:5)."""
    rig = Rig().start()
    rig.push()
    rig.wait()
    rig.push(CAROL)

    rig.engine.forbid(CAROL)
    rig.wait(1)

    assert rig.server.pushed() == [[ALICE]]
    assert rig.outbound.describe()[THERE].pending_users == 0


def test_news_that_is_in_no_queue_yet_is_bounded() -> None:
    """A destination that is away for days rests for days."""
    rig = Rig().start()
    rig.server.reachable = unreachable()
    rig.push()
    rig.wait(600)

    for number in range(MAX_CAME - 1):
        rig.push(UserID(f"@{number}:here.test"))
    assert len(rig.outbound._came) == MAX_CAME - 1
    rig.push(CAROL)
    assert len(rig.outbound._came) == 0
    rig.push(BOB)
    rig.wait(0.3)

    assert len(rig.outbound._came) == 0
    assert rig.outbound.describe()[THERE].pending_users == MAX_CAME + 2


def test_windows_of_those_who_leave_together_end_together() -> None:
    """So they leave together again, with bytes made once, and the daemon wakes once."""
    rig = Rig(batch_window_ms=200).start()
    names = tuple(ServerName(f"{number}.test") for number in range(10))
    otherwise = rig.server.otherwise

    def slowly(txn_id: str, content: Mapping[str, object]) -> Outcome:
        rig.clock.rightNow += 0.0005  # as making one takes
        return otherwise(txn_id, content)

    rig.server.otherwise = slowly
    for number in range(5):
        rig.outbound.enqueue(SendPush(names, UserID(f"@{number}:here.test"), Urgency.CHANGE))
        rig.clock.advance(0)
        rig.clock.advance(0.205)

    assert len(rig.server.sent) == 50
    assert all(max(t) - min(t) <= 10 for t in _by_tens([at_ms for _, at_ms in rig.server.opened]))


def test_who_left_apart_from_the_others_leaves_with_them_again() -> None:
    """A connection had to be opened, or an answer was slow: what follows need not wake us for each."""
    rig = Rig(batch_window_ms=200).start()
    names = tuple(ServerName(f"{number}.test") for number in range(10))
    for name in names:
        rig.push(destination=name)
        rig.clock.advance(0.007)

    for number in range(1000):
        if number % 50 == 0:
            rig.outbound.enqueue(SendPush(names, UserID(f"@{number}:here.test"), Urgency.CHANGE))
        rig.clock.advance(0.001)

    moments = {at_ms for _, at_ms in rig.server.opened if at_ms >= START_MS + 500}
    assert len(moments) <= 4 * 3, "of ten destinations, in three windows"


def _by_tens(moments: list[int]) -> list[list[int]]:
    return [moments[at : at + 10] for at in range(0, len(moments), 10)]
