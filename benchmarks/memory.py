"""What a large server holds in memory, and how long it takes to start.

The same server starts three times: empty, with its users, and with their subscriptions too. The
differences say what a user and a subscription cost.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.launch import local_federation
from benchmarks.meter import cpu_s, memory_mib, peak_memory_mib
from benchmarks.population import Pair, populate
from benchmarks.report import Case, Measure, Report, check
from fedpresence.engine.presence import OFFLINE, ONLINE, PresenceRecord
from fedpresence.ids import ServerName, UserID
from fedpresence.testing.processes import ServerProcess

HERE = ServerName("here.test")
START_WITHIN_S = 600.0
SETTLE_S = 3.0
SMOKE_SETTLE_S = 0.1
REMOTE_SERVERS = 1000
REMOTE_EVERY = 5  # one subscription of five crosses servers, every other of them from there to here
ONLINE_EVERY = 5  # one local user of five was online when the server stopped


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--subscriptions", type=int, default=1_000_000, help="a fifth of them remote")


def run(arguments: argparse.Namespace) -> Report:
    """Measure."""
    users, subscriptions = arguments.users, arguments.subscriptions
    if arguments.smoke:
        users, subscriptions = 200, 1000
    settle_s = SMOKE_SETTLE_S if arguments.smoke else SETTLE_S
    empty, _ = _start("empty", 0, 0, settle_s)
    with_users, of_users = _start("users", users, 0, settle_s)
    full, of_all = _start("users and subscriptions", users, subscriptions, settle_s)
    per_user = (with_users - empty) / users
    per_subscription = (full - with_users) / subscriptions
    each = Case(
        "each",
        (
            Measure("a user", 1024**2 * per_user, "bytes"),
            Measure("a subscription", 1024**2 * per_subscription, "bytes"),
        ),
    )
    parameters = {"users": users, "subscriptions": subscriptions, "remote": subscriptions // REMOTE_EVERY}
    return Report("memory", parameters, (of_users, of_all, each))


def _start(name: str, users: int, subscriptions: int, settle_s: float) -> tuple[float, Case]:
    """What the server holds once it serves, in MiB, and the whole case."""
    # Remote servers are refused at once, so that no time is spent on looking for them.
    resolve = {f"there.test:{n}": "127.0.0.1:9" for n in range(1, REMOTE_SERVERS + 1)}
    config = {"federation": {"resolve": resolve}, "log": {"level": "error"}}
    with tempfile.TemporaryDirectory() as folder:
        federation = local_federation(Path(folder), [HERE], config)
        server = federation[HERE]
        database = server.folder / "fedpresence.db"
        began = time.perf_counter()
        populate(
            database,
            HERE,
            users=(_user(n) for n in range(users)),
            pairs=_pairs(users, subscriptions),
            presence=_presence(users, subscriptions),
        )
        made_s = time.perf_counter() - began
        database_mib = database.stat().st_size / 1024**2
        try:
            began = time.perf_counter()
            server.begin()
            server.wait_until_ready(START_WITHIN_S)
            start_s = time.perf_counter() - began
            start_cpu_s = cpu_s(server.pid)
            time.sleep(settle_s)  # what loading needed is given back by then
            held_mib = memory_mib(server.pid)
            _check_counts(server, users, subscriptions)
            return held_mib, Case(
                name,
                (
                    Measure("database", database_mib, "MiB"),
                    Measure("database made", made_s, "s"),
                    Measure("start until the ready file", start_s, "s"),
                    Measure("CPU until then", start_cpu_s, "s"),
                    Measure("memory", held_mib, "MiB"),
                    Measure("peak memory", peak_memory_mib(server.pid), "MiB"),
                ),
            )
        finally:
            server.kill()


def _check_counts(server: ServerProcess, users: int, subscriptions: int) -> None:
    answer = server.admin("GET", "/status")
    check(answer.status == 200, f"the admin API answered {answer.status}")
    known, pairs = answer.body["users"], answer.body["subscriptions"]
    here = known["online"] + known["unavailable"] + known["busy"] + known["offline"]
    check(here == users, f"{here} users were loaded")
    from_there = sum(1 for n in range(subscriptions) if _is_from_there(n))
    to_there = sum(1 for n in range(subscriptions) if _is_to_there(n))
    check(
        (pairs["accepted"], pairs["granted"]) == (subscriptions - from_there, subscriptions - to_there),
        f"{pairs} were loaded",
    )


def _user(number: int) -> UserID:
    return UserID(f"@user{number:08}:{HERE}")


def _remote_user(number: int) -> UserID:
    return UserID(f"@user{number:08}:there.test:{number % REMOTE_SERVERS + 1}")


def _is_from_there(number: int) -> bool:
    return number % (2 * REMOTE_EVERY) == 0


def _is_to_there(number: int) -> bool:
    return number % (2 * REMOTE_EVERY) == REMOTE_EVERY


def _pairs(users: int, subscriptions: int) -> Iterator[Pair]:
    """Each user has the same number of subscriptions, to users spread evenly, and never twice the same.

    User by user, which is the order of one of the two tables.
    """
    each = -(-subscriptions // users) if users else 0
    for number in range(subscriptions):
        observer, lap = divmod(number, each)
        other = (observer + 1 + lap * 7919) % users
        if _is_from_there(number):
            yield _remote_user(other), _user(observer)
        elif _is_to_there(number):
            yield _user(observer), _remote_user(other)
        else:
            yield _user(observer), _user(other)


def _presence(users: int, subscriptions: int) -> Iterator[PresenceRecord]:
    """Some of our users were online; every remote user was heard of."""
    now_ms = int(time.time() * 1000)
    for number in range(users):
        online = number % ONLINE_EVERY == 0
        yield PresenceRecord(_user(number), ONLINE if online else OFFLINE, now_ms, None, online, 0)
    observed = {pair[1] for number, pair in enumerate(_pairs(users, subscriptions)) if _is_to_there(number)}
    for user_id in sorted(observed):
        yield PresenceRecord(user_id, ONLINE, now_ms, "here and there", False, now_ms)
