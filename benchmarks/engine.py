"""What deciding costs: the engine alone, in this process, without a server.

Activity of users who are currently active (nothing is to be told), one change that thousands of
destinations must hear of, until it waits in their queues, and time passing over a million users.
"""

import argparse
import gc
import os
import time
from collections.abc import Callable
from random import Random

from twisted.internet.defer import Deferred

from benchmarks.meter import memory_mib
from benchmarks.report import Case, Measure, Report, check
from fedpresence.engine.effects import SendPush
from fedpresence.engine.engine import Engine
from fedpresence.engine.events import Activity, PresenceSet, Started, TimePassed, UserAdded
from fedpresence.engine.pairs import Pairs
from fedpresence.engine.presence import PresenceState
from fedpresence.engine.settings import EngineSettings
from fedpresence.engine.subscription import ObservedRow, ObservedStage
from fedpresence.ids import DeviceID, ServerName, UserID
from fedpresence.outbound.service import Outbound, OutboundSettings
from fedpresence.outbound.tools import Decisions, OpenLink
from fedpresence.storage.store import Stored

HERE = ServerName("here.test")
ALICE = UserID(f"@alice:{HERE}")
PHONE = DeviceID("PHONE")
NOW_MS = 1_700_000_000_000
FAR_BUDGET = 1_000_000  # transactions a second: not what is measured


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument("--events", type=int, default=300_000, help="of activity")
    parser.add_argument("--active-users", type=int, default=10_000)
    parser.add_argument("--destinations", type=int, default=10_000)
    parser.add_argument("--sleeping-users", type=int, default=1_000_000)


def run(arguments: argparse.Namespace) -> Report:
    """Measure."""
    events, active = arguments.events, arguments.active_users
    destinations, sleeping = arguments.destinations, arguments.sleeping_users
    if arguments.smoke:
        events, active, destinations, sleeping = 1000, 10, 50, 1000
    cases = (_activity(events, active), _fan_out(destinations), _time_passing(sleeping))
    parameters = {
        "events": events,
        "active_users": active,
        "destinations": destinations,
        "sleeping_users": sleeping,
    }
    return Report("engine", parameters, cases)


# --- activity --------------------------------------------------------------------------------


