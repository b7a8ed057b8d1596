"""What a large server costs where nothing happens: everybody online and idle, their streams held open.

The daemon's own engine, hub and outbound in virtual time, with real processor time counted: a virtual second
at a time, so that the worst shows beside the mean. Two servers that differ in one setting: one refreshes its
users as budgeted, the other practically never. So the second shows what idleness itself costs, and the first
what the refreshes add: deciding, encoding and queueing. Sockets, TLS and signatures are not in it; `send` and
`counts` say what a transaction costs with them.
"""

import argparse
import gc
import os
import statistics
import time
from random import Random

from benchmarks.meter import memory_mib
from benchmarks.receivers import most_within
from benchmarks.report import Case, Measure, Report, check
from benchmarks.virtual import DAY_MS, MINUTE_MS, SECOND_MS, VirtualServer, interest_of
from fedpresence.engine.presence import UNAVAILABLE

REFRESH_MS = 25 * MINUTE_MS  # presence.refresh_interval
NEVER_MS = 1000 * DAY_MS  # as a refresh interval


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--destinations", type=int, default=1_000)
    parser.add_argument("--each", type=int, default=10, help="destinations that watch a user")
    parser.add_argument("--minutes", type=int, default=25, help="that are measured, of virtual time")
    parser.add_argument("--seed", type=int, default=1)


def run(arguments: argparse.Namespace) -> Report:
    """Measure."""
    users, destinations, each = arguments.users, arguments.destinations, arguments.each
    minutes = arguments.minutes
    if arguments.smoke:
        users, destinations, each, minutes = 200, 20, 3, 2
    cases = []
    for name, refresh_ms in (("without refreshes", NEVER_MS), ("with refreshes as budgeted", REFRESH_MS)):
        random = Random(arguments.seed)
        interest = interest_of(users, destinations, each, random)
        before_mib = memory_mib(os.getpid())
        server = VirtualServer(interest, random, refresh_interval_ms=refresh_ms)
        server.boot()
        server.run_for(
            2 * REFRESH_MS
        )  # after the start the first round is still denser than those that follow
        if refresh_ms == REFRESH_MS:
            _check_all_told(server)
        held_mib = memory_mib(os.getpid()) - before_mib
        cases.append(_window(server, name, minutes * 60, held_mib))
        del server, interest
        gc.collect()
    parameters = {
        "users": users,
        "destinations": destinations,
        "each": each,
        "minutes": minutes,
        "seed": arguments.seed,
    }
    return Report("idle", parameters, tuple(cases))


def _window(server: VirtualServer, name: str, seconds: int, held_mib: float) -> Case:
    """So many virtual seconds, each with what it took."""
    server.receivers.reads = False  # that is the work of others
    gc.collect()
    gc.freeze()  # as the daemon does once it has started
    first = len(server.transactions_ms)
    spent_s = []
    for _ in range(seconds):
        began = time.process_time()
        server.run_for(SECOND_MS)
        spent_s.append(time.process_time() - began)
    gc.unfreeze()
    sent_ms = server.transactions_ms[first:]
    most, mean = most_within(sent_ms), len(sent_ms) / seconds
    check(most <= max(1, 2 * mean), f"{most} transactions in a second, where {mean} is the mean")
    return Case(
        name,
        (
            Measure("CPU share of a core", 100 * sum(spent_s) / seconds, "%"),
            Measure("worst virtual second", 1000 * max(spent_s), "ms"),
            Measure("99 of 100 virtual seconds below", 1000 * statistics.quantiles(spent_s, n=100)[98], "ms"),
            Measure("mean virtual second", 1000 * sum(spent_s) / seconds, "ms"),
            Measure("transactions", mean, "/s"),
            Measure("most transactions in a second", most, ""),
            Measure("memory held", held_mib, "MiB"),
        ),
    )


def _check_all_told(server: VirtualServer) -> None:
    """Everybody is idle, and everybody who may know does."""
    behind = server.behind()
    check(not behind, f"{behind} pairs are behind")
    view = server.engine.view(server.users[0], server.users[0], server.now_ms())
    check(view is not None and view.state is UNAVAILABLE, "the users are not idle")
