from dataclasses import dataclass

from fedpresence.engine.effects import SendPush, TellObservers, Urgency
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import Event
from fedpresence.engine.outgoing import Push
from fedpresence.engine.presence import BUSY, OFFLINE, ONLINE, UNAVAILABLE, View
from fedpresence.testing.builders import (
    ALICE,
    NOW_MS,
    a_put,
    a_stream,
    an_activity,
    an_end,
    an_engine,
    pass_time,
)
from tests.engine.destination import Destination, a_watched_engine


@dataclass(frozen=True)
class Row:
    """A row of P:8.5: at `at_ms` this happens, and since the row before exactly `told` went out."""

    at_ms: int
    what: str
    events: tuple[Event, ...] = ()
    told: tuple[Push, ...] = ()
    view: View | None = None


def _push(state: str, ago_ms: int, message: str | None = None) -> Push:
    states = {
        "active": (ONLINE, True),
        "online": (ONLINE, False),
        "idle": (UNAVAILABLE, False),
        "off": (OFFLINE, False),
    }
    presence, active = states[state]
    return Push(ALICE, presence, ago_ms, message, active)


MESSAGE = an_activity()
S = 1000

TIMELINE = (
    Row(0, "PUT online (was offline)", (a_put(), a_stream()), (_push("active", 0),)),
    Row(30 * S, "message", (MESSAGE,)),
    Row(60 * S, "the timer of the first moment: she was active since"),
    Row(61 * S, "a fixed update every 60 s would be a bug"),
    Row(80 * S, "GET by a peer: the true value, and no update", view=View(ONLINE, 50 * S, None, True)),
    Row(85 * S, "message", (MESSAGE,)),
    Row(145 * S - 1, "still active, by a millisecond", view=View(ONLINE, 60 * S - 1, None, True)),
    Row(145 * S, "60 s without activity", told=(_push("online", 60 * S),), view=View(ONLINE, 60 * S)),
    Row(200 * S, "message", (MESSAGE,), (_push("active", 0),)),
    *(Row(s * S, "messages every 10 s", (MESSAGE,)) for s in (210, 220, 230, 240, 250, 259)),
    Row(262 * S, "PUT online, a new message", (a_put(status_msg="Tea"),), (_push("active", 0, "Tea"),)),
    Row(322 * S - 1, "still active"),
    Row(322 * S, "60 s without activity", told=(_push("online", 60 * S, "Tea"),)),
    *(Row(s * S, "only /sync calls", (an_end(), a_stream(ONLINE))) for s in range(323, 562, 29)),
    Row(562 * S, "idle for exactly 300 s: not yet", view=View(ONLINE, 300 * S, "Tea")),
    Row(
        562 * S + 1,
        "idle for more than 300 s",
        told=(_push("idle", 300 * S + 1, "Tea"),),
        view=View(UNAVAILABLE, 300 * S + 1, "Tea"),
    ),
    Row(600 * S, "message", (MESSAGE,), (_push("active", 0, "Tea"),)),
    Row(610 * S, "PUT unavailable, no message", (a_put(UNAVAILABLE),), (_push("idle", 10 * S),)),
    Row(620 * S, "typing", (MESSAGE,), (_push("active", 0),)),
    Row(640 * S, "the client disconnects", (an_end(),)),
    Row(670 * S, "no stream for exactly 30 s: not yet", view=View(ONLINE, 50 * S, None, True)),
    Row(
        670 * S + 1,
        "no stream for more than 30 s",
        told=(_push("off", 50 * S + 1),),
        view=View(OFFLINE, 50 * S + 1),
    ),
    Row(30 * 24 * 3600 * S, "nothing ever after (P:O-5)"),
)


def test_the_worked_timeline_goes_out_row_by_row() -> None:
    """P:8.5 is the contract with every homeserver that watches: these updates, then, and no others."""
    there = a_watched_engine(an_engine())

    for row in TIMELINE:
        there.at(row.at_ms, *row.events)

        what = f"{row.at_ms / 1000} s: {row.what}"
        assert there.news() == [(row.at_ms, push) for push in row.told], what
        if row.view is not None:
            assert there.engine.view(ALICE, ALICE, NOW_MS + row.at_ms) == row.view, what


def test_local_observers_are_told_at_the_very_moments_other_servers_are() -> None:
    """Y-4: a waiting client wakes for announced changes and for nothing else."""
    there = a_watched_engine(an_engine())

    for row in TIMELINE:
        effects = there.at(row.at_ms, *row.events)

        pushed = [effect for effect in effects if isinstance(effect, SendPush)]
        told = [effect for effect in effects if isinstance(effect, TellObservers)]
        assert len(pushed) == len(told) == len(row.told)
        assert all(effect.observers == (ALICE,) for effect in told)


def test_the_case_of_the_brief_is_three_updates() -> None:
    """One message at 30 s moves the end of the active time, and is no news by itself."""
    there = a_watched_engine(an_engine())

    there.at(0, a_put(), a_stream())
    there.at(30 * S, MESSAGE)
    there.at(61 * S)
    there.at(3600 * S)

    assert there.news() == [
        (0, _push("active", 0)),
        (90 * S, _push("online", 60 * S)),
        (330 * S + 1, _push("idle", 300 * S + 1)),
    ]


def test_a_user_who_idles_for_hours_is_no_news_and_needs_refreshing() -> None:
    """The refresh belongs to each destination's queue (decision 14): the engine only says who needs it."""
    there = a_watched_engine(an_engine())
    there.at(0, a_put(), a_stream())
    there.at(400 * S)
    there.news()

    effects = there.at(8 * 3600 * S)

    assert effects == ()
    assert there.news() == []
    assert there.engine.needs_refresh(there.server, ALICE, there.now_ms)


def test_an_update_made_late_says_what_is_true_as_it_leaves() -> None:
    """P:M-2, A-5: a destination that comes back after minutes is told today's state with today's age."""
    there = a_watched_engine(an_engine())
    there.at(0, a_put(), a_stream())
    there.at(50 * S, MESSAGE)

    from_queue = a_late_push(there.engine, NOW_MS + 70 * S)
    after_the_minute = a_late_push(there.engine, NOW_MS + 110 * S)

    assert from_queue == _push("active", 20 * S)
    assert after_the_minute == _push("online", 60 * S)


def a_late_push(engine: Engine, now_ms: int) -> Push:
    destination = Destination(engine)
    destination.take((SendPush((destination.server,), ALICE, Urgency.TIMER),), now_ms)
    ((_, push),) = destination.news()
    return push


def test_only_an_online_user_is_ever_called_active() -> None:
    """P:A-1: the flag beside any other state would mean nothing, and strict servers refuse it."""
    there = a_watched_engine(an_engine())

    there.at(0, a_put(), a_stream())
    there.at(1 * S, a_put(BUSY))
    there.at(2 * S, a_put(UNAVAILABLE))

    assert [push.currently_active for _, push in there.news()] == [True, False, False]


def test_waking_the_engine_early_does_nothing() -> None:
    """Shells may wake it for any reason; only the moment counts."""
    there = a_watched_engine(an_engine())
    there.at(0, a_put(), a_stream())
    due = there.engine.next_deadline_ms()

    moments = pass_time(there.engine, NOW_MS + 59_999)

    assert moments == []
    assert there.engine.next_deadline_ms() == due == NOW_MS + 60_000
