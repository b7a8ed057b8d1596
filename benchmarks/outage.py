"""What destinations cost that are away for a week: memory, pushes owed, connections, in virtual time.

All of them, while all users go on changing; then all are back at once and get everything once.
"""

import argparse
import gc
import os
import sys
from collections.abc import Iterable
from random import Random

from benchmarks.meter import memory_mib
from benchmarks.receivers import Manner, most_within
from benchmarks.report import Case, Measure, Report, check
from benchmarks.virtual import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    SECOND_MS,
    VirtualServer,
    destination,
    interest_of,
)
from fedpresence.engine.presence import Published

TRIES_FIRST_DAY, TRIES_LATER_DAYS = 2_000, 200  # connections a destination: what decision 15 comes to


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--destinations", type=int, default=100)
    parser.add_argument("--each", type=int, default=10, help="destinations that watch a user")
    parser.add_argument("--days", type=int, default=7)
    parser.add_argument("--change-hours", type=float, default=6, help="each user changes that often")
    parser.add_argument("--seed", type=int, default=1)


def run(arguments: argparse.Namespace) -> Report:
    """Measure."""
    users, destinations, each, days = (
        arguments.users,
        arguments.destinations,
        arguments.each,
        arguments.days,
    )
    every_ms = arguments.change_hours * HOUR_MS
    if arguments.smoke:
        users, destinations, each, days, every_ms = 60, 5, 3, 2, 4 * HOUR_MS
    random = Random(arguments.seed)
    server = VirtualServer(interest_of(users, destinations, each, random), random)
    server.boot()
    server.keep_changing(every_ms)
    server.run_for(8 * HOUR_MS if users > 1000 else HOUR_MS)
    memory = _Memory(server)
    cases = [Case("before", memory.measures())]

    for number in range(destinations):
        server.receivers.behave(destination(number), Manner.REFUSES if number % 2 else Manner.SILENT)
    for day in range(1, days + 1):
        cases.append(_day(server, day, destinations, memory))
    server.stop_changing()
    server.run_for(10 * MINUTE_MS)  # whoever changed is idle again

    cases.append(_back(server, destinations))
    server.run_for(2 * HOUR_MS)
    check(not server.behind(), f"{server.behind()} pairs are behind")
    server.keep_changing(every_ms)
    server.run_for(8 * HOUR_MS if users > 1000 else HOUR_MS)
    cases.append(Case("after", memory.measures()))
    parameters = {
        "users": users,
        "destinations": destinations,
        "each": each,
        "days": days,
        "change_hours": every_ms / HOUR_MS,
        "seed": arguments.seed,
    }
    return Report("outage", parameters, tuple(cases))


def _day(server: VirtualServer, day: int, destinations: int, memory: "_Memory") -> Case:
    tries, changes = len(server.receivers.opened_ms), server.changes
    server.run_for(DAY_MS)
    tries = len(server.receivers.opened_ms) - tries
    each = tries / destinations
    most = TRIES_FIRST_DAY if day == 1 else TRIES_LATER_DAYS
    check(each <= most, f"{each:.0f} connections on day {day} to a destination that is away")
    waiting, of_one = server.waiting()
    pairs = sum(len(servers) for servers in server.interest.values())
    check(waiting <= pairs and of_one <= len(server.users), f"{waiting} pushes wait for {pairs} pairs")
    return Case(
        f"day {day} of the outage",
        (
            Measure("changes of users", server.changes - changes, ""),
            Measure("pushes waiting", waiting, ""),
            Measure("connections tried, each destination", each, ""),
            *memory.measures(),
        ),
    )


def _back(server: VirtualServer, destinations: int) -> Case:
    """Left to our tries: nobody sends us a request."""
    owed = server.waiting()[0]
    for number in range(destinations):
        server.receivers.behave(destination(number), Manner.THERE)
    told = 0

    def count(*_: object) -> None:
        nonlocal told
        told += 1

    server.listeners.append(count)
    began_ms, sent = server.now_ms(), len(server.transactions_ms)
    while server.waiting()[0] or server.behind():
        server.run_for(SECOND_MS)
        check(server.now_ms() - began_ms <= 10 * MINUTE_MS, f"{server.behind()} pairs behind after 10 min")
    server.listeners.remove(count)
    check(told <= owed + server.behind(), f"{told} pushes for {owed} that were owed")
    sent_ms = server.transactions_ms[sent:]
    return Case(
        "all are back",
        (
            Measure("all told after", (server.now_ms() - began_ms) / 1000, "s"),
            Measure("pushes owed", owed, ""),
            Measure("pushes sent", told, ""),
            Measure("transactions", len(sent_ms), ""),
            Measure("most transactions in a second", most_within(sent_ms), ""),
        ),
    )


class _Memory:
    """What the queues hold, and the whole process: with the other servers, which hold the same throughout."""

    def __init__(self, server: VirtualServer) -> None:
        self._server = server

    def measures(self) -> tuple[Measure, ...]:
        """Now."""
        gc.collect()
        return (
            Measure("queues", held_bytes(self._server.outbound.queues()) / 1024**2, "MiB"),
            Measure("process", memory_mib(os.getpid()), "MiB"),
        )


def held_bytes(roots: Iterable[object]) -> int:
    """What hangs from `roots` and nothing else: names and what is published belong to the engine."""
    shared = (str, type, Published)
    seen: set[int] = set()
    found = 0
    left = list(roots)
    while left:
        item = left.pop()
        if id(item) in seen or isinstance(item, shared):
            continue
        seen.add(id(item))
        found += sys.getsizeof(item)
        left.extend(gc.get_referents(item))
    return found