def _activity(events: int, users: int) -> Case:
    engine = _an_engine()
    names = [UserID(f"@user{number}:{HERE}") for number in range(users)]
    for user_id in names:
        engine.receive(UserAdded(user_id), NOW_MS)
        engine.receive(Activity(user_id, PHONE), NOW_MS)
    reports = [Activity(names[number % users], PHONE) for number in range(events)]
    told = 0

    def act() -> None:
        nonlocal told
        for number, event in enumerate(reports):  # all within ten seconds: nobody's minute ends
            told += len(engine.receive(event, NOW_MS + number * 10_000 // events))

    cpu_s = _cpu_s(act)
    check(told == 0, f"{told} effects of activity of users who are currently active")
    return Case(
        "activity while currently active",
        (Measure("events", events / cpu_s, "/s"), Measure("CPU per event", 1e6 * cpu_s / events, "µs")),
    )


# --- fan-out ---------------------------------------------------------------------------------


class _StillTimer:
    """A timer that never comes."""

    def cancel(self) -> None:
        """It never was to be."""

    def active(self) -> bool:
        """As if it waited."""
        return True

    def getTime(self) -> float:
        """Some day."""
        return float("inf")

    def reset(self, secondsFromNow: float) -> None:
        """As before."""


class _StillClock:
    """Time that stands: a reactor's timers cost next to nothing, those of Twisted's `task.Clock` do not."""

    def seconds(self) -> float:
        """Always the same moment."""
        return NOW_MS / 1000

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> _StillTimer:
        """Never."""
        return _StillTimer()


class _Nowhere:
    """A client whose connections never stand: everything stays queued."""

    def kept(self, destination: ServerName) -> None:
        """None."""

    async def open(self, destination: ServerName) -> OpenLink:
        """Wait for ever, or until cancelled."""
        never: Deferred[OpenLink] = Deferred()
        return await never

    async def close(self) -> None:
        """Nothing is open."""


def _fan_out(destinations: int) -> Case:
    engine = _an_engine()
    engine.load(
        Stored(
            users=[(ALICE, False)],
            pairs=Pairs(
                observed_rows=(
                    ObservedRow(
                        UserID(f"@bob:there{number}.test"), ALICE, ObservedStage.GRANTED, NOW_MS, NOW_MS
                    )
                    for number in range(destinations)
                )
            ),
        ),
        NOW_MS,
    )
    engine.receive(Started(), NOW_MS)
    outbound = Outbound(
        _StillClock(),
        _Nowhere(),
        Decisions(
            settling=lambda: None,
            compose=engine.compose,
            rights=engine.rights,
            needs_refresh=lambda destination, user_id: engine.needs_refresh(destination, user_id, NOW_MS),
            submit=lambda event: Deferred(),
        ),
        OutboundSettings(HERE, max_transactions_per_second=FAR_BUDGET),
        Random(1),
    )
    outbound.startService()
    gc.collect()
    gc.freeze()  # as the daemon does before its first change
    first = _decided_and_queued(engine, outbound, PresenceState.ONLINE, destinations)
    second = _decided_and_queued(engine, outbound, PresenceState.UNAVAILABLE, destinations)
    waiting = sum(status.pending_users for status in outbound.describe().values())
    check(waiting == destinations, f"{waiting} of {destinations} destinations have it in their queue")
    outbound.stopService()
    gc.unfreeze()
    return Case(f"one change, {destinations} destinations", (*first, *second))


def _decided_and_queued(
    engine: Engine, outbound: Outbound, state: PresenceState, destinations: int
) -> tuple[Measure, ...]:
    event = PresenceSet(ALICE, PHONE, state, None)
    pushes: list[SendPush] = []

    def decide() -> None:
        pushes.extend(e for e in engine.receive(event, NOW_MS) if isinstance(e, SendPush))

    def queue() -> None:
        for push in pushes:
            outbound.enqueue(push)
        outbound.queues()  # whatever came is in them

    decided_s, queued_s = _cpu_s(decide), _cpu_s(queue)
    told = sum(len(push.destinations) for push in pushes)
    check(told == destinations, f"{told} pushes for {destinations} destinations")
    which = "first" if state is PresenceState.ONLINE else "again"
    return (
        Measure(f"decided, {which}", 1000 * decided_s, "ms"),
        Measure(f"queued, {which}", 1000 * queued_s, "ms"),
        Measure(f"per destination, {which}", 1e6 * (decided_s + queued_s) / destinations, "µs"),
    )


# --- time ------------------------------------------------------------------------------------


def _time_passing(users: int) -> Case:
    """Everybody was active within the last minute; nobody is, but for one, who falls idle."""
    engine = _an_engine()
    before_mib = memory_mib(os.getpid())
    names = [UserID(f"@user{number}:{HERE}") for number in range(users)]
    for number, user_id in enumerate(names):
        engine.receive(PresenceSet(user_id, PHONE, PresenceState.OFFLINE, None), NOW_MS)
        if number % 2:  # half of them wait for nothing, half will be idle some day
            engine.receive(PresenceSet(user_id, PHONE, PresenceState.UNAVAILABLE, None), NOW_MS + 2)
    held_mib = memory_mib(os.getpid()) - before_mib
    engine.receive(PresenceSet(ALICE, PHONE, PresenceState.UNAVAILABLE, None), NOW_MS)
    due_ms = engine.next_deadline_ms()
    check(due_ms is not None and due_ms > NOW_MS, "somebody must be due some day")
    assert due_ms is not None
    times = 1000

    def nothing() -> None:
        for _ in range(times):
            check(not engine.receive(TimePassed(), NOW_MS + 2), "nothing was due")

    idle_s = _cpu_s(nothing) / times
    began = time.process_time()
    effects = engine.receive(TimePassed(), due_ms)
    due_s = time.process_time() - began
    check(bool(effects), "Alice's moment came and nothing was told")
    return Case(
        f"time passes over {users} users",
        (
            Measure("nothing is due", 1e6 * idle_s, "µs"),
            Measure("one user is due", 1e6 * due_s, "µs"),
            Measure("memory per user", held_mib * 1024**2 / users, "bytes"),
        ),
    )


def _an_engine() -> Engine:
    return Engine(EngineSettings(HERE), NOW_MS)


def _cpu_s(work: Callable[[], None]) -> float:
    began = time.process_time()
    work()
    return max(1e-9, time.process_time() - began)
