from twisted.internet.task import Clock

from fedpresence.clock import now_ms
from fedpresence.testing.rig.clock import QuietClock, ServerClock, TurnableClock

START_MS = 1_700_000_000_123


def test_every_millisecond_reads_as_itself() -> None:
    """A float's error would show a deadline as not yet due, and it would be asked for again for ever."""
    clock = TurnableClock(START_MS)

    for later_ms in range(5000):
        clock.turn_to(START_MS + later_ms)
        assert now_ms(clock) == START_MS + later_ms


def test_a_delay_in_whole_milliseconds_is_due_exactly_then() -> None:
    """0.3 s is not a number a float can hold; it must not become 301 ms."""
    for delay_ms in range(2000):
        clock = TurnableClock(START_MS)
        clock.callLater(delay_ms / 1000, lambda: None)
        assert clock.next_due_ms() == START_MS + delay_ms


def test_calls_are_made_in_the_order_of_their_moments_and_then_of_their_requests() -> None:
    """What happens in a rig must not depend on how a heap sorts equal moments."""
    clock, made = TurnableClock(START_MS), list[str]()
    clock.callLater(0.002, made.append, "later")
    clock.callLater(0.001, made.append, "first")
    clock.callLater(0.001, made.append, "second")

    assert not clock.run_due() and made == []
    clock.turn_to(START_MS + 1)
    assert clock.run_due() and made == ["first", "second"]
    assert clock.next_due_ms() == START_MS + 2


def test_a_call_asked_for_while_calling_waits_for_the_next_round() -> None:
    """Something that asks for itself again without delay must not keep the rig from its sockets."""
    clock, made = TurnableClock(START_MS), list[int]()

    def again() -> None:
        made.append(1)
        clock.callLater(0, again)

    clock.callLater(0, again)

    assert clock.run_due() and made == [1]
    assert clock.run_due() and made == [1, 1]


def test_a_cancelled_call_is_neither_made_nor_due() -> None:
    """The rig stops at every due moment: thousands of cancelled timeouts must cost nothing."""
    clock = TurnableClock(START_MS)
    timers = [clock.callLater(60, lambda: None) for _ in range(5000)]

    for timer in timers:
        assert timer.active()
        timer.cancel()
        timer.cancel()

    assert clock.next_due_ms() is None
    assert len(clock._timers) < 2000


def test_a_call_without_delay_is_told_of_at_once() -> None:
    """Nobody turns the clock for what is due now."""
    told = list[bool]()
    clock = TurnableClock(START_MS, lambda: told.append(True))

    clock.callLater(0.001, lambda: None)
    assert told == []
    clock.callLater(0, lambda: None)
    assert told == [True]


def test_a_servers_wrong_clock_is_wrong_by_its_offset_and_its_delays_are_right() -> None:
    """A clock that is an hour ahead runs as fast as any other."""
    base, made = TurnableClock(START_MS), list[int]()
    clock = ServerClock(base, 3_600_000)

    clock.callLater(1, lambda: made.append(now_ms(clock)))
    base.turn_to(START_MS + 1000)
    base.run_due()

    assert made == [START_MS + 3_601_000]


def test_a_stopped_servers_calls_are_never_made() -> None:
    """After a kill nothing of the old run may go on."""
    base, made = Clock(), list[str]()
    clock = ServerClock(base)
    clock.callLater(1, made.append, "before")
    clock.stop()
    clock.callLater(1, made.append, "after")

    base.advance(10)

    assert made == []


def test_a_question_waits_no_longer_than_anything_can_arrive() -> None:
    """Whoever asks once, and turns the clock himself, would wait for himself."""
    base, made = TurnableClock(START_MS), list[str]()
    waiting = list[object]()
    clock = QuietClock(base, waiting.append)
    clock.callLater(1, made.append, "over")
    answered = clock.callLater(1, made.append, "answered before")
    answered.cancel()

    for quiet in waiting:
        assert callable(quiet)
        quiet()
    base.turn_to(START_MS + 1000)
    base.run_due()

    assert made == ["over"]


def test_a_call_can_be_put_off_as_twisted_puts_off_its_timeouts() -> None:
    """Every connection's idle timeout is reset with each byte: the old moment must not count."""
    clock, made = TurnableClock(START_MS), list[int]()
    timer = clock.callLater(1, lambda: made.append(clock.now_ms))

    for _ in range(3000):
        timer.reset(2)
    clock.turn_to(START_MS + 1999)
    clock.run_due()
    assert made == [] and len(clock._timers) < 2000

    clock.turn_to(START_MS + 2000)
    clock.run_due()
    timer.reset(1)
    assert made == [START_MS + 2000] and clock.next_due_ms() is None
