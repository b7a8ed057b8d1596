"""What a steady load costs: so many `PUT`s a second, each of which every destination must hear of.

The rates and sizes are those at which homeservers were measured, so that the figures can stand beside
theirs: 5 to 200 updates a second by 50 users to 10 destinations, 5 and 20 by 200 users to 50, with the
defaults an operator has; then the most that is sustained, with the limits per user raised.

The `PUT`s leave on schedule, whether or not those before were answered. Each carries the moment at which it
was due; latency is from there to its arrival at each destination.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from benchmarks.clients import MOMENT, Crowd, put_status
from benchmarks.meter import Meter, Spent, peak_memory_mib
from benchmarks.pacing import Pacer, Scheduled
from benchmarks.report import Case, Measure, Report, check, latencies
from benchmarks.synapse import synapse_world
from benchmarks.world import HERE, Rights, Watched, World, destinations_named, watched_world
from fedpresence.ids import UserID

CONNECTIONS = 50  # of clients: as many as users where there are fewer
LEAD_NS = 200_000_000  # until the first is due: the schedule is ready by then
SUSTAINED_P99_MS = 500.0
REFINEMENTS = 2  # of the most that is sustained, each halves what is unknown
UNLIMITED = {"per_second": 1_000_000, "burst": 1_000_000}
UNLIMITED_CONFIG = {"limits": {"client_changes": UNLIMITED, "client_changes_refused": UNLIMITED}}


@dataclass(frozen=True, slots=True)
class Size:
    """A population all of whose users every destination watches."""

    users: int
    destinations: int

    def user_ids(self, server_name: str = HERE) -> list[UserID]:
        """All of them."""
        return [UserID(f"@user{number}:{server_name}") for number in range(self.users)]

    def rights(self) -> Rights:
        """Everybody is watched from everywhere."""
        return dict.fromkeys(destinations_named(self.destinations), self.user_ids())


Plan = tuple[tuple[Size, tuple[float, ...]], ...]

STEADY: Plan = (
    (Size(users=50, destinations=10), (5, 20, 100, 200)),
    (Size(users=200, destinations=50), (5, 20)),
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument("--seconds", type=float, default=15, help="of each case")
    parser.add_argument(
        "--rates", type=_rates, metavar="N,N", help="only these updates/s, --users and --destinations"
    )
    parser.add_argument("--users", type=int, default=50, help="of --rates")
    parser.add_argument("--destinations", type=int, default=10, help="of --rates")
    parser.add_argument(
        "--saturation",
        type=_rates,
        default=(500, 1000, 1500, 2000, 3000, 4000),
        metavar="N,N",
        help="updates/s to try in turn until one is not sustained; 0: none",
    )
    parser.add_argument("--saturation-users", type=int, default=1000)
    parser.add_argument("--beside-synapse", action="store_true", help="the same loads on a real Synapse")
    parser.add_argument(
        "--synapse-folder",
        type=Path,
        default=Path(tempfile.gettempdir()) / "fedpresence-benchmarks-synapse",
        metavar="DIR",
        help="the environment it is installed into, once",
    )


def run(arguments: argparse.Namespace) -> Report:
    """Measure."""
    seconds, saturation = arguments.seconds, arguments.saturation
    steady: Plan = STEADY
    if arguments.rates is not None:
        steady = ((Size(arguments.users, arguments.destinations), arguments.rates),)
    many = Size(arguments.saturation_users, arguments.destinations)
    if arguments.smoke:
        seconds, steady, saturation, many = 0.5, (), (20, 40), Size(users=10, destinations=3)
    cases: list[Case] = []
    for size, rates in steady:
        if any(rates):
            with watched_world(size.rights(), {}) as world:
                ours = _each_rate(world, size.user_ids(), size, rates, seconds)
            cases += ours
            if arguments.beside_synapse:
                cases += _beside_synapse(ours, arguments.synapse_folder, size, rates, seconds)
    if any(saturation):
        with (
            watched_world(many.rights(), UNLIMITED_CONFIG) as world,
            Pacer(world.client_url, CONNECTIONS) as pacer,
        ):
            _greet(world, many.user_ids())
            cases += _saturation(world, pacer, many, saturation, seconds)
    return Report("load", {"seconds": seconds, "saturation_users": many.users}, tuple(cases))


@dataclass(frozen=True, slots=True)
class Measured:
    """One rate: the case, and whether it was sustained."""

    case: Case
    rate: float
    is_sustained: bool


def _each_rate(
    world: Watched, users: Sequence[UserID], size: Size, rates: Sequence[float], seconds: float
) -> list[Case]:
    with Pacer(world.client_url, CONNECTIONS) as pacer:
        _greet(world, users)
        return [_steady(world, pacer, users, size, rate, seconds).case for rate in rates]


def _beside_synapse(
    ours: Sequence[Case], folder: Path, size: Size, rates: Sequence[float], seconds: float
) -> Iterator[Case]:
    """The same by a Synapse, and how many times as much it spends."""
    with synapse_world(folder, size.users, size.destinations) as (world, users):
        theirs = _each_rate(world, users, size, rates, seconds)
    for our, their in zip(ours, theirs, strict=True):
        times = their.measures[0].value / our.measures[0].value
        yield Case(
            f"Synapse, {their.name}", (*their.measures, Measure("CPU, as a multiple of ours", times, ""))
        )


def _greet(world: Watched, users: Sequence[UserID]) -> None:
    """Everybody online and known everywhere: connections are open, tokens known."""
    with Crowd(world.client_url, min(CONNECTIONS, len(users))) as crowd:
        world.put_all(users, len(users), crowd, "hello")


def _steady(
    world: Watched, pacer: Pacer, users: Sequence[UserID], size: Size, rate: float, seconds: float
) -> Measured:
    before = world.counts()
    world.destinations.ask("hold")
    updates = _updates(users, rate, seconds)
    meter = Meter(world.pid)
    paced = pacer.run([update.scheduled(world.token_of(update.user_id)) for update in updates])
    paced_s = meter.spent().wall_s
    world.destinations.ask("release")
    world.wait_for({update.user_id: {"status_msg": update.status_msg} for update in updates})
    spent = Spent(paced_s, meter.spent().cpu_s)
    after = world.counts()
    counts = {name: after[name] - before[name] for name in after}
    check(set(paced.statuses) == {"200"}, f"answered {dict(paced.statuses)}")
    due_ns: dict[UserID, list[int]] = {}
    for update in updates:
        due_ns.setdefault(update.user_id, []).append(update.due_ns)
    told = world.destinations.ask("latencies", due=due_ns)
    check(len(told["updates"]) == len(updates) * size.destinations, "an update was never told")
    told_p99_ms = latencies("", told["updates"])[1].value
    case = Case(
        f"{rate:g}/s by {size.users} users to {size.destinations} destinations",
        (
            Measure("CPU per update and destination", 1e6 * spent.cpu_s / len(told["updates"]), "µs"),
            Measure("CPU per transaction", 1e6 * spent.cpu_s / counts["transactions"], "µs"),
            Measure("CPU share", spent.share, "%"),
            *latencies("PUT to destination", told["pushes"])[:2],
            *latencies("PUT until that or newer is there", told["updates"])[:2],
            *latencies("PUT answered", paced.answered_s)[:2],
            latencies("left late, the client's fault", paced.late_s)[1],
            Measure("updates", len(updates), ""),
            Measure(
                "overtaken while they waited", 100 * (1 - len(told["pushes"]) / len(told["updates"])), "%"
            ),
            Measure("transactions", counts["transactions"] / paced_s, "/s"),
            Measure("pushes", counts["pushes"] / paced_s, "/s"),
            Measure("pushes per transaction", counts["pushes"] / counts["transactions"], ""),
            Measure("bytes per push", counts["bytes"] / counts["pushes"], "bytes"),
            Measure("bytes per transaction", counts["bytes"] / counts["transactions"], "bytes"),
            Measure("peak memory", peak_memory_mib(world.pid), "MiB"),
        ),
    )
    return Measured(case, rate, told_p99_ms <= SUSTAINED_P99_MS)


def _saturation(
    world: World, pacer: Pacer, size: Size, rates: Sequence[float], seconds: float
) -> Iterator[Case]:
    """Each rate in turn until one is too much, then rates in between."""
    sustained, too_much = 0.0, None
    for rate in rates:
        measured = _steady(world, pacer, size.user_ids(), size, rate, seconds)
        yield measured.case
        if not measured.is_sustained:
            too_much = rate
            break
        sustained = rate
    for _ in range(REFINEMENTS if too_much else 0):
        assert too_much is not None
        measured = _steady(world, pacer, size.user_ids(), size, round((sustained + too_much) / 2), seconds)
        yield measured.case
        if measured.is_sustained:
            sustained = measured.rate
        else:
            too_much = measured.rate
    words = f"sustained with 99 of 100 told within {SUSTAINED_P99_MS:.0f} ms"
    found = [Measure("PUTs", sustained, "/s")]
    if too_much is not None:
        found.append(Measure("too much", too_much, "/s"))
    yield Case(words, tuple(found))


@dataclass(frozen=True, slots=True)
class Update:
    """A `PUT` that is due at a moment."""

    due_ns: int
    user_id: UserID
    connection: int

    @property
    def status_msg(self) -> str:
        """Carries the moment to the destinations."""
        return f"{MOMENT}{self.due_ns}"

    def scheduled(self, token: str) -> Scheduled:
        """For the pacer."""
        return self.due_ns, self.connection, put_status(self.user_id, token, self.status_msg)


def _updates(users: Sequence[UserID], rate: float, seconds: float) -> list[Update]:
    """Evenly spaced, users in turn."""
    first_ns = time.monotonic_ns() + LEAD_NS
    return [
        Update(first_ns + int(1e9 * number / rate), user_id, number % len(users))
        for number, user_id in enumerate(islice(cycle(users), max(1, round(rate * seconds))))
    ]


def _rates(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))
