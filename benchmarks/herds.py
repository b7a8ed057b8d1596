"""Whether refreshes come in herds: the most transactions in any second, beside the mean.

The daemon's own engine, hub and outbound in virtual time: everybody idle for hours, then changing, one
transaction in a hundred failing, our own line down for a while, and a room of thousands.
"""

import argparse
from dataclasses import dataclass
from random import Random

from benchmarks.receivers import Manner, most_within
from benchmarks.report import Case, Measure, Report, check, latencies
from benchmarks.virtual import (
    HERE,
    HOUR_MS,
    MINUTE_MS,
    SECOND_MS,
    Probes,
    VirtualServer,
    destination,
    interest_of,
)
from fedpresence.engine.events import RoomMembersSet
from fedpresence.engine.settings import EngineSettings
from fedpresence.ids import RoomID, UserID
from fedpresence.outbound.service import OutboundSettings

REFRESH_MS = 25 * MINUTE_MS  # presence.refresh_interval
EXPIRY_MS = 30 * MINUTE_MS  # federation.remote_timeout over there
BUDGET = OutboundSettings(HERE).max_transactions_per_second
CEILING = 2 * BUDGET  # in any one second: what a second allows, and a second's worth that was saved
CHANGE_EVERY_MS = 10 * MINUTE_MS
AWAY_MS = 10 * MINUTE_MS


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--destinations", type=int, default=1_000)
    parser.add_argument("--each", type=int, default=10, help="destinations that watch a user")
    parser.add_argument("--hours", type=int, default=6, help="of quiet")
    parser.add_argument("--room", type=int, default=1_000, help="local users in it; each destination has two")
    parser.add_argument("--seed", type=int, default=1)


def run(arguments: argparse.Namespace) -> Report:
    """Measure."""
    size = _Size(arguments.users, arguments.destinations, arguments.each, arguments.seed)
    hours, room = arguments.hours, arguments.room
    if arguments.smoke:
        size, hours, room = _Size(100, 20, 3, arguments.seed), 1, 40
    cases = (*_quiet(size, hours), _failing(size), _churn(size), _outage(size), _room(size, room))
    parameters = {
        "users": size.users,
        "destinations": size.destinations,
        "each": size.each,
        "hours": hours,
        "room": room,
        "budget": BUDGET,
        "seed": size.seed,
    }
    return Report("herds", parameters, cases)


@dataclass(frozen=True, slots=True)
class _Size:
    users: int
    destinations: int
    each: int
    seed: int

    def server(self, settings: EngineSettings | None = None) -> VirtualServer:
        """Booted, everybody connected and idle."""
        random = Random(self.seed)
        interest = interest_of(self.users, self.destinations, self.each, random)
        server = VirtualServer(interest, random, settings=settings)
        server.boot()
        return server


