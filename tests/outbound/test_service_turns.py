import pytest
from twisted.internet.defer import Deferred

from fedpresence.engine.effects import SendPoll, SendPush, Urgency
from fedpresence.engine.presence import PresenceState
from fedpresence.ids import ServerName, UserID
from tests.outbound.sending import ALICE, CAROL, START_MS, THERE, Rig, refusal, unreachable


def test_under_load_the_urgent_go_first() -> None:
    """A poll that a person waits for passes a herd of timers (decision 12)."""
    rig = Rig(max_transactions_per_second=2).start()
    for number in range(10):
        rig.push(urgency=Urgency.TIMER, destination=ServerName(f"{number}.test"))
    rig.wait()
    rig.push(CAROL, Urgency.ASKED)
    rig.wait(0.6)

    assert rig.server.pushed()[2] == [CAROL]


def test_one_flapping_user_does_not_delay_the_others() -> None:
    """One user must not spend everybody's budget (Z-18)."""
    rig = Rig(max_transactions_per_second=5).start()
    for _ in range(5):
        for number in range(100):
            rig.push(ALICE, destination=ServerName(f"{number}.test"))
    rig.wait(15)
    sent = len(rig.server.sent)

    rig.push(CAROL, destination=ServerName("quiet.test"))
    rig.wait(1)

    assert [CAROL] in rig.server.pushed()[sent : sent + 2]


def test_thousands_that_are_away_do_not_take_the_turns_of_those_that_are_there() -> None:
    """A stranger with a wildcard domain makes names at will: what waits for them is always the oldest."""
    rig = Rig(max_transactions_per_second=2).start()
    rig.server.reachable = unreachable()
    for number in range(300):
        rig.push(destination=ServerName(f"dead{number}.test"))
    rig.wait(600)
    opened = len(rig.server.opened)

    rig.push(CAROL, destination=ServerName("quiet.test"))
    rig.wait(2)

    assert "quiet.test" in [name for name, _ in rig.server.opened[opened : opened + 2]]


def test_a_room_of_thousands_does_not_hold_up_what_people_do_now() -> None:
    """All its members are introduced everywhere; whoever changes meanwhile goes before (decision 12)."""
    rig = Rig(max_transactions_per_second=5).start()
    for number in range(200):
        rig.push(ALICE, Urgency.ASKED, ServerName(f"{number}.test"))
    rig.wait(1)
    for number in range(200):  # and those who are there are asked for
        name = ServerName(f"{number}.test")
        rig.outbound.enqueue(SendPoll(name, UserID(f"@dan:{name}")))
    rig.wait(2)
    sent = len(rig.server.sent)

    rig.push(CAROL, destination=ServerName("quiet.test"))
    rig.wait(1)

    assert [CAROL] in rig.server.pushed()[sent : sent + 2]
    rig.wait(60)
    assert rig.server.pushed().count([ALICE]) == 200


def test_thousands_that_are_back_do_not_hold_up_what_people_do_now() -> None:
    """They were away for hours and wait some seconds more; who is there is told at once (decision 12)."""
    rig = Rig(max_transactions_per_second=5).start()
    rig.server.reachable = unreachable()
    names = [ServerName(f"away{number}.test") for number in range(100)]
    for name in names:
        rig.push(destination=name)
    rig.wait(600)
    rig.server.reachable = 200
    for name in names:
        rig.outbound.seen_alive(name)
    rig.wait(2)
    sent = len(rig.server.sent)

    rig.push(CAROL, destination=ServerName("quiet.test"))
    rig.wait(1)

    assert [CAROL] in rig.server.pushed()[sent : sent + 2]


