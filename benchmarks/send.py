"""What sending costs: one server, many destinations that check every signature and every right.

| case | what changes | what it shows |
| --- | --- | --- |
| put, nobody observes | PUT by users without observers | what a PUT costs by itself |
| put, one destination | PUT by users observed from one destination each | the cost of a transaction |
| put, many destinations | PUT by users observed from many | fan-out under load: transactions fill up |
| activity, many destinations | pro-active events in bulk by the admin API | the cost of a push |
| default budget | PUT, with `max_transactions_per_second` as it is | that it holds, and all arrives |

The budget and the limits per user are raised in all cases but the last; the batch window is an option.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks.clients import Client, Crowd, request_bytes
from benchmarks.meter import Spent, peak_memory_mib
from benchmarks.report import Case, Measure, Report, check
from benchmarks.world import HERE, World, destinations_named, watched_world
from fedpresence.ids import UserID

GRANULARITY = "3s"  # of the activity case: more than a round of all users takes
SMOKE_GRANULARITY = "500ms"
BUDGET = 50  # transactions a second, the contract's default
UNLIMITED = {"per_second": 1_000_000, "burst": 1_000_000}
UNLIMITED_BUDGET = 100_000  # the most that the configuration takes


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    destinations: int
    users: int  # observed from `fan_out` destinations each
    fan_out: int
    updates: int  # PUTs of each case
    rounds: int  # of activity of all users
    clients: int  # requests on their way at a time


SMOKE = Size(destinations=4, users=6, fan_out=3, updates=40, rounds=1, clients=4)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument("--destinations", type=int, default=100)
    parser.add_argument("--users", type=int, default=500, help="observed from many destinations")
    parser.add_argument("--fan-out", type=int, default=20, help="destinations of each of these")
    parser.add_argument("--updates", type=int, default=5000, help="PUTs of each case")
    parser.add_argument("--rounds", type=int, default=5, help="of activity of all users")
    parser.add_argument("--clients", type=int, default=20, help="requests on their way at a time")
    parser.add_argument("--batch-window-ms", type=int, default=10, help="federation.batch_window")


def run(arguments: argparse.Namespace) -> Report:
    """Measure."""
    size = SMOKE
    if not arguments.smoke:
        size = Size(
            arguments.destinations,
            arguments.users,
            min(arguments.fan_out, arguments.destinations),
            arguments.updates,
            arguments.rounds,
            arguments.clients,
        )
    window_ms = arguments.batch_window_ms
    unlimited: dict[str, Any] = {
        "federation": {"max_transactions_per_second": UNLIMITED_BUDGET, "batch_window": f"{window_ms}ms"},
        "limits": {"client_changes": UNLIMITED, "client_changes_refused": UNLIMITED},
    }
    granularity = SMOKE_GRANULARITY if arguments.smoke else GRANULARITY
    flickering = {"presence": {"last_active_granularity": granularity}}
    cases: list[Case] = []
    with _world(size, unlimited) as world:
        cases += _puts(world, size)
    with _world(size, unlimited | flickering) as world:
        cases.append(_activity(world, size))
    with _world(size, {"federation": {"max_transactions_per_second": BUDGET}}) as world:
        cases.append(_default_budget(world, size))
    return Report(
        "send",
        {
            "destinations": size.destinations,
            "users": size.users,
            "fan_out": size.fan_out,
            "updates": size.updates,
            "clients": size.clients,
            "batch_window_ms": window_ms,
        },
        tuple(cases),
    )


# --- the world -------------------------------------------------------------------------------


@contextmanager
def _world(size: Size, config: dict[str, Any]) -> Iterator[World]:
    alone, narrow, wide = _users(size)
    users = [*alone, *narrow, *wide]
    with watched_world(_rights(size), config, alone) as world:
        with Crowd(world.server.client_url, size.clients) as crowd:  # connections are opened, tokens known
            world.put_all(users, len(users), crowd, "hello")
        yield world


def _users(size: Size) -> tuple[list[UserID], list[UserID], list[UserID]]:
    """Users that nobody observes; observed from one destination each; observed from many."""
    alone = [UserID(f"@alone{n}:{HERE}") for n in range(size.destinations)]
    narrow = [UserID(f"@narrow{n}:{HERE}") for n in range(size.destinations)]
    wide = [UserID(f"@wide{n}:{HERE}") for n in range(size.users)]
    return alone, narrow, wide


def _rights(size: Size) -> dict[str, list[UserID]]:
    _, narrow, wide = _users(size)
    names = destinations_named(size.destinations)
    rights: dict[str, list[UserID]] = {name: [user] for name, user in zip(names, narrow, strict=True)}
    for number, user in enumerate(wide):
        for step in range(size.fan_out):
            rights[names[(number + step) % len(names)]].append(user)
    return rights


# --- the cases -------------------------------------------------------------------------------


def _puts(world: World, size: Size) -> Iterator[Case]:
    alone, narrow, wide = _users(size)
    with Crowd(world.server.client_url, size.clients) as crowd:
        spent, _ = world.metered(lambda: world.put_all(alone, size.updates, crowd, "alone"))
        put_cpu_s = spent.cpu_s / size.updates
        yield Case(
            "put, nobody observes",
            (
                Measure("PUTs", size.updates / spent.wall_s, "/s"),
                Measure("CPU per PUT", 1e6 * put_cpu_s, "µs"),
                Measure("CPU share", spent.share, "%"),
            ),
        )
        for name, users in (("one destination", narrow), ("many destinations", wide)):

            def put(name: str = name, users: list[UserID] = users) -> None:
                world.put_all(users, size.updates, crowd, name)

            spent, counts = world.metered(put)
            yield Case(
                f"put, {name}",
                (
                    Measure("PUTs", size.updates / spent.wall_s, "/s"),
                    *_traffic(world, spent, counts, put_cpu_s * size.updates),
                ),
            )


def _activity(world: World, size: Size) -> Case:
    """Each round everybody is active at once, and some time later everybody no longer is."""
    _, _, wide = _users(size)
    path = "/_fedpresence/admin/v1/activity"
    events = [{"user_id": user, "device_id": "DEVICE"} for user in wide]
    request = request_bytes("POST", path, world.server.admin_token, {"events": events})
    bursts: list[Spent] = []
    pushes = transactions = 0
    _settle(world, wide)
    for _ in range(size.rounds):

        def burst() -> None:
            with Client(world.server.client_url) as client:
                answer = json.loads(client.ask(request))
            check(answer["taken"] == len(events), f"only {answer['taken']} events were taken")
            world.wait_for(_all_online(wide, currently_active=True))

        spent, counts = world.metered(burst)
        bursts.append(spent)
        pushes += counts["pushes"]
        transactions += counts["transactions"]
        _settle(world, wide)
    check(pushes >= size.rounds * len(events) * size.fan_out, "not all activity was told")
    whole = Spent(sum(spent.wall_s for spent in bursts), sum(spent.cpu_s for spent in bursts))
    counted = {"transactions": transactions, "pushes": pushes}
    changes = Measure("events", size.rounds * len(events) / whole.wall_s, "/s")
    return Case("activity in bulk, many destinations", (changes, *_traffic(world, whole, counted, 0.0)))


def _settle(world: World, users: list[UserID]) -> None:
    """Until nobody is currently active, and everybody knows."""
    world.wait_for(_all_online(users, currently_active=False))


def _all_online(users: list[UserID], *, currently_active: bool) -> dict[UserID, dict[str, object]]:
    return {user: {"presence": "online", "currently_active": currently_active} for user in users}


def _default_budget(world: World, size: Size) -> Case:
    _, _, wide = _users(size)
    updates = 3 * len(wide)
    with Crowd(world.server.client_url, size.clients) as crowd:
        spent, counts = world.metered(lambda: world.put_all(wide, updates, crowd, "within the budget"))
    allowed = BUDGET * (spent.wall_s + 1) + 1
    check(
        counts["transactions"] <= allowed,
        f"{counts['transactions']} transactions where the budget allows {allowed:.0f}",
    )
    return Case(
        f"default budget: {BUDGET} transactions/s, window 200 ms",
        (
            Measure("PUTs", updates / spent.wall_s, "/s"),
            Measure("until all had arrived", spent.wall_s, "s"),
            *_traffic(world, spent, counts, 0.0),
        ),
    )


def _traffic(world: World, spent: Spent, counts: dict[str, int], other_cpu_s: float) -> Iterator[Measure]:
    """What left; `other_cpu_s` was spent on taking in what caused it."""
    transactions, pushes = max(1, counts["transactions"]), max(1, counts["pushes"])
    sending_s = max(0.0, spent.cpu_s - other_cpu_s)
    yield Measure("transactions", transactions / spent.wall_s, "/s")
    yield Measure("pushes", pushes / spent.wall_s, "/s")
    yield Measure("pushes per transaction", pushes / transactions, "")
    yield Measure("CPU per transaction", 1e6 * sending_s / transactions, "µs")
    yield Measure("CPU per push", 1e6 * sending_s / pushes, "µs")
    yield Measure("CPU share", spent.share, "%")
    yield Measure("peak memory", peak_memory_mib(world.server.pid), "MiB")