def _quiet(size: _Size, hours: int) -> tuple[Case, ...]:
    server = size.server()
    boot = _Window(server)
    server.run_for(REFRESH_MS)
    first = boot.case("the first 25 minutes after a boot, everybody idle")
    windows = []
    rest = _Window(server)
    for _ in range(hours * HOUR_MS // REFRESH_MS):
        window = _Window(server)
        server.run_for(REFRESH_MS)
        windows.append(window.case("25 minutes, everybody idle"))
    worst = max(windows, key=lambda case: case.measures[0].value)
    _check_refreshed(server)
    return first, worst, rest.case(f"{hours} hours, everybody idle", Measure("windows", len(windows), ""))


def _failing(size: _Size) -> Case:
    server = size.server()
    server.run_for(REFRESH_MS)
    server.receivers.failing_share = 0.01
    window = _Window(server)
    server.run_for(4 * REFRESH_MS)
    _check_refreshed(server)
    return window.case("100 minutes, idle, one try in a hundred fails")


def _churn(size: _Size) -> Case:
    server = size.server()
    server.run_for(REFRESH_MS)
    server.keep_changing(CHANGE_EVERY_MS)
    server.run_for(5 * MINUTE_MS)
    changes = server.changes
    window = _Window(server)
    server.run_for(REFRESH_MS)
    changes = server.changes - changes
    case = window.case(
        "25 minutes, each user changes every 10 minutes",
        Measure("changes", changes / (REFRESH_MS / 1000), "/s"),
        Measure("pushes waiting at the end", server.waiting()[0], ""),
    )
    server.stop_changing()
    server.run_for(10 * MINUTE_MS)
    _check_refreshed(server)
    return case


def _outage(size: _Size) -> Case:
    server = size.server()
    server.run_for(REFRESH_MS)
    server.keep_changing(CHANGE_EVERY_MS)
    server.receivers.behave_everywhere(Manner.REFUSES)
    server.run_for(AWAY_MS)
    server.stop_changing()
    server.run_for(6 * MINUTE_MS)  # whoever changed is idle again
    server.receivers.behave_everywhere(None)
    window = _Window(server)
    back_ms = server.now_ms()
    told_ms = _until_told(server, 5 * MINUTE_MS)
    server.max_gap_ms = 0  # who expired meanwhile is told by now
    server.run_for(back_ms + REFRESH_MS - server.now_ms())
    case = window.case(
        "25 minutes after every destination was away for 16", Measure("all told after", told_ms / 1000, "s")
    )
    echo = _Window(server)
    server.run_for(4 * REFRESH_MS)
    _check_refreshed(server)
    return Case(case.name, (*case.measures, Measure("most in a second, 100 minutes on", echo.most(), "")))


def _room(size: _Size, room: int) -> Case:
    """A room of thousands; meanwhile users whom nobody there shares it with change, and are watched."""
    members = 2 * (room + 2 * size.destinations)
    server = size.server(EngineSettings(HERE, max_room_members=members))
    server.run_for(REFRESH_MS)
    ours = server.users[:room]
    theirs = [UserID(f"@member{n}:{destination(d)}") for d in range(size.destinations) for n in range(2)]
    watched = Probes(server, server.users[room:])
    window = _Window(server)
    began_ms = server.now_ms()
    server.submit(RoomMembersSet(RoomID("!all:here.test"), frozenset([*ours, *theirs])))
    watched.start()
    pushes = room * size.destinations
    while server.waiting()[0] > len(watched.waiting) * size.each:
        server.run_for(SECOND_MS)
        check(server.now_ms() - began_ms < HOUR_MS, "a room of thousands never came to an end")
    told_ms = server.now_ms() - began_ms
    watched.stop()
    server.run_for(10 * MINUTE_MS)
    heard = server.receivers.heard
    missing = sum(u not in heard[destination(d)] for u in ours for d in range(size.destinations))
    check(not missing, f"{missing} of {pushes} introductions did not arrive")
    _check_refreshed(server)
    return window.case(
        f"a room of {len(ours) + len(theirs)} joins",
        Measure("pushes", pushes, ""),
        Measure("all told after", told_ms / 1000, "s"),
        *latencies("change of somebody else", watched.taken_s),
        after_ms=told_ms,
    )


class _Window:
    """What leaves from the moment it is made."""

    def __init__(self, server: VirtualServer) -> None:
        self._server = server
        self._began_ms = server.now_ms()
        self._transactions = len(server.transactions_ms)
        self._connections = len(server.receivers.connected_ms)

    def most(self) -> int:
        """The most transactions in any second."""
        return most_within(self._server.transactions_ms[self._transactions :])

    def case(self, name: str, *more: Measure, after_ms: int | None = None) -> Case:
        """The numbers; over `after_ms` where not all of the time counts."""
        server = self._server
        length_ms = server.now_ms() - self._began_ms if after_ms is None else after_ms
        end_ms = self._began_ms + length_ms
        transactions = [ms for ms in server.transactions_ms[self._transactions :] if ms <= end_ms]
        connections = [ms for ms in server.receivers.connected_ms[self._connections :] if ms <= end_ms]
        most, mean = most_within(transactions), 1000 * len(transactions) / length_ms
        check(most <= CEILING, f"{most} transactions in a second, where {CEILING} is the most")
        dense = most_within(transactions, 10 * SECOND_MS)
        check(dense <= 11 * BUDGET, f"{dense} transactions in ten seconds, where {11 * BUDGET} is the most")
        return Case(
            name,
            (
                Measure("most transactions in a second", most, ""),
                Measure("mean", mean, "/s"),
                Measure("transactions", len(transactions), ""),
                Measure("most connections opened in a second", most_within(connections), ""),
                Measure("longest a user went untold, so far", server.max_gap_ms / MINUTE_MS, "min"),
                *more,
            ),
        )


def _until_told(server: VirtualServer, at_most_ms: int) -> int:
    began_ms = server.now_ms()
    while server.waiting()[0] or server.behind():
        check(server.now_ms() - began_ms < at_most_ms, f"{server.behind()} pairs are behind")
        server.run_for(SECOND_MS)
    return server.now_ms() - began_ms


def _check_refreshed(server: VirtualServer) -> None:
    """Every user was told again before the interval was over: nobody expires over there."""
    oldest_ms = max(server.max_gap_ms, server.oldest_word_ms())
    check(oldest_ms < EXPIRY_MS, f"a user expired: not told for {oldest_ms / MINUTE_MS:.1f} min")
    check(oldest_ms < REFRESH_MS, f"a user was not told for {oldest_ms / MINUTE_MS:.1f} min")
    check(not server.behind(), f"{server.behind()} pairs are behind")
