"""What a PUT, a transaction and a push cost, counted instead of timed: for noisy machines and small changes.

The daemon does a fixed piece of work of each kind, one thing after the other, and what it did is counted:
instructions where the processor lets them be counted, else calls of Python and built-in functions by its
main thread. Differences of three percent are real; of a push sent in bulk, ten: it is what is left of a
difference, and depends on how many leave together.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.children import Child
from benchmarks.clients import Client, Crowd, put_status
from benchmarks.counting import CallCounter, Counter, PerfCounter, can_count_instructions
from benchmarks.launch import running
from benchmarks.population import token_of
from benchmarks.receive import PUSHES, UNLIMITED, observed_users, receiving_world
from benchmarks.report import Case, Measure, Report, check
from benchmarks.world import HERE, destinations_named, watched_world
from fedpresence.ids import UserID
from fedpresence.testing.processes import ServerProcess

BULK_USERS = 50  # as many pushes as one EDU holds
BULK_DESTINATIONS = 10
BATCHES = 5
CLIENTS = 10
WAVES_OF = 30  # one of them for so many of each other piece of work: a wave is 500 pushes
RECEIVING = {"limits": {"origin_bytes": UNLIMITED, "origin_entries": UNLIMITED}}
ALONE, NARROW = UserID(f"@alone:{HERE}"), UserID(f"@narrow:{HERE}")
WIDE = [UserID(f"@wide{number}:{HERE}") for number in range(BULK_USERS)]


def add_options(parser: argparse.ArgumentParser) -> None:
    """What can be varied."""
    parser.add_argument("--times", type=int, default=300, help="each piece of work")
    parser.add_argument("--by", choices=["instructions", "calls"], help="count only by these")


def run(arguments: argparse.Namespace) -> Report:
    """Measure."""
    times = BATCHES * max(1, (10 if arguments.smoke else arguments.times) // BATCHES)
    by = arguments.by or ("instructions" if can_count_instructions() else "calls")
    with tempfile.TemporaryDirectory() as folder, _counted(by, Path(folder)):
        cases = (_sending(times, by, Path(folder)), _receiving(times, by, Path(folder)))
    return Report("counts", {"times": times, "by": by}, cases)


@contextmanager
def _counted(by: str, folder: Path) -> Iterator[None]:
    """Servers run so that they can be counted."""
    if by == "instructions":
        yield
    else:
        with running(("-m", "benchmarks.profiled", str(folder))):
            yield


def _counter(by: str, folder: Path, server: ServerProcess) -> Counter:
    return PerfCounter(server.pid) if by == "instructions" else CallCounter(folder, server.pid)


def _sending(times: int, by: str, folder: Path) -> Case:
    one = destinations_named(1)[0]
    with watched_world({one: [NARROW]}, _sending_config("50ms"), [ALONE]) as world:
        counter = _counter(by, folder, world.server)
        with Client(world.server.client_url) as client, Crowd(world.server.client_url, 1) as crowd:
            world.put_all([ALONE, NARROW], 2, crowd, "hello")  # connections are opened, tokens known

            def put_alone(number: int) -> None:
                client.ask(put_status(ALONE, token_of(ALONE), f"alone {number}"))

            def put_narrow(number: int) -> None:
                world.put_all([NARROW], 1, crowd, f"narrow {number}")

            put = _usual(counter, times, put_alone)
            before = world.counts()
            transaction = _usual(counter, times, put_narrow) - put
            sent = world.counts()["transactions"] - before["transactions"]
    check(sent == times, f"{sent} transactions for {times} changes")
    push, transactions = _bulk(max(1, times // WAVES_OF), by, folder, put, transaction)
    return Case(
        "sending",
        (
            Measure("a PUT that nobody observes", put, counter.unit),
            Measure("a transaction with one push", transaction, counter.unit),
            Measure("each push more", push, counter.unit),
            Measure("transactions that showed this", transactions, ""),
        ),
    )


def _bulk(waves: int, by: str, folder: Path, put: float, transaction: float) -> tuple[float, int]:
    """What each push costs beyond the first of its transaction, and of how many transactions that is known.

    The window is so long that all who change together leave together.
    """
    rights = dict.fromkeys(destinations_named(BULK_DESTINATIONS), WIDE)
    with watched_world(rights, _sending_config("1s" if waves > 1 else "100ms")) as world:
        counter = _counter(by, folder, world.server)
        with Crowd(world.server.client_url, CLIENTS) as crowd:
            world.put_all(WIDE, len(WIDE), crowd, "hello")

            before, began = world.counts(), counter.read()
            for number in range(waves):
                world.put_all(WIDE, len(WIDE), crowd, f"wide {number}")
            done, after = counter.read() - began, world.counts()
    counts = {name: after[name] - before[name] for name in after}
    sent = done - put * waves * len(WIDE) - transaction * counts["transactions"]
    return sent / (counts["pushes"] - counts["transactions"]), counts["transactions"]


def _sending_config(batch_window: str) -> dict[str, Any]:
    return {
        "federation": {"batch_window": batch_window, "max_transactions_per_second": 100_000},
        "limits": {"client_changes": UNLIMITED, "client_changes_refused": UNLIMITED},
    }


def _usual(counter: Counter, times: int, work: Callable[[int], None]) -> float:
    """What one piece of work takes: the median of some batches, since in one of them a timer may come."""
    size = times // BATCHES
    found = []
    for batch in range(BATCHES):
        began = counter.read()
        for number in range(size):
            work(batch * size + number)
        found.append((counter.read() - began) / size)
    return statistics.median(found)


def _receiving(times: int, by: str, folder: Path) -> Case:
    with receiving_world(1, PUSHES, RECEIVING) as (server, child):
        counter = _counter(by, folder, server)
        users = sum(map(len, observed_users(1, PUSHES).values()))
        _receive(counter, child, 1, users, "hello")
        single, full = (
            statistics.median(
                _receive(counter, child, times // BATCHES, pushes, name) for _ in range(BATCHES)
            )
            for pushes, name in ((1, "one"), (PUSHES, "fifty"))
        )
    return Case(
        "receiving",
        (
            Measure("a transaction with one push", single, counter.unit),
            Measure("each push more", (full - single) / (PUSHES - 1), counter.unit),
        ),
    )


def _receive(counter: Counter, child: Child, transactions: int, pushes: int, status_msg: str) -> float:
    """What one of so many transactions takes."""
    child.ask("prepare", transactions=transactions, pushes=pushes, status_msg=status_msg)
    began = counter.read()
    sent = child.ask("send")
    done = counter.read() - began
    check(sent["statuses"] == {"200": transactions}, f"{status_msg}: answered {sent['statuses']}")
    return done / transactions
