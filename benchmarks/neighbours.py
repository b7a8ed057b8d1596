"""Whether a destination that misbehaves delays the others, in virtual time.

It is watched by everybody, like a large server, and so are the others; users change all the time. For each
way to misbehave: how long until the others hear of a change, beside a run in which all behave.
"""

import argparse
from random import Random

from benchmarks.receivers import Manner
from benchmarks.report import Case, Measure, Report, check, latencies
from benchmarks.virtual import MINUTE_MS, VirtualServer, destination, interest_of
from fedpresence.ids import ServerName, UserID

EACH = 5  # of those that behave watch a user
CHANGE_EVERY_MS = 2 * MINUTE_MS
MORE_MS = 50  # that much later and it counts as a delay
SMOKE_MORE_MS = 250  # of few changes the slowest is one that waited for its window


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--destinations", type=int, default=50, help="that behave")
    parser.add_argument("--bad", type=int, default=20, help="that misbehave, after a run with one")
    parser.add_argument("--minutes", type=int, default=15)
    parser.add_argument("--seed", type=int, default=1)


def run(arguments: argparse.Namespace) -> Report:
    """Measure."""
    users, good, bad, minutes = arguments.users, arguments.destinations, arguments.bad, arguments.minutes
    more_ms = MORE_MS
    if arguments.smoke:
        users, good, bad, minutes, more_ms = 20, 10, 2, 3, SMOKE_MORE_MS
    cases = []
    for count in (1, bad):
        usual = None
        for manner in Manner:
            times = _times(users, good, count, manner, minutes * MINUTE_MS, Random(arguments.seed))
            measures = latencies("change until the others hear of it", times)
            p99_ms = measures[1].value
            usual = p99_ms if usual is None else usual
            check(
                p99_ms <= usual + more_ms,
                f"{count} that {manner.value}: 99 of 100 in {p99_ms:.0f} ms, else {usual:.0f} ms",
            )
            cases.append(
                Case(f"{count} that {manner.value}", (Measure("changes", len(times), ""), *measures))
            )
    parameters = {
        "users": users,
        "destinations": good,
        "bad": bad,
        "minutes": minutes,
        "seed": arguments.seed,
    }
    return Report("neighbours", parameters, tuple(cases))


def _times(users: int, good: int, bad: int, manner: Manner, length_ms: int, random: Random) -> list[float]:
    """From each change until each destination that behaves hears of it, in seconds."""
    misbehaving = tuple(destination(good + number) for number in range(bad))
    interest = interest_of(users, good, EACH, random)
    server = VirtualServer({user: (*servers, *misbehaving) for user, servers in interest.items()}, random)
    server.boot()
    server.run_for(10 * MINUTE_MS)
    for name in misbehaving:
        server.receivers.behave(name, manner)
    changed_ms: dict[tuple[ServerName, UserID], int] = {}
    times: list[float] = []

    def changed(user_id: UserID) -> None:
        for name in interest[user_id]:
            changed_ms.setdefault((name, user_id), server.now_ms())

    def heard(to: ServerName, user_id: UserID) -> None:
        since_ms = changed_ms.pop((to, user_id), None)
        if since_ms is not None:
            times.append((server.now_ms() - since_ms) / 1000)

    server.on_change = changed
    server.listeners.append(heard)
    server.keep_changing(CHANGE_EVERY_MS)
    server.run_for(length_ms)
    server.stop_changing()
    server.run_for(10 * MINUTE_MS)
    behaving = [destination(number) for number in range(good)]
    check(not server.behind(behaving), f"{server.behind(behaving)} pairs are behind")
    return times