def test_a_destination_that_hangs_delays_nobody() -> None:
    """One slow server among thousands must not be noticed by the others, connecting or answering."""
    rig = Rig(max_transactions_per_second=5).start()
    rig.server.reachable = Deferred()
    rig.push(destination=ServerName("silent.test"))
    rig.wait(1)
    rig.server.reachable = 200
    rig.server.outcomes = [Deferred()]
    rig.push(destination=ServerName("hanging.test"))
    rig.wait(1)

    for number in range(5):
        rig.push(CAROL, destination=ServerName(f"{number}.test"))
    rig.wait()

    assert rig.server.pushed() == [[ALICE], *[[CAROL]] * 5]
    assert rig.outbound.in_flight() == 2


def test_many_that_refuse_everything_do_not_take_the_turns_of_those_that_are_there() -> None:
    """Looking for the offender takes many transactions; where all of it offends, for nothing (Z-17, Z-18)."""
    rig = Rig(max_transactions_per_second=5).start()
    bad = [ServerName(f"bad{number}.test") for number in range(20)]
    rig.server.otherwise = lambda txn_id, content: 200 if "@carol" in str(content) else refusal(400)
    for _ in range(20):
        for name in bad:
            for number in range(10):
                rig.push(UserID(f"@{number}:here.test"), destination=name)
        rig.wait(2)
    sent = len(rig.server.sent)

    rig.push(CAROL, destination=ServerName("quiet.test"))
    rig.wait(1)

    assert [CAROL] in rig.server.pushed()[sent : sent + 2]


def test_who_waits_for_its_turn_is_not_asked_again_at_each_news() -> None:
    """Fifty destinations behind a spent budget would be looked at fifty times for each that goes."""
    rig = Rig(max_transactions_per_second=5).start()
    names = [ServerName(f"{number}.test") for number in range(50)]
    for name in names:
        rig.push(destination=name)
    rig.wait()
    alarms = len(rig.outbound._alarms)

    for number in range(20):
        rig.engine.publish(ALICE, PresenceState.UNAVAILABLE if number % 2 else PresenceState.ONLINE)
        for name in names[10:]:
            rig.push(destination=name)

    assert len(rig.outbound._alarms) == alarms
    rig.wait(20)
    assert {seen.destination for seen in rig.seen} == {*names}


def test_more_urgent_news_of_who_waits_moves_its_turn_forward() -> None:
    """What a person asked for does not stand where a refresh stood."""
    rig = Rig(max_transactions_per_second=1).start()
    for number in range(5):
        rig.push(urgency=Urgency.TIMER, destination=ServerName(f"{number}.test"))
    rig.wait()

    rig.push(CAROL, Urgency.ASKED, destination=ServerName("4.test"))
    rig.wait(1.1)

    assert set(rig.server.pushed()[1]) == {ALICE, CAROL}


def test_part_of_a_users_news_may_be_within_their_share() -> None:
    """The first destinations are told as ever, the others when there is room (Z-18)."""
    rig = Rig(max_transactions_per_second=1).start()
    names = tuple(ServerName(f"{number}.test") for number in range(12))

    rig.outbound.enqueue(SendPush(names, ALICE, Urgency.CHANGE))

    assert len(rig.outbound.describe()) == 12
    deadlines = [rig.outbound._senders[name].queue.deadline_ms(START_MS) - START_MS for name in names]
    assert deadlines == [200] * 10 + [60_000] * 2


# --- who goes first where the budget is spent -----------------------------------------------------


AWAY = ServerName("away.test")
BUSY = [ServerName(f"busy{number}.test") for number in range(30)]


def _busily(rig: Rig, seconds: float) -> None:
    """Time passes in which people change all the time, and thirty servers hear of it."""
    for _ in range(round(seconds / 0.2)):
        user_id = UserID(f"@{len(rig.engine.states)}:here.test")
        rig.engine.publish(user_id, PresenceState.ONLINE)
        rig.outbound.enqueue(SendPush(tuple(BUSY), user_id, Urgency.CHANGE))
        rig.wait(0.2)


def _is_tried_within(rig: Rig, seconds: float) -> bool:
    opened = len(rig.server.opened)
    for _ in range(round(seconds / 0.2)):
        _busily(rig, 0.2)
        if any(name == AWAY for name, _ in rig.server.opened[opened:]):
            return True
    return False


