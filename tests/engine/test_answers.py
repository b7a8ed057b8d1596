import pytest

from fedpresence.engine.answers import Answers
from fedpresence.engine.effects import ForgetAnswer, SaveAnswer, SendPush
from fedpresence.engine.settings import DAY_MS, HOUR_MS
from fedpresence.engine.world import Turn
from fedpresence.ids import ServerName
from fedpresence.storage.store import Stored
from fedpresence.testing.builders import (
    ALICE,
    BOB,
    NOW_MS,
    THERE,
    a_poll,
    a_push,
    a_put,
    a_transaction,
    an_engine,
    deliver,
    drop,
    grant,
    pass_time,
    restarted,
    subscribe,
)

T = NOW_MS


def test_the_same_transaction_again_changes_nothing() -> None:
    """F:R-1: a sender that missed our 200 repeats it, byte for byte."""
    engine = an_engine()
    grant(engine)
    transaction = a_transaction(a_poll())

    first = deliver(engine, transaction, T)
    again = deliver(engine, transaction, T + 60_000)

    assert any(isinstance(effect, SendPush) for effect in first)
    assert again == ()


def test_another_origin_may_use_the_same_id() -> None:
    """F:R-1: ids are the origin's own; nobody can use up another's."""
    engine = an_engine()
    elsewhere = ServerName("elsewhere.test")

    deliver(engine, a_transaction(origin=elsewhere, txn_id="1"), T)
    effects = deliver(engine, a_transaction(txn_id="1"), T)

    assert effects == (SaveAnswer(THERE, "1", T, T),)


def test_a_transaction_taken_before_a_restart_is_known_after_it() -> None:
    """F:R-1, Z-6: what is stored is loaded, and the newest time with it."""
    stored = Stored(
        users=[(ALICE, False)],
        answers=[SaveAnswer(THERE, "1", T - HOUR_MS, T - HOUR_MS)],
        newest_origin_ts={THERE: T - HOUR_MS},
    )
    engine = restarted(stored)

    assert deliver(engine, a_transaction(txn_id="1"), T) == ()


@pytest.mark.parametrize(("late_ms", "counts"), [(DAY_MS, True), (DAY_MS + 1, False)])
def test_a_transaction_more_than_a_day_behind_its_origins_newest_is_skipped(
    late_ms: int, counts: bool
) -> None:
    """Z-6: an old drop, replayed when its answer is forgotten, must not end a grant."""
    engine = an_engine()
    grant(engine)
    now_ms = T + 3 * DAY_MS
    deliver(engine, a_push(), now_ms)

    effects = deliver(engine, drop(now_ms=now_ms - late_ms), now_ms)

    assert bool(engine.observers_of(ALICE)) is not counts
    assert any(isinstance(effect, SaveAnswer) for effect in effects)


def test_presence_of_a_replayed_transaction_is_skipped_too() -> None:
    """Z-6: nobody is put back to where they were yesterday."""
    engine = an_engine()
    subscribe(engine)
    deliver(engine, a_push(status_msg="Today"), T)

    old = a_transaction(a_push(status_msg="Yesterday"), origin_server_ts=T - DAY_MS - 1)
    deliver(engine, old, T)

    view = engine.view(ALICE, BOB, T)
    assert view is not None
    assert view.status_msg == "Today"


def test_a_time_far_in_the_future_shuts_nobody_out() -> None:
    """Z-6: the newest time is clamped to an hour from now; the origin's clock may be mended later."""
    engine = an_engine()
    grant(engine)
    deliver(engine, a_transaction(origin_server_ts=T + 365 * DAY_MS), T)

    deliver(engine, drop(now_ms=T + HOUR_MS - DAY_MS), T)

    assert engine.observers_of(ALICE) == ()


def test_a_stored_time_in_the_future_shuts_nobody_out() -> None:
    """Z-21, Z-6: what was saved under a wrong clock is clamped as it is loaded."""
    stored = Stored(
        users=[(ALICE, False)],
        answers=[SaveAnswer(THERE, "1", T + 9 * DAY_MS, T + 9 * DAY_MS)],
        newest_origin_ts={THERE: T + 9 * DAY_MS},
    )
    engine = restarted(stored)
    grant(engine)

    deliver(engine, drop(), T)
    forgotten = [effect for _, effects in pass_time(engine, T + 2 * DAY_MS) for effect in effects]

    assert engine.observers_of(ALICE) == ()
    assert ForgetAnswer(THERE, "1") in forgotten


