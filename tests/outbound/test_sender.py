import pytest
from twisted.internet.defer import Deferred

from fedpresence.engine.effects import SendDropOnce, SendPoll, UnsendEdus, Urgency
from fedpresence.engine.events import DestinationAlive, EdusDelivered
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.subscription import EduKind
from fedpresence.ids import ServerName, UserID
from fedpresence.outbound.sender import MAX_REFUSALS_IN_A_ROW
from tests.asynchronous import result_of
from tests.outbound.sending import (
    ALICE,
    BOB,
    CAROL,
    HERE,
    START_MS,
    THERE,
    Rig,
    items,
    only,
    refusal,
    silence,
    unreachable,
)


def test_news_is_delivered_at_once_and_then_forgotten() -> None:
    """Somebody is looking at the other end (decision 12)."""
    rig = Rig().start()
    rig.push()
    rig.wait(5)

    assert rig.server.pushed() == [[ALICE]]
    assert rig.outbound.describe(THERE)[THERE].state == "idle"
    assert rig.outbound.describe(THERE)[THERE].last_success_ts == START_MS
    assert rig.server.opened == [(THERE, START_MS)]


def test_effects_of_one_turn_go_in_one_transaction() -> None:
    """An accept and the push behind it belong together (S:T-10)."""
    rig = Rig().start()
    rig.owe(EduKind.ACCEPT)
    rig.push(ALICE, Urgency.ASKED)
    rig.wait()

    assert rig.server.kinds() == [["m.presence_accept", "m.presence"]]


def test_delivered_edus_are_told_to_the_engine() -> None:
    """An EDU is owed until the engine hears of its 200 (decision 16)."""
    rig = Rig().start()
    edu = rig.owe()
    rig.wait()
    assert rig.engine.events == [EdusDelivered(THERE, (edu,))]


def test_one_transaction_is_in_flight_at_a_time() -> None:
    """EDUs of a pair must not overtake each other (decision 10)."""
    rig = Rig().start()
    answer: Deferred[int] = Deferred()
    rig.server.outcomes = [answer]
    rig.push()
    rig.wait()
    rig.push(CAROL)
    rig.wait(10)
    assert len(rig.server.sent) == 1
    assert rig.outbound.describe(THERE)[THERE].state == "sending"

    answer.callback(200)
    rig.wait(0.1)

    assert rig.server.pushed() == [[ALICE], [CAROL]]


def test_the_push_is_made_when_the_connection_stands() -> None:
    """Its age counts from when it leaves, and its state is the newest (decision 9)."""
    rig = Rig().start()
    connecting: Deferred[int] = Deferred()
    rig.server.reachable = connecting
    rig.push()
    rig.wait(3)

    rig.engine.publish(ALICE, PresenceState.UNAVAILABLE)
    connecting.callback(200)

    ((_, content),) = rig.server.sent
    assert items(content)[0]["presence"] == "unavailable"
    assert content["origin_server_ts"] in (START_MS + 2_999, START_MS + 3_000)
    assert content["origin"] == HERE


def test_without_a_connection_no_bytes_are_made_and_the_next_try_is_rebuilt() -> None:
    """A try on a dead destination is a connection, no more (decision 15)."""
    rig = Rig().start()
    rig.server.reachable = unreachable()
    rig.push()
    rig.wait(0.5)
    assert (len(rig.server.opened), rig.server.sent) == (1, [])
    assert rig.outbound.describe(THERE)[THERE].state == "failing"

    rig.server.reachable = 200
    rig.engine.publish(ALICE, PresenceState.OFFLINE)
    rig.wait(2)

    assert items(rig.server.sent[0][1])[0]["presence"] == "offline"
    assert rig.outbound.describe(THERE)[THERE].failing_since_ts is None


@pytest.mark.parametrize("status", [302, 408, 429, 500, 502, 503])
def test_a_passing_refusal_is_tried_later_under_a_new_id(status: int) -> None:
    """Stale ages must not be repeated (F:X-3)."""
    rig = Rig().start()
    rig.server.outcomes = [refusal(status)]
    rig.push()
    rig.wait(1)
    assert len(rig.server.sent) == 1

    rig.wait(2)

    first, second = rig.server.sent
    assert first[0] != second[0]
    assert rig.server.pushed() == [[ALICE], [ALICE]]