@pytest.mark.parametrize("is_push", [True, False])
def test_who_waits_for_an_answer_goes_before_all_who_are_late(is_push: bool) -> None:
    """A client's question is answered within a second or not at all (decision 7); here all are six behind."""
    rig = Rig(max_transactions_per_second=5).start()
    _busily(rig, 20)

    if is_push:
        rig.push(CAROL, Urgency.ASKED, AWAY)
    else:
        rig.outbound.enqueue(SendPoll(AWAY, UserID("@dan:away.test")))

    assert _is_tried_within(rig, 0.6)


def _away(rig: Rig) -> None:
    """A destination fails for a while; the next try by itself is far off."""
    rig.server.away = {AWAY}
    rig.push(destination=AWAY)
    rig.wait(600)
    _busily(rig, 20)
    while (rig.outbound.describe(AWAY)[AWAY].next_try_ts or 0) - rig.clock.seconds() * 1000 < 12_000:
        _busily(rig, 0.2)


def test_what_an_operator_wants_tried_goes_before_all_who_are_late() -> None:
    """They asked for it now, and look at what comes of it."""
    rig = Rig(max_transactions_per_second=5).start()
    _away(rig)

    assert rig.outbound.retry(AWAY)

    assert _is_tried_within(rig, 0.6)


def test_who_is_heard_of_again_waits_as_long_as_everybody() -> None:
    """Its users look at what was true before the outage; a minute more, and all they see would expire."""
    rig = Rig(max_transactions_per_second=5).start()
    _away(rig)

    rig.outbound.seen_alive(AWAY)

    assert _is_tried_within(rig, 10)


def test_who_failed_once_is_tried_again_as_soon_as_ever_though_others_are_late() -> None:
    """One answer that was lost must not cost ten minutes of silence (decision 15)."""
    rig = Rig(max_transactions_per_second=5).start()
    _busily(rig, 20)
    rig.push(CAROL, Urgency.ASKED, AWAY)
    rig.server.away = {AWAY}
    assert _is_tried_within(rig, 1)
    rig.server.away = set()

    assert _is_tried_within(rig, 12)
    assert [CAROL] in rig.server.pushed()


def test_who_goes_first_leaves_half_of_the_budget_to_the_others() -> None:
    """Z-18: strangers with a wildcard domain ask, and are away, as much as they like."""
    rig = Rig(max_transactions_per_second=20).start()
    rig.server.away = {ServerName(f"dead{number}.test") for number in range(600)}
    for name in rig.server.away:
        rig.push(destination=name)
    rig.wait(120)
    for number in range(100):
        for asking in range(10):
            name = ServerName(f"ask{number}.{asking}.test")
            rig.outbound.enqueue(SendPoll(name, UserID(f"@dan:{name}")))
        for name in rig.server.away:
            rig.outbound.seen_alive(name)
        _busily(rig, 0.2)

    late = [name for name, at_ms in rig.server.opened if at_ms > START_MS + 130_000]
    told = [name for name in late if name in BUSY]
    assert len(late) >= 190
    assert len(told) >= len(late) / 2


@pytest.mark.parametrize("urgency", [Urgency.ASKED, Urgency.CHANGE])
def test_those_that_answer_later_do_not_take_the_turns_of_the_others(urgency: Urgency) -> None:
    """A 429 is no outage, but hundreds that are tried again and again must not go first (Z-18, Z-20)."""
    rig = Rig(max_transactions_per_second=50).start()
    rig.outbound.enqueue(SendPush(tuple(ServerName(f"{n}.test") for n in range(700)), CAROL, urgency))
    rig.server.otherwise = lambda txn_id, content: refusal(429)
    rig.wait(40)
    began_ms, tried = rig.clock.seconds() * 1000, len(rig.server.opened)

    rig.push()
    rig.wait(2)

    assert THERE in [name for name, at_ms in rig.server.opened[tried:] if at_ms - began_ms <= 1_000]