def test_answers_are_forgotten_after_a_day() -> None:
    """Z-6: also those of an origin that fell silent."""
    engine = an_engine()
    engine.receive(a_transaction(txn_id="1"), T)

    forgotten = [
        (now_ms, effect)
        for now_ms, effects in pass_time(engine, T + 3 * DAY_MS)
        for effect in effects
        if isinstance(effect, ForgetAnswer)
    ]

    assert [effect for _, effect in forgotten] == [ForgetAnswer(THERE, "1")]
    assert DAY_MS < forgotten[0][0] - T <= DAY_MS + HOUR_MS
    assert engine.next_deadline_ms() is None


def test_at_most_a_thousand_answers_are_kept_for_an_origin() -> None:
    """Z-6: no peer fills our memory or our disk with transaction ids."""
    answers = Answers()
    turn = Turn(T)

    for number in range(1001):
        answers.take(turn, THERE, str(number), T)

    assert [effect for effect in turn.effects if isinstance(effect, ForgetAnswer)] == [
        ForgetAnswer(THERE, "0")
    ]
    assert not answers.has(THERE, "0")
    assert answers.has(THERE, "1")
    assert answers.has(THERE, "1000")


def test_the_newest_times_are_bounded_and_the_most_silent_origin_gives_way() -> None:
    """Whoever owns a domain owns any number of server names."""
    answers = Answers(max_origins=2)
    one, two, three = (ServerName(f"{name}.test") for name in ("one", "two", "three"))
    for origin in (one, two, one, three):
        answers.take(Turn(T), origin, "t", T)

    assert not answers.take(Turn(T), one, "u", T - DAY_MS - 1)
    assert answers.take(Turn(T), two, "u", T - DAY_MS - 1)


def test_a_skipped_transaction_asks_for_nothing() -> None:
    """Nothing waits in the inbox for it, so nobody is woken."""
    engine = an_engine()
    engine.receive(a_transaction(), T)
    engine.receive(a_put(), T)

    effects = engine.receive(a_transaction(a_push(), origin_server_ts=T - 2 * DAY_MS), T)

    assert [type(effect) for effect in effects] == [SaveAnswer]


def test_many_names_remember_no_more_than_one_may() -> None:
    """A server may own any number of names, and a thousand transaction IDs of each are some hundred KB."""
    answers, turn = Answers(max_answers=5), Turn(T)
    busy = ServerName("busy.test")
    answers.restore(SaveAnswer(ServerName("silent.test"), "1", T - HOUR_MS, T - HOUR_MS), T)

    for number in range(4):
        answers.take(turn, busy, str(number), T)
        answers.take(turn, ServerName(f"{number}.evil.test"), "1", T)

    assert [effect for effect in turn.effects if isinstance(effect, ForgetAnswer)] == [
        ForgetAnswer(ServerName("silent.test"), "1"),
        ForgetAnswer(ServerName("0.evil.test"), "1"),
        ForgetAnswer(ServerName("1.evil.test"), "1"),
        ForgetAnswer(ServerName("2.evil.test"), "1"),
    ], "whoever goes on sending is remembered"
    assert all(answers.has(busy, str(number)) for number in range(4))
    assert answers.has(ServerName("3.evil.test"), "1")


def test_what_an_older_version_remembered_is_forgotten_little_by_little() -> None:
    """A start on millions must not hold up its first transaction."""
    answers = Answers(max_answers=5)
    for number in range(1_000):
        answers.restore(SaveAnswer(ServerName(f"{number}.test"), "1", T, T), T)

    forgotten = []
    for number in range(12):
        answers.take(turn := Turn(T), THERE, str(number), T)
        forgotten.append(sum(isinstance(effect, ForgetAnswer) for effect in turn.effects))

    assert max(forgotten) <= 100
    assert 1_000 + 12 - sum(forgotten) == 5