def test_429_is_no_outage() -> None:
    """A server that is busy is not away (Z-20)."""
    rig = Rig().start()
    rig.server.outcomes = [refusal(429, retry_after_ms=10_000)]
    rig.push()
    rig.wait(9)
    status = rig.outbound.describe(THERE)[THERE]
    assert (status.state, status.failing_since_ts) == ("waiting", None)
    assert (len(rig.server.sent), status.next_try_ts) == (1, START_MS + 10_000)

    rig.wait(2)

    assert len(rig.server.sent) == 2
    assert rig.engine.events == []


def test_an_unclear_result_is_repeated_once_byte_for_byte_then_rebuilt() -> None:
    """The server may have taken it: the same id has the same content (F:X-3)."""
    rig = Rig().start()
    rig.server.outcomes = [silence(), silence(), 200]
    rig.push()
    rig.owe()
    rig.wait(1)
    rig.engine.publish(ALICE, PresenceState.UNAVAILABLE)
    rig.wait(20)

    first, again, rebuilt = rig.server.sent
    assert first == again
    assert rebuilt[0] != first[0]
    assert items(rebuilt[1])[0]["presence"] == "unavailable"


def test_the_same_bytes_are_not_sent_again_once_a_right_has_ended() -> None:
    """Bytes made before a right ended are never sent after it (S:5)."""
    rig = Rig().start()
    rig.server.outcomes = [silence()]
    rig.push(ALICE)
    rig.push(CAROL)
    rig.wait(1)

    rig.engine.forbid(ALICE)
    rig.wait(5)

    first, second = rig.server.sent
    assert first[0] != second[0]
    assert rig.server.pushed() == [[ALICE, CAROL], [CAROL]]


def test_the_same_bytes_are_not_sent_again_once_an_edu_is_unsent() -> None:
    """An invite that was dropped meanwhile must not arrive after its drop (Z-15)."""
    rig = Rig().start()
    rig.server.outcomes = [silence()]
    rig.owe()
    rig.push()
    rig.wait(1)

    rig.outbound.enqueue(UnsendEdus(THERE, ALICE, BOB))
    rig.wait(5)

    assert rig.server.kinds() == [["m.presence_invite", "m.presence"], ["m.presence"]]


def test_a_right_that_ends_while_connecting_is_respected() -> None:
    """The check is made when the bytes are (Z-9)."""
    rig = Rig().start()
    connecting: Deferred[int] = Deferred()
    rig.server.reachable = connecting
    rig.push()
    rig.wait()
    rig.engine.forbid(ALICE)
    connecting.callback(200)
    rig.wait(5)

    assert rig.server.sent == []
    assert rig.server.given_back == 1
    assert rig.outbound.idle()
    assert rig.outbound.describe(THERE)[THERE].pending_users == 0


def test_nothing_is_said_of_what_is_not_written_yet() -> None:
    """Nobody hears of a change that a crash could undo; a connection that stands is no reason to be early."""
    rig = Rig().start()
    writing: Deferred[None] = Deferred()
    rig.engine.composing = writing
    rig.push()
    rig.wait(5)
    assert rig.server.sent == []

    writing.callback(None)
    rig.wait(1)

    assert rig.server.pushed() == [[ALICE]]


def test_a_stop_while_something_is_being_written_gives_the_connection_back() -> None:
    """And nothing that waited is lost."""
    rig = Rig().start()
    rig.engine.composing = Deferred()
    rig.push()
    rig.wait(1)

    stopped = rig.outbound.stopService()

    assert stopped.called
    assert rig.server.sent == []
    assert rig.server.given_back == 1
    assert rig.outbound.describe(THERE)[THERE].pending_users == 1


def test_an_edu_its_row_does_not_owe_any_more_leaves_the_queue() -> None:
    """The row knows best what is owed (decision 16)."""
    rig = Rig().start()
    rig.engine.stale.add(rig.owe())
    rig.wait(5)
    assert (rig.server.sent, rig.outbound.describe(THERE)[THERE].owed) == ([], 0)


