"""What receiving costs: signed transactions of several origins against one server.

Each origin has one transaction in flight. One case with one push a transaction, as from quiet servers; one
with twenty, and one with fifty, as from busy ones; one with the limits of origins as they are, which must
answer 429.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from benchmarks.children import Child
from benchmarks.launch import local_federation
from benchmarks.meter import Meter, peak_memory_mib
from benchmarks.population import populate
from benchmarks.report import Case, Measure, Report, check, latencies
from fedpresence.ids import ServerName, UserID
from fedpresence.testing.processes import ServerProcess, free_port

HERE = ServerName("here.test")
THERE_HOST = "there.test"
OBSERVER = UserID(f"@observer:{HERE}")
SOME_PUSHES = 20  # what a homeserver sends that has something to say all the time
PUSHES = 50  # in one EDU: what fedpresence and Synapse send
HUGE = 2500  # pushes in one transaction: fifty full EDUs
DEFAULT_BURST = 20_000  # limits.origin_entries
UNLIMITED = {"per_second": 1_000_000_000, "burst": 1_000_000_000}
CHECKED_USERS = 50


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument("--origins", type=int, default=20, help="servers that send at a time")
    parser.add_argument(
        "--users", type=int, default=100, help="observed users of each origin, at least fifty"
    )
    parser.add_argument("--transactions", type=int, default=10_000, help="with one push each")
    parser.add_argument("--some-transactions", type=int, default=3000, help="with twenty pushes each")
    parser.add_argument("--large-transactions", type=int, default=2000, help="with fifty pushes each")


def run(arguments: argparse.Namespace) -> Report:
    """Measure."""
    origins, users = arguments.origins, max(PUSHES, arguments.users)
    single, some, large = arguments.transactions, arguments.some_transactions, arguments.large_transactions
    if arguments.smoke:
        origins, users, single, some, large = 3, PUSHES, 60, 30, 30
    unlimited = {"origin_bytes": UNLIMITED, "origin_entries": UNLIMITED}
    with receiving_world(origins, users, {"limits": unlimited}) as (server, child):
        names = observed_users(origins, users)
        cases = [
            _measure("one push a transaction", server, child, names, single, 1),
            _measure("twenty pushes a transaction", server, child, names, some, SOME_PUSHES),
            _measure("fifty pushes a transaction", server, child, names, large, PUSHES),
        ]
    with receiving_world(1, users, {}) as (_, child):
        cases.append(_default_limits(child))
    parameters = {
        "origins": origins,
        "users": users,
        "transactions": single,
        "some_transactions": some,
        "large_transactions": large,
    }
    return Report("receive", parameters, tuple(cases))


@contextmanager
def receiving_world(
    origins: int, users: int, config: dict[str, Any]
) -> Iterator[tuple[ServerProcess, Child]]:
    """A server that observes users of other servers, and those servers."""
    port = free_port()
    observed = observed_users(origins, users)
    resolve = dict.fromkeys(observed, f"127.0.0.1:{port}")
    config = {**config, "federation": {"resolve": resolve}, "log": {"level": "info"}} | config
    with tempfile.TemporaryDirectory() as folder:
        federation = local_federation(Path(folder), [HERE], config)
        server = federation[HERE]
        pairs = [(OBSERVER, user) for theirs in observed.values() for user in theirs]
        populate(server.folder / "fedpresence.db", HERE, users=[OBSERVER], pairs=pairs)
        private_key, certificate = federation.ca.issue(ServerName(THERE_HOST))
        specification = {
            "port": port,
            "certificate": str(certificate),
            "private_key": str(private_key),
            "ca_file": str(federation.ca.ca_file),
            "target": {"name": HERE, "port": server.federation_port},
            "users": observed,
        }
        with Child("benchmarks.origins", specification) as child, federation:
            child.ask("connect")
            yield server, child


def observed_users(origins: int, users: int) -> dict[str, list[UserID]]:
    """So many users of each of so many servers."""
    names = [f"{THERE_HOST}:{number}" for number in range(1, origins + 1)]
    return {name: [UserID(f"@user{number}:{name}") for number in range(users)] for name in names}


def _measure(
    name: str,
    server: ServerProcess,
    child: Child,
    observed: dict[str, list[UserID]],
    transactions: int,
    pushes: int,
) -> Case:
    child.ask("prepare", transactions=transactions, pushes=pushes, status_msg=name)
    meter = Meter(server.pid)
    sent = child.ask("send")
    spent = meter.spent()
    check(sent["statuses"] == {"200": transactions}, f"{name}: answered {sent['statuses']}")
    told = min(transactions * pushes // len(observed), min(map(len, observed.values())))
    for theirs in observed.values():
        for user_id in theirs[: min(told, CHECKED_USERS // len(observed) + 1)]:
            _check_state(server, user_id, name)
    return Case(
        name,
        (
            Measure("transactions", transactions / sent["wall_s"], "/s"),
            Measure("pushes", transactions * pushes / sent["wall_s"], "/s"),
            Measure("CPU per transaction", 1e6 * spent.cpu_s / transactions, "µs"),
            Measure("CPU per push", 1e6 * spent.cpu_s / transactions / pushes, "µs"),
            Measure("CPU share", spent.share, "%"),
            *latencies("answered within", sent["seconds"]),
            Measure("peak memory", peak_memory_mib(server.pid), "MiB"),
        ),
    )


def _check_state(server: ServerProcess, user_id: UserID, status_msg: str) -> None:
    answer = server.admin("GET", f"/users/{quote(user_id, safe='')}")
    body = answer.body
    check(answer.status == 200, f"{user_id}: {answer.status} {body}")
    check(
        (body["presence"], body["status_msg"]) == ("online", status_msg),
        f"{user_id} is {body['presence']} with {body['status_msg']!r} where {status_msg!r} was sent",
    )


def _default_limits(child: Child) -> Case:
    """One origin sends three times what a burst allows."""
    transactions = 3 * DEFAULT_BURST // HUGE
    child.ask("prepare", transactions=transactions, pushes=HUGE, status_msg="far too many")
    sent = child.ask("send")
    taken, refused = sent["statuses"].get("200", 0), sent["statuses"].get("429", 0)
    check(taken + refused == transactions, f"default limits: answered {sent['statuses']}")
    check(taken * HUGE >= DEFAULT_BURST - HUGE, f"only {taken} transactions passed the default limits")
    check(refused > 0, "the default limits refused nothing")
    return Case(
        "default limits, one origin far beyond them",
        (
            Measure("pushes taken", taken * HUGE, ""),
            Measure("transactions answered 200", taken, ""),
            Measure("transactions answered 429", refused, ""),
        ),
    )