def test_who_cannot_check_our_signature_just_now_is_tried_again() -> None:
    """A peer that failed to fetch our keys while we restarted says 401: an accept must not wait for hours."""
    rig = Rig().start()
    rig.server.outcomes = [refusal(401)]
    rig.owe()

    rig.wait(3)

    assert rig.server.kinds() == [["m.presence_invite"], ["m.presence_invite"]]
    assert rig.outbound.describe(THERE)[THERE].owed == 0


@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_that_will_not_change_sets_aside(status: int) -> None:
    """Pushes wait for the next change, list EDUs for their schedule (F:X-6, S:T-29, S:O-38)."""
    rig = Rig().start()
    rig.server.outcomes = [refusal(status)]
    rig.push()
    rig.owe()
    rig.wait(600)
    assert len(rig.server.sent) == 1
    described = rig.outbound.describe(THERE)[THERE]
    assert (described.pending_users, described.owed, described.failing_since_ts) == (0, 1, None)
    assert described.last_error == f"answered {status}"

    rig.push()
    rig.wait(1)
    rig.owe()
    rig.wait(1)

    assert rig.server.kinds()[1:] == [["m.presence"], ["m.presence_invite"]]


@pytest.mark.parametrize("status", [400, 413])
def test_one_offender_is_found_and_the_rest_goes(status: int) -> None:
    """Ninety-nine must not be lost to one (Z-17)."""
    rig = Rig().start()
    users = [UserID(f"@{number}:here.test") for number in range(100)]
    bad = users[63]
    rig.server.otherwise = lambda txn_id, content: (
        refusal(status) if any(item["user_id"] == bad for item in items(content)) else 200
    )
    for user in users:
        rig.push(user)
    rig.wait(30)

    delivered = {
        user
        for seen, pushed in zip(rig.seen, rig.server.pushed(), strict=True)
        if seen.status == 200
        for user in pushed
    }
    assert delivered == set(users) - {bad}
    assert len(rig.server.sent) == 15
    assert len({txn_id for txn_id, _ in rig.server.sent}) == 15
    assert rig.outbound.describe(THERE)[THERE].pending_users == 0


def test_a_server_that_refuses_everything_is_not_asked_about_each_user() -> None:
    """A 400 to everything must not become a thousand requests."""
    rig = Rig().start()
    rig.server.otherwise = lambda txn_id, content: refusal(400)
    for number in range(300):
        rig.push(UserID(f"@{number}:here.test"))
    rig.wait(60)

    assert len(rig.server.sent) <= MAX_REFUSALS_IN_A_ROW
    assert rig.outbound.describe(THERE)[THERE].pending_users == 0


def test_what_is_tried_once_goes_first_when_a_transaction_is_refused() -> None:
    """A poll that a server dislikes must not cost a push (Z-17)."""
    rig = Rig().start()
    rig.server.outcomes = [refusal(400)]
    rig.push()
    rig.outbound.enqueue(SendPoll(THERE, BOB))
    rig.outbound.enqueue(SendDropOnce(THERE, CAROL, BOB))
    rig.wait(5)

    assert rig.server.kinds() == [
        ["org.fedpresence.presence_drop", "m.presence", "m.presence"],
        ["m.presence"],
    ]
    assert rig.server.pushed()[1] == [ALICE]


def test_a_poll_that_failed_is_not_tried_again() -> None:
    """Whoever asked has gone (E:Q-8)."""
    rig = Rig().start()
    rig.server.outcomes = [refusal(500)]
    rig.outbound.enqueue(SendPoll(THERE, BOB))
    rig.wait(600)
    assert len(rig.server.sent) == 1


def test_the_end_of_an_outage_is_told_once() -> None:
    """Invites that waited out an outage go again at its end (S:3.5)."""
    rig = Rig().start()
    rig.server.reachable = unreachable()
    rig.push()
    rig.wait(30)
    assert rig.engine.events == []

    rig.server.reachable = 200
    rig.wait(30)
    rig.push(CAROL)
    rig.wait(30)

    assert rig.engine.events == [DestinationAlive(THERE)]
    assert len(rig.server.sent) == 2


def test_something_authentic_wakes_a_failing_destination() -> None:
    """A signed request proves that it is alive (F:X-8)."""
    rig = Rig().start()
    rig.server.reachable = unreachable()
    rig.push()
    rig.wait(3_000)
    rig.server.reachable = 200
    tries = len(rig.server.opened)

    rig.outbound.seen_alive(THERE)
    rig.wait()

    assert len(rig.server.opened) == tries + 1
    assert rig.server.pushed() == [[ALICE]]
    assert rig.engine.events == [DestinationAlive(THERE)]


def trying_in_vain() -> Rig:
    """A destination that was away is back, and a connection that was begun before hangs."""
    rig = Rig().start()
    rig.server.reachable = unreachable()
    rig.push()
    rig.wait(1)
    rig.server.reachable = Deferred()
    rig.wait(60)
    rig.server.reachable = 200
    return rig


def test_something_authentic_ends_a_try_that_waits_for_nobody() -> None:
    """It began while the destination was away; its packets are lost, and it would wait for ten seconds."""
    rig = trying_in_vain()
    tries = len(rig.server.opened)

    rig.outbound.seen_alive(THERE)
    rig.wait()

    assert len(rig.server.opened) == tries + 1
    assert rig.server.pushed() == [[ALICE]]


def test_something_authentic_ends_even_a_first_try_that_takes_long() -> None:
    """Its outage was not noticed yet; the packets are lost all the same."""
    rig = Rig().start()
    rig.server.reachable = Deferred()
    rig.push()
    rig.wait(3)
    rig.server.reachable = 200

    rig.outbound.seen_alive(THERE)
    rig.wait()

    assert rig.server.pushed() == [[ALICE]]


def test_something_authentic_does_not_disturb_a_first_try() -> None:
    """A destination that is not known to be away is connected to in its own time."""
    rig = Rig().start()
    connecting: Deferred[int] = Deferred()
    rig.server.reachable = connecting
    rig.push()
    rig.wait(1)

    rig.outbound.seen_alive(THERE)
    connecting.callback(200)
    rig.wait()

    assert len(rig.server.opened) == 1
    assert rig.server.pushed() == [[ALICE]]


def test_a_destination_that_lives_but_takes_nothing_is_told_alive_once() -> None:
    """Its every request would otherwise make us resend (Z-20)."""
    rig = Rig().start()
    rig.server.reachable = unreachable()
    rig.push()
    rig.wait(1)
    for _ in range(10):
        rig.outbound.seen_alive(THERE)
        rig.wait(70)
    assert rig.engine.events == [DestinationAlive(THERE)]


def test_an_operator_need_not_wait_for_a_try_that_hangs() -> None:
    """Its end would be another failure, and the next try hours away."""
    rig = trying_in_vain()

    assert rig.outbound.retry(THERE)
    rig.wait()

    assert rig.server.pushed() == [[ALICE]]


def test_an_operator_can_try_now() -> None:
    """`POST …/retry` (contract.md)."""
    rig = Rig().start()
    rig.server.outcomes = [refusal(503, retry_after_ms=3_600_000)]
    rig.push()
    rig.wait(5)
    assert rig.outbound.retry(THERE)
    assert not rig.outbound.retry(HERE)
    rig.wait()
    assert len(rig.server.sent) == 2


def test_a_change_that_cancels_out_opens_no_transaction() -> None:
    """Mobile clients flap (decision 13)."""
    rig = Rig().start()
    rig.push()
    rig.wait(0.1)
    rig.engine.publish(ALICE, PresenceState.OFFLINE)
    rig.push()
    rig.engine.publish(ALICE, PresenceState.ONLINE)
    rig.push()
    rig.wait(5)

    assert len(rig.server.sent) == 1
    assert rig.outbound.idle()


def test_a_change_back_after_a_doubtful_failure_is_told() -> None:
    """The destination may show the state of the transaction that got no answer."""
    rig = Rig().start()
    rig.push()
    rig.wait(1)
    rig.server.outcomes = [silence(), silence()]
    rig.engine.publish(ALICE, PresenceState.OFFLINE)
    rig.push()
    rig.wait(1)
    rig.engine.publish(ALICE, PresenceState.ONLINE)
    rig.push()
    rig.wait(30)

    assert [items(content)[0]["presence"] for _, content in rig.server.sent] == [
        "online", "offline", "offline", "online",
    ]  # fmt: skip


def test_an_unchanged_user_is_pushed_again_before_the_other_side_forgets() -> None:
    """Peers turn silent users offline after 30 minutes (E:P-6)."""
    rig = Rig().start()
    rig.push()
    rig.wait(1_500 * 4)

    gaps = [later.sent_ms - sooner.sent_ms for sooner, later in zip(rig.seen, rig.seen[1:], strict=False)]
    assert len(gaps) >= 4
    assert all(0.6 * 1_500_000 <= gap <= 0.9 * 1_500_000 + 1_000 for gap in gaps)


def test_news_does_not_wait_in_the_line_of_refreshes() -> None:
    """A refresh has minutes of time, what a person does has none; the refresh then rides along."""
    rig = Rig().start()
    for number in range(100):
        rig.push(destination=ServerName(f"{number}.test"))
    rig.push()
    rig.wait(0.76 * 1_500)
    told = len(rig.server.sent)
    assert told < 2 * 101
    assert rig.outbound.idle()

    waiting = [s for s in rig.outbound.describe() if sum(seen.destination == s for seen in rig.seen) == 1]
    rig.push(CAROL, destination=waiting[-1])
    rig.wait(0.1)

    assert rig.seen[-1].destination == waiting[-1]
    assert sorted(rig.server.pushed()[-1]) == [ALICE, CAROL]


def test_a_refresh_nobody_has_a_right_to_opens_no_connection() -> None:
    """A refresh that is not needed costs nothing."""
    rig = Rig().start()
    rig.push()
    rig.wait(1)
    rig.engine.forbid(ALICE)
    rig.wait(1_500)
    assert len(rig.server.opened) == 1


def test_a_denied_destination_sleeps_and_keeps_what_waits() -> None:
    """A reload that denies a server ends pushes to it at once; grants stay and sleep (Z-9)."""
    rig = Rig().start()
    rig.outbound.reload(only(HERE))
    rig.push()
    rig.wait(60)
    assert (rig.server.opened, rig.outbound.idle()) == ([], True)
    assert rig.outbound.describe(THERE)[THERE].pending_users == 1

    rig.outbound.reload(only(THERE))
    rig.wait()

    assert rig.server.pushed() == [[ALICE]]


def test_a_destination_denied_while_we_connect_gets_nothing_and_loses_nothing() -> None:
    """What waits is kept for the day it is allowed again (Z-9)."""
    rig = Rig().start()
    connecting: Deferred[int] = Deferred()
    rig.server.reachable = connecting
    rig.push()
    rig.wait()
    rig.outbound.reload(only(HERE))
    connecting.callback(200)
    rig.wait(5)

    assert rig.server.sent == []
    assert rig.outbound.describe(THERE)[THERE].pending_users == 1


def test_stopping_cancels_what_is_in_flight_and_sends_no_more() -> None:
    """A clean stop ends soon, whatever a peer does."""
    rig = Rig().start()
    rig.server.outcomes = [Deferred()]
    rig.push()
    rig.wait()
    assert rig.outbound.in_flight() == 1

    result_of(rig.outbound.stopService())

    assert rig.server.closed
    rig.push()
    rig.wait(60)
    assert len(rig.server.sent) == 1
    assert rig.clock.getDelayedCalls() == []


def test_a_bug_of_ours_does_not_stop_a_destination() -> None:
    """It is logged, and tried again like any failure."""
    rig = Rig().start()
    rig.engine.composing = Deferred()
    rig.engine.composing.errback(ZeroDivisionError())
    rig.push()
    rig.wait(1)
    rig.engine.composing = Deferred()
    rig.engine.composing.callback(None)
    rig.wait(5)
    assert rig.server.pushed() == [[ALICE]]
